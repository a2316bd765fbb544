"""Frechet video distance with the surrogate network, for rendered shapes on machines without I3D's weights.

Scores are not comparable with published numbers, and with each other only for the same fingerprint of the weights.
"""

from walt_t5x.metrics.protocols.protocol import Protocol, ScoreRule, Statistic
from walt_t5x.metrics.resize import ResizeRule

SHAPES_FVD = ScoreRule(
  name="shapes_fvd",
  statistic=Statistic.FRECHET,
  network="shapes",
  layer="features",
  network_size=(64, 64),
  network_resize=ResizeRule.LEGACY,
)

PROTOCOL = Protocol(
  name="shapes_fvd",
  scores=(SHAPES_FVD,),
  frames=9,
  size=None,
  source="surrogate: walt_t5x/metrics/shapes_network.py",
)
