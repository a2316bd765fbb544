"""Computes a protocol's scores: features streamed into mergeable statistics, part by part, reading each clip once."""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from walt_t5x.evaluation.clip_scores import LpipsNetwork, values_of_clips
from walt_t5x.evaluation.clip_sources import (
  PlannedClip,
  in_batches,
  plan_references,
  plan_samples,
  read_clip,
  with_references,
)
from walt_t5x.evaluation.media_files import Media
from walt_t5x.evaluation.parts import PartPlan, PartStatistics, load_part, plan_parts, save_part
from walt_t5x.files.fingerprint import file_sha256
from walt_t5x.files.paths import AnyPath
from walt_t5x.metrics.feature_statistics import FeatureStatistics, load_statistics, save_statistics
from walt_t5x.metrics.frechet import FoldScore, frechet_distance, frechet_over_folds
from walt_t5x.metrics.inception_score import InceptionScoreStatistics, score_splits, split_of
from walt_t5x.metrics.networks import FeatureNetwork
from walt_t5x.metrics.protocols.protocol import Protocol, ScoreRule, Statistic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
  """One score and its description.

  Attributes:
    value: over folds (Frechet), folds x splits (inception score), or clips (PSNR, SSIM, LPIPS, motion).
    protocol_hash: hash of the protocol, including counts.
    samples, references: number of clips.
  """

  rule: ScoreRule
  value: FoldScore
  protocol_hash: str
  samples: int
  references: int
  network: FeatureNetwork | LpipsNetwork | None

  def as_dict(self) -> dict[str, Any]:
    """Plain values for JSON."""
    network = self.network
    return {
      "score": self.value.mean,
      "std": self.value.std,
      "values": len(self.value.values),
      "protocol_hash": self.protocol_hash,
      "samples": self.samples,
      "references": self.references,
      "network": self.rule.network,
      "network_fingerprint": network.fingerprint if network else "",
      # None: whether they are the public ones is not recorded.
      "public_weights": network.is_public if network else None,
      "network_description": network.description if network else "",
    }


