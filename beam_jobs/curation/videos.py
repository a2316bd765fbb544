"""Curates one video: its segments with their scores, and the rest that could not be read."""

import dataclasses
import functools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from beam_jobs.curation import scores, shots
from beam_jobs.curation.scanning import Chunk, ScanSpec, microseconds, scan
from beam_jobs.filters.duplicates import perceptual_hash
from beam_jobs.shards.loading import (
  DecodeSettings,
  Failure,
  failure_to_decode,
  failure_to_read,
)
from beam_jobs.sources.members import parse_member, read_media
from beam_jobs.sources.rows import Row, is_within
from walt_t5x.files import storage
from walt_t5x.files.store_errors import StoreError
from walt_t5x.media.isolation import Isolated, WorkerCrashed

_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurationJob:
  """Configuration of a worker; plain values that are pickled.

  Attributes:
    output: folder of the results.
    media_root: base of relative uris.
    allowed: folders and prefixes of addresses outside of it that rows may name too.
    parts: number of files that videos are divided into.
    scan: what is kept of a video.
    detector: what finds cuts.
    max_seconds: longer shots are cut.
    score_names: MODULE:CLASS of a team's own scores.
    decoding: how a worker decodes.
    retry_dead: whether parts with dead videos are made again.
    settings: digest of everything that decides the contents of a part.
  """

  output: str
  media_root: str
  allowed: tuple[str, ...]
  parts: int
  scan: ScanSpec
  detector: shots.ContentDetector
  max_seconds: float
  score_names: tuple[str, ...]
  decoding: DecodeSettings
  retry_dead: bool = False
  settings: str = ""


def curate_video(row: Row, job: CurationJob) -> dict[str, Any]:
  """What a part records of a video, as plain values.

  Returns:
    {"uri", "path", "split", "group", "captions", "start", "end", "segments", "dead"}: times in microseconds;
    segments [start, end, kind, scores, hash] with kind "shot" or "transition", in order; dead is None or [start, stage,
    reason, message] of the part from `start` to `end`.
  """
  found = {
    "uri": row.uri,
    "path": row.path,
    "split": row.split,
    "group": row.group,
    "captions": list(row.captions),
    "start": 0,
    "end": 0,
    "segments": [],
    "dead": None,
  }
  failure = _not_admitted(row, job)
  if failure is None:
    # The process may have ended because others took the memory.
    for _ in range(2):
      segments: list[list[Any]] = []
      frames = shots.Flagged((), job.detector)
      try:
        frames = shots.Flagged(_chunks(row, job), job.detector)
        for segment in shots.segments(frames, max_seconds=job.max_seconds):
          segments.append(_scored(segment, job))
        failure = None
        break
      except WorkerCrashed as error:
        failure = failure_to_decode(error)
      except (FileNotFoundError, StoreError, storage.TooLarge) as error:
        failure = failure_to_read(error)
        break
      except Exception as error:
        failure = failure_to_decode(error)
        break
    found["segments"] = segments
    found["start"] = segments[0][0] if segments else microseconds(row.start_seconds or 0.0)
    done = segments[-1][1] if segments else found["start"]
    found["end"] = max(done, frames.end, frames.stated_end or 0) if failure else done
  if failure is not None:
    after = found["segments"][-1][1] if found["segments"] else found["start"]
    found["dead"] = [after, failure.stage, failure.reason, failure.message]
  return found


def _not_admitted(row: Row, job: CurationJob) -> Failure | None:
  if row.problem:
    return Failure("manifest", *row.problem)
  if row.modality != "video":
    return Failure("manifest", "not_a_video", f"{row.uri} is an image")
  if not is_within(row.path, (job.media_root, *job.allowed)):
    return Failure(
      "read", "not_allowed", f"{row.path} is not in {job.media_root} (--allow_uri=PREFIX)"
    )
  return None


def _chunks(row: Row, job: CurationJob) -> Iterator[Chunk]:
  """The frames of a row's video, decoded here or in another process."""
  source: Any = row.path
  if parse_member(row.path):
    source = read_media(row.path)
  else:
    storage.reject_special(row.path)
  window = {"start": row.start_seconds, "end": row.end_seconds}
  if job.decoding.isolation == "process":
    return _pool(job.decoding).stream(source, job.scan, **window)
  return scan(source, job.scan, **window)


def _scored(segment: shots.Segment, job: CurationJob) -> list[Any]:
  kind = "transition" if segment.transition else "shot"
  if segment.transition or not segment.frames:
    return [segment.start, segment.end, kind, {}, None]
  frames = np.stack(segment.frames)
  hashes = perceptual_hash(frames).tobytes().hex()
  return [segment.start, segment.end, kind, scores.score(frames, _scores(job.score_names)), hashes]


@functools.lru_cache(maxsize=4)
def _scores(names: tuple[str, ...]) -> list[scores.Score]:
  return [*(one() for one in scores.BUILT_IN), *map(scores.load, names)]


def _pool(settings: DecodeSettings) -> Isolated:
  """The decoders of this process; the first caller starts them."""
  with _LOCK:
    return _started(settings)


@functools.lru_cache(maxsize=2)
def _started(settings: DecodeSettings) -> Isolated:
  return Isolated(
    scan,
    processes=settings.threads,
    timeout_seconds=settings.timeout_seconds,
    memory_bytes=settings.memory_mib << 20 or None,
  )
