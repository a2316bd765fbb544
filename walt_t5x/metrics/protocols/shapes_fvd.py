"""Frechet video distance by the stand-in network: for machines without I3D's weights, on rendered shapes.

Comparable with no published number, and with itself only under one fingerprint of the weights.
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
  source="stand-in: walt_t5x/metrics/shapes_network.py",
)
