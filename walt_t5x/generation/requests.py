"""What to generate: prompts, labels, and the media that each clip starts from, in the order of the samples."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from walt_t5x.files.paths import as_path

IMAGE, VIDEO = "image", "video"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """One clip to generate.

  Attributes:
    prompt: the prompt; empty for models without text.
    label: class, for models with classes.
    image: image that the clip starts from.
    video: video that is continued from its last frames.
  """

  prompt: str = ""
  label: int | None = None
  image: str | None = None
  video: str | None = None

  @property
  def kind(self) -> str | None:
    """IMAGE, VIDEO or None: the kind of media that the clip starts from."""
    return IMAGE if self.image else VIDEO if self.video else None

  @property
  def file(self) -> str | None:
    """The file that the clip starts from."""
    return self.image or self.video

  def as_dict(self) -> dict[str, Any]:
    """The fields that are set."""
    return {k: v for k, v in dataclasses.asdict(self).items() if v not in (None, "")}


def read_prompts(
  prompts: Sequence[str], prompts_file: str | None, *, flag: str = "--prompts_file"
) -> list[str]:
  """The prompts of --prompt and --prompts_file, or of the file of another flag.

  Raises:
    ValueError: a prompt is empty, or the file has none or cannot be read.
  """
  found = [p.strip() for p in prompts]
  if prompts_file:
    lines = _lines(prompts_file, f"{flag}={prompts_file}")
    from_file = [line.strip() for line in lines if line.strip()]
    if not from_file:
      raise ValueError(f"{flag}={prompts_file} has no prompt: expected one per line")
    found += from_file
  if not all(found):
    raise ValueError(f"prompt {found.index('') + 1} of {len(found)} is empty: expected text")
  return found


def _lines(file: str, what: str) -> list[str]:
  try:
    return as_path(file).read_text(encoding="utf-8").splitlines()
  except UnicodeDecodeError as error:
    raise ValueError(f"{what} is not UTF-8 text: {error}") from error
  except OSError as error:
    raise ValueError(f"{what} cannot be read: {error.strerror}") from error


def read_requests(file: str) -> list[Request]:
  """The requests of --requests: JSON lines with the fields of `Request`; paths are relative to the file.

  Raises:
    ValueError: a line is not a request (names the line), or there are none.
  """
  path, found = as_path(file), []
  known = {"prompt": str, "label": int, IMAGE: str, VIDEO: str}
  for number, line in enumerate(_lines(file, f"--requests={file}"), 1):
    if not line.strip():
      continue
    where = f"--requests={file}:{number}"
    try:
      row = json.loads(line)
    except ValueError as error:
      raise ValueError(f"{where} is not a JSON object: {error}") from error
    if not isinstance(row, dict):
      raise ValueError(f"{where} is {line.strip()[:80]}, expected a JSON object")
    unknown = set(row) - known.keys()
    if unknown:
      raise ValueError(
        f"{where} has the fields {sorted(unknown)}; expected some of {sorted(known)}"
      )
    for field, value in row.items():
      if value is not None and (not isinstance(value, known[field]) or isinstance(value, bool)):
        expected = "a complete number" if known[field] is int else "a string"
        raise ValueError(f"{where} has {field} {value!r}, expected {expected}")
    for field in (IMAGE, VIDEO):
      if row.get(field):
        row[field] = str(path.parent / row[field])
    found.append(Request(**{k: v for k, v in row.items() if v is not None}))
  if not found:
    raise ValueError(f"--requests={file} has no request: expected one JSON object per line")
  return found


def make_requests(
  prompts: Sequence[str], *, image: str | None = None, video: str | None = None
) -> list[Request]:
  """One request per prompt, all starting from the same image or video; without prompts, one without a prompt."""
  return [Request(prompt=prompt, image=image, video=video) for prompt in prompts or [""]]


def check_requests(requests: Iterable[Request], *, text: bool, classes: int) -> None:
  """Checks that each request gives what its models need, and that all start from the same kind of media.

  Args:
    text: whether the stages read text.
    classes: number of classes of the stages; 0 for none.

  Raises:
    ValueError: names the request.
  """
  kinds = {}
  for number, request in enumerate(requests):
    kinds.setdefault(request.kind, number)
    if request.image and request.video:
      raise ValueError(f"request {number} has an image and a video: give one to start from")
    if text and not request.prompt.strip():
      raise ValueError(
        f"request {number} has no prompt, and the stages read text: give --prompt, --prompts_file or --requests"
      )
    if classes and (request.label is None or not 0 <= request.label < classes):
      raise ValueError(
        f"request {number} has label {request.label}, expected 0 to {classes - 1}: set it in --requests"
      )
    if not classes and request.label is not None:
      raise ValueError(f"request {number} has a label, but the stages have no classes")
    if request.file and not as_path(request.file).is_file():
      raise ValueError(f"request {number} starts from {request.file}, which does not exist")
  if len(kinds) > 1:
    shown = ", ".join(f"{n} from {kind or 'noise'}" for kind, n in kinds.items())
    raise ValueError(
      f"requests start from different kinds of media ({shown}): put each kind into a separate run"
    )
