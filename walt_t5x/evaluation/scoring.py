"""A protocol's scores: features streamed into mergeable statistics, one pass over the clips."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from walt_t5x.evaluation.clip_sources import (
  Clip,
  Media,
  batches,
  plan_references,
  plan_samples,
  read_clip,
)
from walt_t5x.metrics.feature_statistics import (
  FeatureStatistics,
  load_statistics,
  save_statistics,
)
from walt_t5x.metrics.frechet import FoldScore, frechet_distance, frechet_over_folds
from walt_t5x.metrics.inception_score import InceptionScoreStatistics, score_splits, split_of
from walt_t5x.metrics.networks import FeatureNetwork
from walt_t5x.metrics.protocols.protocol import Protocol, ScoreRule, Statistic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
  """One number, and all that says what it is.

  Attributes:
    rule: of the protocol.
    value: over folds (Frechet), folds x splits (inception score), or clips (PSNR, SSIM).
    protocol_hash: of the protocol, counts included.
    samples, references: clips that went in.
    network_fingerprint: of the weights; "" without a network.
    public_weights: whether they are the public ones; None where that is not recorded.
    network_description: the same in words, or that the network is a stand-in.
  """

  rule: ScoreRule
  value: FoldScore
  protocol_hash: str
  samples: int
  references: int
  network_fingerprint: str
  public_weights: bool | None
  network_description: str

  def as_dict(self) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
      "score": self.value.mean,
      "std": self.value.std,
      "values": len(self.value.values),
      "protocol_hash": self.protocol_hash,
      "samples": self.samples,
      "references": self.references,
      "network": self.rule.network,
      "network_fingerprint": self.network_fingerprint,
      "public_weights": self.public_weights,
      "network_description": self.network_description,
    }


class _Fold:
  """What one fold keeps of its clips: a few matrices, whatever the number of clips."""

  def __init__(self, rules: Sequence[ScoreRule], count: int):
    self.count, self.seen = count, 0
    self.frechet = {
      (r.network, r.layer): FeatureStatistics.empty()
      for r in rules
      if r.statistic is Statistic.FRECHET
    }
    self.inception = {
      (r.network, r.layer, split): InceptionScoreStatistics.empty()
      for r in rules
      if r.statistic is Statistic.INCEPTION_SCORE
      for split in range(r.splits)
    }
    self._splits = {
      (r.network, r.layer): r.splits for r in rules if r.statistic is Statistic.INCEPTION_SCORE
    }

  def add(self, network: str, features: Mapping[str, np.ndarray], first: int) -> None:
    """Adds one batch of a network's features, whose first clip is the fold's clip `first`."""
    for layer, values in features.items():
      key = network, layer
      if key in self.frechet:
        part = FeatureStatistics.from_model_output(values)
        self.frechet[key] = self.frechet[key].merge(part)
      if key in self._splits:
        splits = self._splits[key]
        index = np.arange(first, first + len(values))
        numbers = np.array([split_of(int(i), count=self.count, splits=splits) for i in index])
        for split in np.unique(numbers):
          part = InceptionScoreStatistics.from_model_output(values[numbers == split])
          where = (network, layer, int(split))
          self.inception[where] = self.inception[where].merge(part)


def _stream(
  clips: Sequence[Clip],
  protocol: Protocol,
  networks: Mapping[str, FeatureNetwork],
  *,
  references: bool,
  batch_size: int,
) -> list[_Fold]:
  rules = [r for r in protocol.scores if not references or r.needs_reference]
  needed = sorted({r.network for r in rules if r.network})
  counts = [sum(clip.fold == fold for clip in clips) for fold in range(protocol.folds)]
  folds = [_Fold(rules, count) for count in counts]
  rule = protocol.reference_clip if references else protocol.sample_clip
  if not needed:
    return folds
  for group, videos in batches(clips, protocol, rule, batch_size):
    fold = folds[group[0].fold]
    for name in needed:
      fold.add(name, networks[name](videos, batch_size=batch_size), fold.seen)
    fold.seen += len(group)
  return folds


def _cache_key(clips: Sequence[Clip], protocol: Protocol, network: FeatureNetwork) -> str:
  """Names reference statistics by all that decides them, file contents included."""
  digest = hashlib.sha256(f"{protocol.hash} {network.name} {network.fingerprint}".encode())
  contents: dict[Path, str] = {}
  for clip in clips:
    path = clip.media.path
    if path not in contents:
      with path.open("rb") as file:
        contents[path] = hashlib.file_digest(file, "sha256").hexdigest()
    digest.update(f"{clip.media.name} {clip.fold} {clip.number} {contents[path]}\n".encode())
  return digest.hexdigest()


def _reference_statistics(
  clips: Sequence[Clip],
  protocol: Protocol,
  networks: Mapping[str, FeatureNetwork],
  *,
  batch_size: int,
  cache_dir: Path | None,
) -> list[dict[tuple[str, str], FeatureStatistics]]:
  keys = sorted({(r.network, r.layer) for r in protocol.scores if r.statistic is Statistic.FRECHET})
  files = {}
  if cache_dir is not None:
    for name, layer in keys:
      stem = _cache_key(clips, protocol, networks[name])
      for fold in range(protocol.folds):
        files[name, layer, fold] = cache_dir / f"{stem[:32]}_{layer}_{fold}.npz"
    if files and all(file.is_file() for file in files.values()):
      return [
        {(n, la): load_statistics(files[n, la, fold]) for n, la in keys}
        for fold in range(protocol.folds)
      ]
  folds = _stream(clips, protocol, networks, references=True, batch_size=batch_size)
  for (name, layer, fold), file in files.items():
    save_statistics(file, folds[fold].frechet[name, layer])
  return [fold.frechet for fold in folds]


def _paired(
  rule: ScoreRule, samples: Sequence[Clip], references: Sequence[Media], protocol: Protocol
) -> FoldScore:
  """PSNR or SSIM of each sample against the reference of its name."""
  from walt_t5x.metrics.psnr import psnr
  from walt_t5x.metrics.ssim import ssim

  by_name = {media.name: media for media in references}
  missing = [clip.media.name for clip in samples if clip.media.name not in by_name]
  if missing:
    raise ValueError(
      f"{rule.name} compares files of one name: {len(missing)} samples have no reference, such as "
      f"{missing[:3]}; the references are named as {sorted(by_name)[:3]}."
    )
  function = psnr if rule.statistic is Statistic.PSNR else ssim
  values = []
  for clip in samples:
    pair = [
      read_clip(dataclasses.replace(clip, media=media), protocol, protocol.sample_clip)
      for media in (clip.media, by_name[clip.media.name])
    ]
    ours, theirs = (jnp.asarray(x[None], jnp.float32) / 255 for x in pair)
    values.append(float(np.asarray(function(ours, theirs))[0]))
  return FoldScore(tuple(values))


def score(
  protocol: Protocol,
  samples: Sequence[Media],
  references: Sequence[Media] | tuple[np.ndarray, np.ndarray] | None,
  networks: Mapping[str, FeatureNetwork],
  *,
  batch_size: int = 8,
  cache_dir: Path | None = None,
) -> list[Score]:
  """All scores of a protocol.

  Args:
    protocol: what to compute.
    samples: the files that are judged.
    references: the files that they are compared with; or a published (mean, covariance); or None
      for scores that take none.
    networks: by name, those of `protocol.networks`.
    batch_size: clips a forward pass.
    cache_dir: keeps the references' statistics, by content.

  Raises:
    ValueError: fewer files than the protocol asks for, no references where a score needs them, or
      pairs that do not match.
  """
  needing = [r.name for r in protocol.scores if r.needs_reference]
  if needing and references is None:
    raise ValueError(f"{', '.join(needing)} of {protocol.name} need --reference.")
  sample_clips = plan_samples(samples, protocol)
  folds = _stream(sample_clips, protocol, networks, references=False, batch_size=batch_size)
  published = references if isinstance(references, tuple) else None
  reference_clips: list[Clip] = []
  reference_folds: list[dict[tuple[str, str], FeatureStatistics]] = []
  if needing and published is None:
    reference_clips = plan_references(references, protocol)  # pyright: ignore[reportArgumentType]
    reference_folds = _reference_statistics(
      reference_clips, protocol, networks, batch_size=batch_size, cache_dir=cache_dir
    )
  scores = []
  for rule in protocol.scores:
    key = rule.network, rule.layer
    if rule.statistic is Statistic.FRECHET and published is not None:
      distances = [frechet_distance(*fold.frechet[key].compute(), *published) for fold in folds]
      value = FoldScore(tuple(distances))
    elif rule.statistic is Statistic.FRECHET:
      value = frechet_over_folds(
        [fold.frechet[key] for fold in folds], [fold[key] for fold in reference_folds]
      )
    elif rule.statistic is Statistic.INCEPTION_SCORE:
      parts = [f.inception[(*key, split)] for f in folds for split in range(rule.splits)]
      value = score_splits(parts)
    elif rule.is_paired:
      if published is not None:
        raise ValueError(f"{rule.name} compares files; --reference is a file of statistics.")
      value = _paired(rule, sample_clips, references, protocol)  # pyright: ignore[reportArgumentType]
    else:
      raise ValueError(f"No statistic {rule.statistic!r}; expected one of {list(Statistic)}.")
    network = networks[rule.network] if rule.network else None
    scores.append(
      Score(
        rule=rule,
        value=value,
        protocol_hash=protocol.hash,
        samples=len(sample_clips),
        references=len(reference_clips) if rule.needs_reference else 0,
        network_fingerprint=network.fingerprint if network else "",
        public_weights=network.is_public if network else None,
        network_description=network.description if network else "",
      )
    )
  return scores
