"""Parses manifest lines (JSONL) to rows. An invalid line becomes a row with a problem, never an exception."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

from beam_jobs.sources.members import file_name, parse_member
from data import schema
from walt_t5x.files import storage
from walt_t5x.media.containers import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_hidden
from walt_t5x.media.excerpts import excerpt_of
from walt_t5x.media.geometry import Crop
from walt_t5x.media.rules import ReasonedError

# Reasons of invalid rows: only another manifest fixes them, not another media file.
PROBLEMS = frozenset(
  (
    "bad_captions",
    "bad_crop",
    "bad_group",
    "bad_label",
    "bad_manifest_line",
    "bad_modality",
    "bad_source_row",
    "bad_split",
    "bad_uri",
    "bad_window",
  )
)
# A row with a thousand captions has some 100 kB. Beam, which shuffles lines, takes minutes for one of 100 MB.
MAX_LINE_BYTES = 1 << 20
# Captions are drawn by weights in float32.
_MAX_WEIGHT = 1e30
_MAX_DEPTH = 100
CONVERT_ARRAY = "a manifest has one object per line: jq -c '.[]' IN.json > OUT.jsonl"
CONVERT_OBJECTS = (
  "a manifest has one object in one line: jq -c . IN.json > OUT.jsonl; for an array in an object: "
  "jq -c '.KEY[]' IN.json > OUT.jsonl"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One line of the manifest.

  `path` is where to read the media, `uri` is the manifest's value. `crop` is the part of the picture to use, in
  fractions with six digits, or None for all of it. `problem` is a reason and its explanation.
  """

  uri: str
  raw: Mapping[str, Any]
  split: str
  modality: str
  path: str = ""
  captions: tuple[str, ...] = ()
  caption_weights: tuple[float, ...] = ()
  label: int = schema.NO_LABEL
  start_seconds: float | None = None
  end_seconds: float | None = None
  crop: Crop | None = None
  group: str | None = None
  problem: tuple[str, str] | None = None

  @property
  def key(self) -> str:
    """sha256 of uri, start, end, and the crop if there is one."""
    return row_key(self.uri, self.start_seconds, self.end_seconds, self.crop)

  @property
  def identity(self) -> str:
    """sha256 of key and captions; two rows with the same identity are duplicates."""
    return _digest(self.key, self.captions)

  @property
  def shard_key(self) -> str:
    """sha256 of the group if there is one, else `key`; it decides the shard."""
    return self.key if self.group is None else _digest("group", self.group)


def parse_line(line: str, folder: str) -> Row:
  """Row of one manifest line; `folder` is the base of relative uris."""
  raw: Any = None
  try:
    raw = load_json(line)
    if not isinstance(raw, dict):
      raise ReasonedError(
        "bad_manifest_line", f"got one JSON {json_kind(raw)}{_one_per_line(line)}"
      )
    return _row(raw, folder)
  except ReasonedError as error:
    problem = (error.reason, str(error))
  except ValueError as error:
    problem = (
      "bad_manifest_line",
      f"got a line that is not read ({error}){_one_per_line(line)}",
    )
  raw = raw if isinstance(raw, dict) else {"line": line}
  uri = raw.get("uri") if isinstance(raw.get("uri"), str) else ""
  return Row(
    uri=uri or line,
    raw=raw,
    split=raw["split"] if raw.get("split") in schema.SPLITS else "train",
    modality=raw["modality"] if raw.get("modality") in schema.MODALITIES else guess_modality(uri),
    problem=problem,
  )


def load_json(text: str | bytes) -> Any:
  """The value of a JSON text.

  Raises:
    ValueError: the text is not JSON, has a number of thousands of digits, or is nested so deeply that writing it again
      might exceed the stack.
  """
  with contextlib.suppress(RecursionError):
    value = json.loads(text)
    level = [value]
    for _ in range(_MAX_DEPTH):
      level = [item for one in level for item in _items(one)]
      if not level:
        return value
  raise ValueError(f"more than {_MAX_DEPTH} levels of lists and objects")


def json_kind(value: Any) -> str:
  """What JSON calls a value."""
  return {dict: "object", list: "array", str: "string", type(None): "null"}.get(type(value)) or (
    "boolean" if isinstance(value, bool) else "number"
  )


def _one_per_line(line: str) -> str:
  """What is expected of a line, and how to get there if it may be a part of a larger JSON value."""
  shape = line.strip()
  if shape.startswith("[") or shape == "]" or shape.endswith("},"):
    return f", expected a JSON object; {CONVERT_ARRAY}"
  part = shape in ("{", "}") or shape.startswith('"') or shape.endswith((",", "{", "["))
  return ", expected a JSON object" + (f"; {CONVERT_OBJECTS}" if part else "")


def _items(value: Any) -> Iterable[Any]:
  if isinstance(value, dict):
    return value.values()
  return value if isinstance(value, list) else ()


def row_key(uri: Any, start_seconds: Any, end_seconds: Any, crop: Crop | None = None) -> str:
  """sha256 that identifies a row of a manifest."""
  return _digest(uri, start_seconds, end_seconds, *(() if crop is None else (crop,)))


