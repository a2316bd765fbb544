"""Motion without a network: amount and steadiness of change between frames (`metrics.motion`).

Both depend on the frame rate and, through blur, on the size. Compare clips of the same rate and size, such as samples
with the real clips that the model was trained on, scored separately.
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
