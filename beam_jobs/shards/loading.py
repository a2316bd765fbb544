"""Loads the pixels of one manifest row: reads the media, filters by header and decodes, in this process or another."""

import dataclasses
import functools
import hashlib
import json
import pickle
import threading
from collections.abc import Callable, Sequence
from typing import Any

from beam_jobs.sources.members import StaleMember, read_media
from beam_jobs.sources.rows import Row, is_within
from walt_t5x.files import storage
from walt_t5x.media import decoding
from walt_t5x.media.clips import Clip, ClipSpec
from walt_t5x.media.isolation import Isolated, WorkerCrashed, WorkerTimeout
from walt_t5x.media.reading import MediaError
from walt_t5x.media.rules import Rejected, Rule

ISOLATIONS = ("process", "thread")
_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeSettings:
  """How a worker decodes; none of these settings changes the pixels.

  Args:
    isolation: 'process' survives a decoder that hangs or crashes; 'thread' avoids starting processes.
    timeout_seconds: a row that takes longer to decode is a dead letter.
    threads: rows that are loaded concurrently, ahead of the encoder; as many processes with isolation 'process'.
    memory_mib: address space limit of a decoding process; 0 is unlimited.
  """

  isolation: str = "process"
  timeout_seconds: float = 120.0
  threads: int = 2
  memory_mib: int = 8192

  def __post_init__(self):
    if self.timeout_seconds <= 0 or self.memory_mib < 0:
      raise ValueError(f"expected a time limit above 0 and memory >= 0, got {self}")

  def isolated(self, function: Callable[..., Any], *, grace_seconds: float = 0.0) -> Isolated:
    """Processes that run a function with these settings; `grace_seconds` are added to the time limit."""
    return Isolated(
      function,
      processes=self.threads,
      timeout_seconds=self.timeout_seconds + grace_seconds,
      memory_bytes=self.memory_mib << 20 or None,
    )


@dataclasses.dataclass(frozen=True)
class Failure:
  """Why a row did not become a record; stage 'filter' is a rejection, any other stage a dead letter."""

  stage: str
  reason: str
  message: str


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A row with its pixels; `media_id` hashes content, window and crop, `record_id` also the captions."""

  row: Row
  record_id: str
  clip: Clip
  media_id: str


def _ids(digest: bytes, row: Row, spec: ClipSpec, clip: int) -> tuple[str, str]:
  """(record id, media id): sha256 of the content's digest, clip window and crop, the record's also of the captions."""
  window = ()
  if row.modality == "video":
    window = (row.start_seconds, row.end_seconds, spec.num_frames, spec.fps, spec.position)
    if spec.position == "random":
      window = (*window, spec.seed, *((clip,) if clip else ()))
  if row.crop is not None:
    window = (*window, row.crop)
  record = digest + json.dumps((row.modality, window, row.captions)).encode()
  media = digest + json.dumps(window).encode()
  return hashlib.sha256(record).hexdigest(), hashlib.sha256(media).hexdigest()


def draw(identity: str) -> float:
  """A number in [0, 1) derived from a record id: the same row gives the same clip in any order and from any source."""
  return int(identity[:13], 16) / 16**13


def load_row(
  row: Row,
  spec: ClipSpec,
  rules: Sequence[Rule] = (),
  settings: DecodeSettings | None = None,
  *,
  clip: int = 0,
) -> Loaded | Failure:
  """Reads a row and decodes its clip of this number; any error becomes a `Failure`."""
  settings = settings or DecodeSettings(isolation="thread")
  try:
    content = read_media(row.path, max_bytes=spec.max_bytes)
  except Exception as error:
    return failure_to_read(error)
  digest = hashlib.sha256(content).digest()
  record_id, media_id = _ids(digest, row, spec, clip)
  window = {
    "start_seconds": row.start_seconds,
    "end_seconds": row.end_seconds,
    "crop": row.crop,
    # All clips of a row are placed relative to its first one.
    "draw": draw(_ids(digest, row, spec, 0)[0]),
    "clip": clip,
    "rules": tuple(rules),
    "max_decode_seconds": settings.timeout_seconds,
  }
  try:
    if settings.isolation == "process":
      # The decoder checks its own time limit between frames; this limit is for a decoder that hangs.
      grace = min(5.0, settings.timeout_seconds)
      pool = shared_pool(decoding.decode, settings, grace_seconds=grace)
      cut = pool(pickle.PickleBuffer(content), row.modality, spec, **window)
    else:
      cut = decoding.decode(content, row.modality, spec, **window)
  except Rejected as error:
    return Failure("filter", error.reason, str(error))
  except Exception as error:
    return failure_to_decode(error)
  return Loaded(row, record_id, cut, media_id)


def not_admitted(row: Row, media_root: str, allowed: Sequence[str]) -> Failure | None:
  """Why a row's media are not read: the row is invalid, or names a file elsewhere. None if they are."""
  if row.problem:
    return Failure("manifest", *row.problem)
  if not is_within(row.path, (media_root, *allowed)):
    return Failure("read", "not_allowed", f"{row.path} is not in {media_root} (--allow_uri=PREFIX)")
  return None


def failure_of(error: Exception) -> Failure:
  """Why media were not loaded, for an error of reading or of decoding."""
  to_read = isinstance(error, OSError | storage.TooLarge | StaleMember)
  return failure_to_read(error) if to_read else failure_to_decode(error)


def failure_to_read(error: Exception) -> Failure:
  """Why a file was not read. File systems raise different errors; all of them go to the ledger."""
  match error:
    case FileNotFoundError():
      return Failure("read", "missing", str(error))
    case StaleMember():
      return Failure("read", "stale_member", str(error))
    case storage.TooLarge():
      return Failure("read", "too_large", f"{error} (--max_bytes)")
  return Failure("read", "unreadable", f"{type(error).__name__}: {error}")


def failure_to_decode(error: Exception) -> Failure:
  """Why media were not decoded. A decoder's error on one file must not fail the shard."""
  match error:
    case MediaError():
      return Failure("decode", error.reason, str(error))
    case WorkerTimeout():
      return Failure("decode", "decode_timeout", f"{error} (--decode_timeout)")
    case WorkerCrashed():
      return Failure("decode", "decoder_crashed", str(error))
    case MemoryError():
      text = str(error) or "no memory left"
      return Failure("decode", "out_of_memory", f"{text} (--decode_memory_mib)")
  return Failure("decode", "decoder_error", f"{type(error).__name__}: {error}")


def shared_pool(
  function: Callable[..., Any], settings: DecodeSettings, *, grace_seconds: float = 0.0
) -> Isolated:
  """`settings.isolated`, one for all threads of this process."""
  with _LOCK:
    return _started(function, settings, grace_seconds)


@functools.lru_cache(maxsize=4)
def _started(
  function: Callable[..., Any], settings: DecodeSettings, grace_seconds: float
) -> Isolated:
  return settings.isolated(function, grace_seconds=grace_seconds)
