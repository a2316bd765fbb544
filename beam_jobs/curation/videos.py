"""Curates one video: its segments with their scores, and the rest that could not be read."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from beam_jobs.curation import letterbox, scores, shots
from beam_jobs.curation.embeddings import embedded
from beam_jobs.curation.scanning import Chunk, ScanSpec, microseconds, scan
from beam_jobs.filters.duplicates import perceptual_hash
from beam_jobs.shards.loading import DecodeSettings, Failure, failure_of, not_admitted, shared_pool
from beam_jobs.sources.members import media_source
from beam_jobs.sources.rows import Row
from walt_t5x.media.isolation import WorkerCrashed


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurationJob:
  """Configuration of a worker; plain values that are pickled.

  Attributes:
    output: folder of the results.
    media_root: base of relative uris.
    parts: number of files that videos are divided into.
    settings: everything else that decides the contents of a part, by flag; plain values.
    allowed: folders and prefixes of addresses outside of `media_root` that rows may name too.
    scan: what is kept of a video.
    detector: what finds cuts.
    max_seconds: longer shots are cut.
    score_names: MODULE:CLASS of a team's own scores.
    embedding: MODULE:CLASS of what gives a vector to a clip; "" for none.
    decoding: how a worker decodes.
    retry_dead: whether parts with dead videos are made again.
  """

  output: str
  media_root: str
  parts: int
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  allowed: tuple[str, ...] = ()
  scan: ScanSpec = dataclasses.field(default_factory=ScanSpec)
  detector: shots.ContentDetector | shots.NetworkDetector = dataclasses.field(
    default_factory=shots.ContentDetector
  )
  max_seconds: float = 20.0
  score_names: tuple[str, ...] = ()
  embedding: str = ""
  decoding: DecodeSettings = dataclasses.field(default_factory=DecodeSettings)
  retry_dead: bool = False


class Scored(NamedTuple):
  """A segment in a part's file, as a list in JSON.

  Attributes:
    start, end: microseconds.
    kind: "shot" or "transition".
    scores: by name; empty without sampled frames.
    hashes: perceptual hashes of the first, middle and last sampled frame, in hexadecimal; "" without.
    digest: of the sampled pixels; "" without.
    seen: what the sampled frames show of the picture.
    embedding: see `embeddings.pack`; "" without.
  """

  start: int
  end: int
  kind: str
  scores: Mapping[str, float] = {}
  hashes: str = ""
  digest: str = ""
  seen: letterbox.Letterbox = letterbox.Letterbox()
  embedding: str = ""


def curate_video(row: Row, job: CurationJob, *, is_repeated: bool = False) -> dict[str, Any]:
  """What a part records of a video, as plain values; of a repeated row only that.

  Returns:
    {"uri", "path", "crop", "split", "group", "captions", "start", "end", "segments", "dead"}: times in microseconds;
    segments are `Scored`, in order; dead is None or [start, stage, reason, message] of the part from `start` to `end`.
  """
  found = {
    "uri": row.uri,
    "path": row.path,
    "crop": row.crop,
    "split": row.split,
    "group": row.group,
    "captions": list(row.captions),
    "start": 0,
    "end": 0,
    "segments": [],
    "dead": None,
  }
  failure = _not_admitted(row, job)
  if failure is None and is_repeated:
    failure = Failure(
      "filter", "duplicate", "another row has the same uri, window, crop and captions"
    )
  if failure is None:
    segments, frames = _read(row, job)
    if isinstance(frames.error, WorkerCrashed):
      # Others may have taken the memory.
      segments, frames = _read(row, job)
    start = segments[0][0] if segments else microseconds(row.start_seconds or 0.0)
    end = segments[-1][1] if segments else start
    if frames.error is not None:
      failure = failure_of(frames.error)
      found["end"] = max(end, frames.stated_end or 0)
    else:
      found["end"] = end
    found |= {"segments": segments, "start": start}
  if failure is not None:
    after = found["segments"][-1][1] if found["segments"] else found["start"]
    found["dead"] = [after, failure.stage, failure.reason, failure.message]
  return found


def _read(row: Row, job: CurationJob) -> tuple[list[Scored], shots.Flagged]:
  """The segments that were read, and the frames with the error that ended them."""
  frames = shots.Flagged(_chunks(row, job), job.detector)
  found = shots.segments(frames, max_seconds=job.max_seconds)
  return [_scored(segment, job) for segment in found], frames


def _not_admitted(row: Row, job: CurationJob) -> Failure | None:
  if row.modality != "video" and not row.problem:
    return Failure("manifest", "not_a_video", f"{row.uri} is an image")
  return not_admitted(row, job.media_root, job.allowed)


def _chunks(row: Row, job: CurationJob) -> Iterator[Chunk]:
  """The frames of a row's video, decoded here or in another process; reads nothing before the first one."""
  source = media_source(row.path)
  window = {"start": row.start_seconds, "end": row.end_seconds, "crop": row.crop}
  if job.decoding.isolation == "process":
    yield from shared_pool(scan, job.decoding).stream(source, job.scan, **window)
  else:
    yield from scan(source, job.scan, **window)


def _scored(segment: shots.ShotSegment, job: CurationJob) -> Scored:
  if segment.transition or not segment.frames:
    return Scored(segment.start, segment.end, "transition" if segment.transition else "shot")
  frames = np.stack(segment.frames)
  return Scored(
    segment.start,
    segment.end,
    "shot",
    scores.score(frames, _scores(job.score_names), times=segment.times, repeated=segment.repeated),
    perceptual_hash(frames).tobytes().hex(),
    hashlib.sha256(f"{frames.shape}".encode() + frames.tobytes()).hexdigest()[:32],
    letterbox.look(frames),
    embedded(frames, job.embedding),
  )


@functools.lru_cache(maxsize=4)
def _scores(names: tuple[str, ...]) -> list[scores.ClipScore]:
  return [*(one() for one in scores.BUILT_IN), *map(scores.load, names)]
