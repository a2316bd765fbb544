"""What decides a score besides the samples, as data, so that its hash can stand beside the score.

A score is comparable with another of the same protocol hash and the same network fingerprint, and
with no other.
"""

import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from walt_t5x.metrics.resize import ResizeRule


def short_hash(fields: Mapping[str, Any]) -> str:
  """First 12 hex digits of the sha256 of every field but `source`, as canonical JSON."""
  deciding = {name: value for name, value in fields.items() if name != "source"}
  text = json.dumps(deciding, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:12]


class ClipRule(enum.StrEnum):
  """Which frames of a longer video a clip takes."""

  FIRST = "first"
  CENTRAL = "central"
  RANDOM = "random"  # seeded by the file's name, the fold and the clip's number


class Statistic(enum.StrEnum):
  """What is computed from features, from pairs of clips, or from single clips."""

  FRECHET = "frechet"
  INCEPTION_SCORE = "inception_score"
  PSNR = "psnr"
  SSIM = "ssim"
  LPIPS = "lpips"
  CHANGE = "change"
  STEADINESS = "steadiness"


_OF_PAIRS = (Statistic.PSNR, Statistic.SSIM, Statistic.LPIPS)
_OF_CLIPS = (Statistic.CHANGE, Statistic.STEADINESS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreRule:
  """One number of a protocol.

  Attributes:
    name: as printed.
    statistic: what is computed.
    network, layer: whose features, and which; empty where pixels are all it takes.
    network_size, network_resize: how the network's input is made from the clip.
    covariance: divisor of the covariance.
    splits: of an inception score, consecutive blocks within a fold.
  """

  name: str
  statistic: Statistic
  network: str = ""
  layer: str = ""
  network_size: tuple[int, int] | None = None
  network_resize: ResizeRule | None = None
  covariance: str = "unbiased"
  splits: int = 1

  @property
  def needs_reference(self) -> bool:
    """Whether the samples are compared with anything."""
    return self.statistic is Statistic.FRECHET or self.is_paired

  @property
  def is_paired(self) -> bool:
    """Whether each sample is compared with its own reference, by name."""
    return self.statistic in _OF_PAIRS

  @property
  def is_of_clips(self) -> bool:
    """Whether every clip has a value of its own, alone or against its reference; the score is their mean."""
    return self.is_paired or self.statistic in _OF_CLIPS


FVD = ScoreRule(
  name="fvd",
  statistic=Statistic.FRECHET,
  network="i3d",
  layer="logits",
  network_size=(224, 224),
  network_resize=ResizeRule.LEGACY,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
  """A protocol.

  Attributes:
    name: on the command line.
    scores: the numbers.
    frames: length of a clip; 1 for images.
    size: (height, width) at which clips are scored; None as they are.
    size_resize: rule by which clips of another size get there.
    sample_clip, reference_clip: which frames of longer videos.
    sample_count, reference_count: clips a fold; None for one of every file.
    reference_clips_per_video: clips of each reference video, where no count is given.
    folds: each with its own samples and references.
    seed: of the random clips and of the order of the references.
    source: where the protocol is published.
  """

  name: str
  scores: tuple[ScoreRule, ...]
  frames: int
  size: tuple[int, int] | None
  size_resize: ResizeRule = ResizeRule.LEGACY
  sample_clip: ClipRule = ClipRule.FIRST
  reference_clip: ClipRule = ClipRule.FIRST
  sample_count: int | None = None
  reference_count: int | None = None
  reference_clips_per_video: int = 1
  folds: int = 1
  seed: int = 0
  source: str = ""

  def __post_init__(self):
    if self.frames < 1 or self.folds < 1 or self.reference_clips_per_video < 1:
      raise ValueError(
        f"frames, folds and reference_clips_per_video are at least 1, got {self.frames}, "
        f"{self.folds} and {self.reference_clips_per_video}."
      )
    if self.folds > 1 and self.sample_count is None:
      raise ValueError(f"{self.folds} folds need the number of samples in each: set sample_count.")

  def as_dict(self) -> dict[str, Any]:
    """All fields, plain."""
    return dataclasses.asdict(self)

  @property
  def hash(self) -> str:
    """Of every field but `source`."""
    return short_hash(self.as_dict())

  @property
  def networks(self) -> tuple[str, ...]:
    """The networks that its scores need."""
    return tuple(sorted({score.network for score in self.scores if score.network}))

  def replace(self, **changes: Any) -> "Protocol":
    """The protocol with other fields; its hash tells it apart from the published one."""
    return dataclasses.replace(self, **changes)
