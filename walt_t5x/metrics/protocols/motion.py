"""Motion without a network: how much clips change from frame to frame, and how steadily (`metrics.motion`).

Both depend on the frame rate and, through blur, on the size: compare clips of one rate and size, such as samples with
the real clips that they were trained on, each scored by itself.
"""

from walt_t5x.metrics.protocols.protocol import Protocol, ScoreRule, Statistic

PROTOCOL = Protocol(
  name="motion",
  scores=(
    ScoreRule(name="change", statistic=Statistic.CHANGE),
    ScoreRule(name="steadiness", statistic=Statistic.STEADINESS),
  ),
  frames=16,
  size=None,
  source="walt_t5x/metrics/motion.py",
)
