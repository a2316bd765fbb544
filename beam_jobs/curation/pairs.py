"""Which duplicates a page shows next to the clips that are kept."""

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from beam_jobs.curation import duplicate_files, embeddings, parts
from beam_jobs.curation.duplicates import hash_distances
from beam_jobs.curation.ordering import random_order
from beam_jobs.curation.overview import Judged, Smallest
from beam_jobs.curation.videos import CurationJob, Scored


class Pair(NamedTuple):
  """A rejected clip and the one that is kept of them.

  Attributes:
    bits: mean number of bits by which their hashes differ.
    cosine: of their embeddings; None without.
  """

  rejected: Judged
  kept: Judged
  bits: float
  cosine: float | None


def sampled(job: CurationJob, *, limit: int) -> list[Pair]:
  """At most `limit` duplicates, of each reason those that differ most; at least one of each.

  Reads the files of duplicates one by one, and the parts of those that are chosen.
  """
  chosen = defaultdict[str, Smallest](lambda: Smallest(limit))
  for _, found in duplicate_files.read(job):
    for name, (reason, distance, better) in found.items():
      chosen[reason].add((-distance, random_order(name.partition(" ")[2])), (name, better, reason))
  each = max(1, limit // max(1, len(chosen)))
  named = [one for _, kept in sorted(chosen.items()) for one in kept.items()[:each]]
  clips = _named(job, {name for one in named for name in one[:2]})
  return [_pair(clips[name], clips[better], reason) for name, better, reason in named]


def _named(job: CurationJob, names: set[str]) -> dict[str, tuple[dict[str, Any], Scored]]:
  """(video, segment) by name."""
  found = {}
  for index in sorted({parts.part_of(name) for name in names}):
    for video in parts.read_part(job, index)["videos"]:
      for segment in (Scored(*values) for values in video["segments"]):
        if (name := parts.name_of(index, video, segment)) in names:
          found[name] = video, segment
  return found


def _pair(
  rejected: tuple[dict[str, Any], Scored], kept: tuple[dict[str, Any], Scored], reason: str
) -> Pair:
  one, other = (np.frombuffer(bytes.fromhex(s.hashes), np.uint64) for _, s in (rejected, kept))
  cosine = None
  if rejected[1].embedding:
    vectors = embeddings.stacked([embeddings.unpack(s.embedding) for _, s in (rejected, kept)])
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    cosine = float(np.dot(*vectors.astype(np.float64)) / (norms.prod() or 1.0))
  bits = float(hash_distances(one[None], other)[0])
  return Pair(_judged(*rejected, reason), _judged(*kept, ""), bits, cosine)


def _judged(video: dict[str, Any], segment: Scored, reason: str) -> Judged:
  scores = {"seconds": (segment.end - segment.start) / 1e6, **segment.scores}
  return Judged(
    video["uri"], video["path"], video["crop"], segment.start, segment.end, reason, scores
  )
