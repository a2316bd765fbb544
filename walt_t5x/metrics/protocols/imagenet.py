"""ImageNet 256 x 256 class-conditional: FID and IS.

50,000 samples compared with the published reference statistics (an .npz with mu and sigma); IS with
10 splits of 5,000 and the softmax of the logits without bias.
"""

from walt_t5x.metrics.protocols.protocol import Protocol, ScoreRule, Statistic
from walt_t5x.metrics.resize import ResizeRule

_INCEPTION = {
  "network": "inception",
  "network_size": (299, 299),
  "network_resize": ResizeRule.LEGACY,
}
FID = ScoreRule(name="fid", statistic=Statistic.FRECHET, layer="pool_3", **_INCEPTION)
IS = ScoreRule(
  name="is",
  statistic=Statistic.INCEPTION_SCORE,
  layer="logits_unbiased",
  splits=10,
  **_INCEPTION,
)

PROTOCOL = Protocol(
  name="imagenet256",
  scores=(FID, IS),
  frames=1,
  size=(256, 256),
  sample_count=50_000,
  source="arXiv:2105.05233 (ADM): its evaluation suite and reference statistics",
)
