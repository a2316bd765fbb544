"""Parts of an evaluation: consecutive clips of one fold, whose statistics are computed, stored and merged together.

The protocol and the files alone determine the parts, regardless of the number of processes. An interrupted run
therefore resumes from the stored parts, several processes or workers can share the parts, and all of these give the
same statistics as an uninterrupted run.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence

from absl import logging

from walt_t5x.evaluation.clip_sources import PlannedClip
from walt_t5x.files.damage import Damaged
from walt_t5x.files.fingerprint import file_sha256
from walt_t5x.files.paths import AnyPath
from walt_t5x.metrics.feature_statistics import FeatureStatistics, read_arrays, write_arrays
from walt_t5x.metrics.inception_score import InceptionScoreStatistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartPlan:
  """The clips of a part, all of one fold.

  Attributes:
    references: whether the clips are references or samples.
    number: index among the parts of the samples, or of the references.
    first: index of the first clip within its fold.
    fold_count: number of clips in the fold.
  """

  references: bool
  number: int
  clips: tuple[PlannedClip, ...]
  first: int
  fold_count: int

  @property
  def fold(self) -> int:
    """The fold of the part."""
    return self.clips[0].fold

  @property
  def name(self) -> str:
    """Name of its file, without suffix."""
    return f"{'references' if self.references else 'samples'}-{self.number:05d}"

  def contents(self) -> str:
    """sha256 of its files' bytes, their names and their positions in the fold."""
    digest = hashlib.sha256(f"{self.first} {self.fold_count}\n".encode())
    sha256 = functools.cache(file_sha256)
    for clip in self.clips:
      digest.update(f"{clip.media.name} {clip.fold} {clip.number}".encode())
      for media in filter(None, (clip.media, clip.reference)):
        if media.path is None:
          raise ValueError(f"{media.name} does not come from a file; its parts cannot be stored.")
        digest.update(sha256(media.path).encode())
    return digest.hexdigest()


def plan_parts(
  clips: Sequence[PlannedClip], *, references: bool, clips_per_part: int
) -> Iterator[PartPlan]:
  """Divides the clips of all folds, in their order, into parts of at most `clips_per_part`, fold by fold."""
  if clips_per_part < 1:
    raise ValueError(f"A part has at least 1 clip, got clips_per_part={clips_per_part}.")
  number = itertools.count()
  for _, fold in itertools.groupby(clips, key=lambda clip: clip.fold):
    mine = tuple(fold)
    for first in range(0, len(mine), clips_per_part):
      yield PartPlan(
        references=references,
        number=next(number),
        clips=mine[first : first + clips_per_part],
        first=first,
        fold_count=len(mine),
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartStatistics:
  """Statistics of a part: a few matrices, independent of the number of clips. Parts of a fold merge into the fold.

  Attributes:
    frechet: statistics by (network, layer).
    inception: statistics by (network, layer, split).
    of_clips: values of single clips by score, in no particular order.
  """

  frechet: Mapping[tuple[str, str], FeatureStatistics] = dataclasses.field(default_factory=dict)
  inception: Mapping[tuple[str, str, int], InceptionScoreStatistics] = dataclasses.field(
    default_factory=dict
  )
  of_clips: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

  def merge(self, other: "PartStatistics") -> "PartStatistics":
    """Statistics of both sets of clips."""
    return PartStatistics(
      frechet=_merged(self.frechet, other.frechet, lambda a, b: a.merge(b)),
      inception=_merged(self.inception, other.inception, lambda a, b: a.merge(b)),
      of_clips=_merged(self.of_clips, other.of_clips, lambda a, b: (*a, *b)),
    )


def _merged(mine: Mapping, theirs: Mapping, merge) -> dict:
  result = dict(mine)
  for key, value in theirs.items():
    result[key] = merge(result[key], value) if key in result else value
  return result


def save_part(path: AnyPath, part: PartStatistics, *, contents: str) -> None:
  """Writes an .npz atomically."""
  index, arrays = [], {}
  for kind, group in vars(part).items():
    for key, value in group.items():
      fields = {"values": value} if kind == "of_clips" else vars(value)
      arrays |= {f"{len(index)}/{name}": field for name, field in fields.items()}
      index.append([kind, key])
  write_arrays(path, header=json.dumps({"contents": contents, "index": index}), **arrays)


def load_part(path: AnyPath, *, contents: str) -> PartStatistics | None:
  """Reads a file of `save_part`; None if it does not exist, is of other clips, or is damaged (with a warning)."""
  try:
    return _load_part(path, contents) if path.is_file() else None
  except Damaged as error:
    logging.warning("%s: its clips are scored again.", error)
    return None


def _load_part(path: AnyPath, contents: str) -> PartStatistics | None:
  kinds = {"frechet": FeatureStatistics, "inception": InceptionScoreStatistics}
  groups: dict[str, dict] = {"frechet": {}, "inception": {}, "of_clips": {}}
  arrays = read_arrays(path)
  header = json.loads(str(arrays["header"]))
  if header["contents"] != contents:
    return None
  for number, (kind, key) in enumerate(header["index"]):
    if kind == "of_clips":
      groups[kind][key] = tuple(map(float, arrays[f"{number}/values"]))
    else:
      values = {f.name: arrays[f"{number}/{f.name}"] for f in dataclasses.fields(kinds[kind])}
      scalars = {name: value.item() for name, value in values.items() if not value.ndim}
      groups[kind][tuple(key)] = kinds[kind](**values | scalars)
  return PartStatistics(**groups)
