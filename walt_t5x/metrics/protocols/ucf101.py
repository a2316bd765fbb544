"""UCF-101 class-conditional: FVD and IS.

10,000 samples per fold at 128 x 128, 16 frames (a 17-frame model drops its last frame). Labels are
drawn from the training videos; references are random clips of the 9,537 training videos.
"""

from walt_t5x.metrics.protocols.protocol import FVD, ClipRule, Protocol, ScoreRule, Statistic
from walt_t5x.metrics.resize import ResizeRule

C3D_IS = ScoreRule(
  name="is",
  statistic=Statistic.INCEPTION_SCORE,
  network="c3d",
  layer="logits",
  network_size=(112, 112),
  network_resize=ResizeRule.ALIGN_CORNERS,
)

PROTOCOL = Protocol(
  name="ucf101_class_conditional",
  scores=(FVD, C3D_IS),
  frames=16,
  size=(128, 128),
  reference_clip=ClipRule.RANDOM,
  sample_count=10_000,
  reference_count=10_000,
  folds=4,
  source="arXiv:2212.05199 (MAGVIT), arXiv:1811.09245 (TGANv2) for IS",
)