def is_utf8(text: str) -> bool:
  """Whether UTF-8 can encode a text; lone surrogates and undecodable bytes cannot be encoded."""
  return text == text.encode(errors="ignore").decode()


def is_media(path: str) -> bool:
  """Whether a file's extension is that of an image or a video, and it is not hidden."""
  suffix = os.path.splitext(path)[1].lower()
  return suffix in IMAGE_SUFFIXES + VIDEO_SUFFIXES and not is_hidden(os.path.basename(path))


def guess_modality(uri: str) -> str:
  """'image' for the extension of an image, 'video' for everything else."""
  return "image" if os.path.splitext(file_name(uri))[1].lower() in IMAGE_SUFFIXES else "video"


def resolve(uri: str, folder: str) -> str:
  """Path of a uri: unchanged if it is absolute or has a scheme, else relative to the manifest's folder."""
  if uri.startswith("file:///"):
    return urllib.parse.unquote(uri.removeprefix("file://"))
  if "://" in uri or os.path.isabs(uri):
    return uri
  return f"{folder.rstrip('/')}/{uri}" if folder != "/" else f"/{uri}"


def is_within(path: str, roots: Iterable[str]) -> bool:
  """Whether a path, after its `..` are followed, or an address, without any, is in one of these folders."""
  member = parse_member(path)
  path = member.archive if member else path
  roots = [root.rstrip("/") or "/" for root in roots if root]
  if not storage.is_local(path):
    # `::` chains the file systems of fsspec.
    plain = "::" not in path and ".." not in re.split(r"[/\\]", urllib.parse.unquote(path))
    return plain and any(path.startswith(f"{root}/") for root in roots)
  path = os.path.abspath(path)
  local = [os.path.abspath(root) for root in roots if storage.is_local(root)]
  return any(path.startswith(root if root == "/" else f"{root}/") for root in local)


def _row(raw: Mapping[str, Any], folder: str) -> Row:
  if raw.get("source_error") is not None:
    raise ReasonedError("bad_source_row", str(raw["source_error"]))
  uri = raw.get("uri")
  if not isinstance(uri, str) or not uri or not is_utf8(uri):
    raise ReasonedError("bad_uri", f"uri: got {uri!r}, expected a path in UTF-8")
  captions, weights = _captions(raw)
  split = "train" if raw.get("split") is None else raw["split"]
  if split not in schema.SPLITS:
    raise ReasonedError("bad_split", f"split: got {split!r}, expected one of {schema.SPLITS}")
  modality = guess_modality(uri) if raw.get("modality") is None else raw["modality"]
  if modality not in schema.MODALITIES:
    raise ReasonedError(
      "bad_modality", f"modality: got {modality!r}, expected one of {schema.MODALITIES}"
    )
  label = schema.NO_LABEL if raw.get("label") is None else raw["label"]
  if not isinstance(label, int) or isinstance(label, bool) or not -1 <= label < 2**62:
    raise ReasonedError("bad_label", f"label: got {label!r}, expected a class number or nothing")
  group = raw.get("group")
  if isinstance(group, bool) or not isinstance(group, str | int | None):
    raise ReasonedError("bad_group", f"group: got {group!r}, expected a string or nothing")
  excerpt = excerpt_of(raw)
  return Row(
    uri=uri,
    path=resolve(uri, folder),
    captions=captions,
    caption_weights=weights,
    label=label,
    split=split,
    modality=modality,
    start_seconds=excerpt.start_seconds,
    end_seconds=excerpt.end_seconds,
    crop=excerpt.crop,
    raw=raw,
    group=None if group is None else str(group),
  )


def _captions(raw: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[float, ...]]:
  captions = raw.get("captions")
  if captions is None:
    caption = raw.get("caption")
    captions = [] if caption is None else caption if isinstance(caption, list) else [caption]
  if not isinstance(captions, list) or not all(isinstance(c, str) and is_utf8(c) for c in captions):
    raise ReasonedError(
      "bad_captions", f"captions: got {captions!r}, expected a list of strings in UTF-8"
    )
  weights = raw.get("caption_weights")
  if weights is None:
    weights = [1.0] * len(captions)
  numbers = isinstance(weights, list) and all(
    isinstance(w, int | float) and not isinstance(w, bool) and 0 <= w <= _MAX_WEIGHT
    for w in weights
  )
  if not numbers or len(weights) != len(captions) or (weights and sum(weights) <= 0):
    raise ReasonedError(
      "bad_captions",
      f"caption_weights: got {weights!r} for {len(captions)} captions, expected the same number of weights "
      f"from 0 to {_MAX_WEIGHT:g}, not all of them 0",
    )
  kept = [(c.strip(), float(w)) for c, w in zip(captions, weights) if c.strip()]
  if kept and sum(w for _, w in kept) <= 0:
    raise ReasonedError(
      "bad_captions",
      f"caption_weights: got {weights!r}, expected a weight above 0 of a caption that is not blank",
    )
  return tuple(c for c, _ in kept), tuple(w for _, w in kept)


def _digest(*parts: Any) -> str:
  return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
