"""UCF-101 text to video, zero-shot: FVD and IS.

10,000 samples, one prompt per class; references are the central 16 frames of 10,000 training videos.
"""

from walt_t5x.metrics.protocols.protocol import FVD, ClipRule, Protocol
from walt_t5x.metrics.protocols.ucf101 import C3D_IS

PROTOCOL = Protocol(
  name="ucf101_zero_shot",
  scores=(FVD, C3D_IS),
  frames=16,
  # Assumption: scored at the size of the base stage; the paper does not specify it.
  size=(128, 128),
  sample_clip=ClipRule.CENTRAL,
  reference_clip=ClipRule.CENTRAL,
  sample_count=10_000,
  reference_count=10_000,
  source="arXiv:2312.06662, arXiv:2312.14125 (VideoPoet)",
)
