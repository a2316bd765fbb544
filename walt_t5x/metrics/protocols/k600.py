"""Kinetics-600 frame prediction: FVD.

5 real frames (2 latents) are given; 16-frame clips with the given frames as decoded; generated at
128 x 128, scored at 64 x 64; 50,000 clips a fold; real clips are 6 of every evaluation video.
"""

from walt_t5x.metrics.protocols.protocol import FVD, ClipRule, Protocol
from walt_t5x.metrics.resize import ResizeRule

PROTOCOL = Protocol(
  name="k600_frame_prediction",
  scores=(FVD,),
  frames=16,
  size=(64, 64),
  # Assumption: the rule by which 128 x 128 becomes 64 x 64; the paper names none.
  size_resize=ResizeRule.LEGACY,
  reference_clip=ClipRule.RANDOM,
  sample_count=50_000,
  reference_count=50_000,
  reference_clips_per_video=6,
  folds=4,
  source="arXiv:2212.05199 (MAGVIT)",
)
