"""Kinetics-600 frame prediction: FVD.

The condition is 5 real frames (2 latent frames). Clips have 16 frames, including the conditioning
frames as decoded; they are generated at 128 x 128 and scored at 64 x 64. 50,000 clips per fold; the
references are 6 clips of every evaluation video.
"""

from walt_t5x.metrics.protocols.protocol import FVD, ClipRule, Protocol
from walt_t5x.metrics.resize import ResizeRule

PROTOCOL = Protocol(
  name="k600_frame_prediction",
  scores=(FVD,),
  frames=16,
  size=(64, 64),
  # Assumption: the rule for resizing 128 x 128 to 64 x 64; the paper does not specify it.
  size_resize=ResizeRule.LEGACY,
  reference_clip=ClipRule.RANDOM,
  sample_count=50_000,
  reference_count=50_000,
  reference_clips_per_video=6,
  folds=4,
  source="arXiv:2212.05199 (MAGVIT)",
)