class Evaluation:
  """A protocol applied to some files, in parts.

  Attributes:
    plans: the parts, samples before references.
    clips: number of clips scored by this object.
    kept: number of clips from parts that already existed.
    seconds: duration of the scoring.

  Args:
    references: the files that they are compared with; or a published (mean, covariance); or None
      if no score needs references.
    networks: a `FeatureNetwork` or `LpipsNetwork` for each name of `protocol.networks`.
    batch_size: clips per forward pass.
    clips_per_part: number of clips that are stored, or lost, together.
    parts_dir: where parts are stored, so that an interrupted run resumes from them.

  Raises:
    ValueError: there are fewer files than the protocol requires, no references although a score needs them, or
      pairs that do not match.
  """

  def __init__(
    self,
    protocol: Protocol,
    samples: Sequence[Media],
    references: list[Media] | tuple[np.ndarray, np.ndarray] | None,
    networks: Mapping[str, Any],
    *,
    batch_size: int = 8,
    clips_per_part: int = 500,
    parts_dir: AnyPath | None = None,
  ):
    needing = [r.name for r in protocol.scores if r.needs_reference]
    if needing and references is None:
      raise ValueError(f"{', '.join(needing)} of {protocol.name} need --reference.")
    self.protocol, self.networks = protocol, networks
    self._batch_size = batch_size
    self.clips, self.kept, self.seconds = 0, 0, 0.0
    self.published = references if isinstance(references, tuple) else None
    files = [] if references is None or isinstance(references, tuple) else references
    paired = [r.name for r in protocol.scores if r.is_paired]
    if paired and self.published is not None:
      raise ValueError(f"{paired[0]} compares files, but --reference is a file of statistics.")
    self.sample_clips = plan_samples(samples, protocol)
    for rule in protocol.scores:
      if (found := len(self.sample_clips) // protocol.folds) < rule.splits:
        raise ValueError(
          f"{rule.name} of {protocol.name} needs {rule.splits} samples or more per fold, one per split, got {found}. "
          "Generate more, or leave it out with --scores."
        )
    self.reference_clips: list[PlannedClip] = []
    if needing and self.published is None:
      self.reference_clips = plan_references(files, protocol)
    if paired:
      self.sample_clips = with_references(self.sample_clips, files, score=paired[0])
    self.plans = [*plan_parts(self.sample_clips, references=False, clips_per_part=clips_per_part)]
    if any(r.statistic is Statistic.FRECHET for r in protocol.scores):
      self.plans += plan_parts(self.reference_clips, references=True, clips_per_part=clips_per_part)
    self._folder = None
    if parts_dir is not None:
      weights = "".join(f"{name} {networks[name].fingerprint}\n" for name in protocol.networks)
      digest = hashlib.sha256(weights.encode()).hexdigest()[:12]
      self._folder = parts_dir / f"{protocol.name}@{protocol.hash}-{digest}"

  def part(self, plan: PartPlan) -> PartStatistics:
    """The statistics of one part: stored ones of the same files, or new ones, which are then stored."""
    if self._folder is None:
      return self._compute(plan)
    path, contents = self._folder / f"{plan.name}.npz", plan.contents()
    part = load_part(path, contents=contents)
    if part is None:
      part = self._compute(plan)
      save_part(path, part, contents=contents)
    else:
      self.kept += len(plan.clips)
    return part

  def _compute(self, plan: PartPlan) -> PartStatistics:
    started, part, seen = time.monotonic(), PartStatistics(), plan.first
    rules = [r for r in self.protocol.scores if not plan.references or r.needs_reference]
    needed = sorted({r.network for r in rules if r.network and not r.is_of_clips})
    rule = self.protocol.reference_clip if plan.references else self.protocol.sample_clip
    if needed:
      frames = (read_clip(clip, self.protocol, rule) for clip in plan.clips)
      for group in in_batches(frames, self._batch_size, key=np.shape):
        videos = np.stack(group)
        for name in needed:
          features = self.networks[name](videos, batch_size=self._batch_size)
          mine = [r for r in rules if r.network == name]
          part = part.merge(_of_features(mine, features, first=seen, count=plan.fold_count))
        seen += len(group)
    of_clips = [r for r in rules if r.is_of_clips]
    if of_clips and not plan.references:
      values = values_of_clips(of_clips, plan.clips, self.protocol, self.networks)
      part = part.merge(PartStatistics(of_clips=values))
    self.clips += len(plan.clips)
    self.seconds += time.monotonic() - started
    return part

  def folds(self, *, references: bool) -> list[PartStatistics]:
    """The statistics of every fold, with its parts merged in order."""
    folds = [PartStatistics() for _ in range(self.protocol.folds)]
    for plan in self.plans:
      if plan.references == references:
        folds[plan.fold] = folds[plan.fold].merge(self.part(plan))
    return folds

  def scores(
    self, samples: Sequence[PartStatistics], references: Sequence[PartStatistics]
  ) -> list[Score]:
    """The scores, from the statistics of every fold; `references` may be empty if `folds` has none of them."""
    found = []
    for rule in self.protocol.scores:
      key = rule.network, rule.layer
      if rule.statistic is Statistic.FRECHET and self.published is not None:
        value = FoldScore(
          tuple(
            frechet_distance(*fold.frechet[key].compute(unbiased=rule.is_unbiased), *self.published)
            for fold in samples
          )
        )
      elif rule.statistic is Statistic.FRECHET:
        value = frechet_over_folds(
          [fold.frechet[key] for fold in samples],
          [fold.frechet[key] for fold in references],
          unbiased=rule.is_unbiased,
        )
      elif rule.statistic is Statistic.INCEPTION_SCORE:
        value = score_splits(f.inception[(*key, k)] for f in samples for k in range(rule.splits))
      elif rule.is_of_clips:
        value = FoldScore(tuple(v for fold in samples for v in fold.of_clips[rule.name]))
      else:
        raise ValueError(f"No statistic {rule.statistic!r}; expected one of {list(Statistic)}.")
      found.append(
        Score(
          rule=rule,
          value=value,
          protocol_hash=self.protocol.hash,
          samples=len(self.sample_clips),
          references=len(self.reference_clips) if rule.needs_reference else 0,
          network=self.networks[rule.network] if rule.network else None,
        )
      )
    return found


def _of_features(
  rules: Sequence[ScoreRule], features: Mapping[str, np.ndarray], *, first: int, count: int
) -> PartStatistics:
  """Statistics of one batch of a network's features, whose first clip has index `first` in the fold."""
  frechet, inception = {}, {}
  for rule in rules:
    key, values = (rule.network, rule.layer), features[rule.layer]
    if rule.statistic is Statistic.FRECHET:
      frechet[key] = FeatureStatistics.from_model_output(values)
    elif rule.statistic is Statistic.INCEPTION_SCORE:
      index = range(first, first + len(values))
      numbers = np.array([split_of(i, count=count, splits=rule.splits) for i in index])
      for split in np.unique(numbers):
        part = InceptionScoreStatistics.from_model_output(values[numbers == split])
        inception[(*key, int(split))] = part
  return PartStatistics(frechet=frechet, inception=inception)


def _cache_key(
  clips: Sequence[PlannedClip], protocol: Protocol, network: FeatureNetwork | LpipsNetwork
) -> str:
  """Names reference statistics by everything that determines them, including file contents."""
  digest = hashlib.sha256(f"{protocol.hash} {network.name} {network.fingerprint}".encode())
  sha256 = functools.cache(file_sha256)
  for clip in clips:
    digest.update(
      f"{clip.media.name} {clip.fold} {clip.number} {sha256(clip.media.path)}\n".encode()
    )
  return digest.hexdigest()


def reference_folds(evaluation: Evaluation, cache_dir: AnyPath | None) -> list[PartStatistics]:
  """The references' statistics, from the cache if it has them."""
  if not evaluation.reference_clips:
    return []
  protocol = evaluation.protocol
  keys = sorted({(r.network, r.layer) for r in protocol.scores if r.statistic is Statistic.FRECHET})
  files = {}
  if cache_dir is not None:
    for name, layer in keys:
      stem = _cache_key(evaluation.reference_clips, protocol, evaluation.networks[name])
      for fold in range(protocol.folds):
        files[name, layer, fold] = cache_dir / f"{stem[:32]}_{layer}_{fold}.npz"
    if files and all(file.is_file() for file in files.values()):
      return [
        PartStatistics(frechet={(n, la): load_statistics(files[n, la, fold]) for n, la in keys})
        for fold in range(protocol.folds)
      ]
  folds = evaluation.folds(references=True)
  for (name, layer, fold), file in files.items():
    save_statistics(file, folds[fold].frechet[name, layer])
  return folds


def score_evaluation(evaluation: Evaluation, *, cache_dir: AnyPath | None = None) -> list[Score]:
  """All scores of an evaluation; computes missing parts."""
  folds = evaluation.folds(references=False)
  return evaluation.scores(folds, reference_folds(evaluation, cache_dir))
