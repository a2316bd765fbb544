"""Protocols as data: everything that determines a score except the samples, and a hash of it.

Two scores are comparable only if they have the same protocol hash and the same network fingerprint.
"""

import dataclasses
import enum
import hashlib
import json
from typing import Any


@dataclasses.dataclass(frozen=True)
class Hashed:
  """Fields with a hash."""

  def as_dict(self) -> dict[str, Any]:
    """All fields as a plain dict."""
    return dataclasses.asdict(self)

  @property
  def hash(self) -> str:
    """First 12 hex digits of the sha256 of every field except `source`, as canonical JSON."""
    deciding = {name: value for name, value in self.as_dict().items() if name != "source"}
    text = json.dumps(deciding, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class ClipRule(enum.StrEnum):
  """Position of a clip in a longer video."""

  FIRST = "first"
  CENTRAL = "central"
  RANDOM = "random"  # seeded by the file's name, the fold and the clip's number


class Geometry(enum.StrEnum):
  """How frames of another shape reach a size."""

  CROP = "crop"  # scaled to cover the size, then cut at the center, as preprocessing does
  STRETCH = "stretch"


class ResizeRule(enum.StrEnum):
  """Position at which an output pixel samples the input (`metrics.network_input`)."""

  LEGACY = "tf1_legacy"
  ALIGN_CORNERS = "tf1_align_corners"
  HALF_PIXEL = "half_pixel"


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
  """One score of a protocol.

  Attributes:
    name: name in reports.
    statistic: what is computed.
    network, layer: network and layer of the features; empty for a statistic of pixels.
    network_size, network_resize: how a clip is resized for the network.
    covariance: estimator of the covariance, "unbiased" (divides by n - 1) or "population" (by n).
    splits: number of consecutive blocks per fold, for an inception score.
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
  def is_unbiased(self) -> bool:
    """Whether covariances are divided by n - 1."""
    return self.covariance == "unbiased"

  @property
  def needs_reference(self) -> bool:
    """Whether the samples are compared with references."""
    return self.statistic is Statistic.FRECHET or self.is_paired

  @property
  def is_paired(self) -> bool:
    """Whether each sample is compared with its own reference, by name."""
    return self.statistic in _OF_PAIRS

  @property
  def is_of_clips(self) -> bool:
    """Whether the score is a mean over clips, of values computed from each clip or from a clip and its reference."""
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
class Protocol(Hashed):
  """A protocol.

  Attributes:
    name: name on the command line.
    scores: the scores that it computes.
    frames: length of a clip; 1 for images.
    size: (height, width) at which clips are scored; None for the size of the files.
    geometry: how frames of another shape reach the size.
    source_size: (height, width) at which media files are read before they are resized to `size`; None for `size`.
    fps: rate at which media files are read, with the frames that preprocessing selects; None for every frame.
    size_resize: rule for resizing clips from `source_size`, and samples of `generate`, to `size`.
    sample_clip, reference_clip: position of the clip in longer videos.
    sample_count, reference_count: clips per fold; None for one per file.
    reference_clips_per_video: clips per reference video; with a count, the clips that are drawn from.
    folds: number of folds, each with its own samples and references.
    seed: seed of the random clips and of the order of the references.
    source: where the protocol is published.

  Raises ValueError for counts below 1, or several folds without sample_count.
  """

  name: str
  scores: tuple[ScoreRule, ...]
  frames: int
  size: tuple[int, int] | None
  geometry: Geometry = Geometry.CROP
  source_size: tuple[int, int] | None = None
  fps: float | None = None
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
        f"Expected frames, folds and reference_clips_per_video of at least 1, got {self.frames}, "
        f"{self.folds} and {self.reference_clips_per_video}."
      )
    if self.folds > 1 and self.sample_count is None:
      raise ValueError(f"{self.folds} folds need the number of samples per fold: set sample_count.")

  @property
  def networks(self) -> tuple[str, ...]:
    """Names of the networks that the scores need."""
    return tuple(sorted({score.network for score in self.scores if score.network}))

  def replace(self, **changes: Any) -> "Protocol":
    """Returns the protocol with changed fields, and therefore another hash."""
    return dataclasses.replace(self, **changes)
