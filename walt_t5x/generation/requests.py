"""What to generate: prompts, labels, and what each clip starts from, in the order of the samples' numbers."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

IMAGE, VIDEO = "image", "video"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """One clip to make.

  Attributes:
    prompt: what to show; empty for models without text.
    label: class, for models with classes.
    image: picture that the clip starts from.
    video: clip that is continued from its last frames.
  """

  prompt: str = ""
  label: int | None = None
  image: str | None = None
  video: str | None = None

  @property
  def kind(self) -> str | None:
    """IMAGE, VIDEO or None: what the clip starts from."""
    return IMAGE if self.image else VIDEO if self.video else None

  @property
  def given(self) -> str | None:
    """The file that the clip starts from."""
    return self.image or self.video

  def as_dict(self) -> dict[str, Any]:
    """The fields that are set."""
    return {k: v for k, v in dataclasses.asdict(self).items() if v not in (None, "")}


def read_prompts(prompts: Sequence[str], prompts_file: str | None) -> list[str]:
  """The prompts of --prompt and --prompts_file.

  Raises:
    ValueError: if one is empty, or the file holds none or cannot be read.
  """
  found = [p.strip() for p in prompts]
  if prompts_file:
    lines = _lines(prompts_file, f"--prompts_file={prompts_file}")
    from_file = [line.strip() for line in lines if line.strip()]
    if not from_file:
      raise ValueError(f"--prompts_file={prompts_file} holds no prompt: expected one a line")
    found += from_file
  if not all(found):
    raise ValueError(f"prompt {found.index('') + 1} of {len(found)} is empty: say what to show")
  return found


def _lines(file: str, what: str) -> list[str]:
  try:
    return Path(file).read_text(encoding="utf-8").splitlines()
  except UnicodeDecodeError as error:
    raise ValueError(f"{what} is no UTF-8 text: {error}") from error
  except OSError as error:
    raise ValueError(f"{what} cannot be read: {error.strerror}") from error


def read_requests(file: str) -> list[Request]:
  """The requests of --requests: JSON lines with the fields of `Request`; paths are relative to the file.

  Raises:
    ValueError: naming the line that is not one, or if there are none.
  """
  path, found = Path(file), []
  known = {"prompt": str, "label": int, IMAGE: str, VIDEO: str}
  for number, line in enumerate(_lines(file, f"--requests={file}"), 1):
    if not line.strip():
      continue
    where = f"--requests={file}:{number}"
    try:
      row = json.loads(line)
    except ValueError as error:
      raise ValueError(f"{where} is no JSON object: {error}") from error
    if not isinstance(row, dict):
      raise ValueError(f"{where} is {line.strip()[:80]}, expected a JSON object")
    unknown = set(row) - known.keys()
    if unknown:
      raise ValueError(
        f"{where} has the fields {sorted(unknown)}; expected some of {sorted(known)}"
      )
    for field, value in row.items():
      if value is not None and (not isinstance(value, known[field]) or isinstance(value, bool)):
        expected = "a whole number" if known[field] is int else "a string"
        raise ValueError(f"{where} has {field} {value!r}, expected {expected}")
    for field in (IMAGE, VIDEO):
      if row.get(field):
        row[field] = str(path.parent / row[field])
    found.append(Request(**{k: v for k, v in row.items() if v is not None}))
  if not found:
    raise ValueError(f"--requests={file} holds no request: expected a JSON object a line")
  return found


def make_requests(
  prompts: Sequence[str], *, image: str | None = None, video: str | None = None
) -> list[Request]:
  """One request a prompt, all starting from the same picture or clip; without prompts, one that has none."""
  return [Request(prompt=prompt, image=image, video=video) for prompt in prompts or [""]]


def check_requests(requests: Iterable[Request], *, text: bool, classes: int) -> None:
  """Each request says what its models need, and all start from the same kind of thing.

  Args:
    requests: to check.
    text: the stages read text.
    classes: of the stages; 0 for none.

  Raises:
    ValueError: naming the request.
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
    if request.given and not Path(request.given).is_file():
      raise ValueError(f"request {number} starts from {request.given}: no such file")
  if len(kinds) > 1:
    shown = ", ".join(f"{n} from {kind or 'noise'}" for kind, n in kinds.items())
    raise ValueError(
      f"requests start from different things ({shown}): put each kind in a run of its own"
    )
