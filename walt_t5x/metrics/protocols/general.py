"""Protocols for any two folders of clips, not tied to a published benchmark."""

from walt_t5x.metrics.protocols.protocol import FVD, Protocol, ResizeRule, ScoreRule, Statistic

# FVD between any two folders: one 16-frame clip of every file, at the size of the files.
ANY_FVD = Protocol(
  name="fvd",
  scores=(FVD,),
  frames=16,
  size=None,
  source="network and statistics of arXiv:1812.01717; counts and sizes are the folders' own",
)

# Motion without a network: amount and steadiness of change between frames (`metrics.motion`).
# Both depend on the frame rate and, through blur, on the size. Compare clips of the same rate and size, such as
# samples with the real clips that the model was trained on, scored separately.
MOTION = Protocol(
  name="motion",
  scores=(
    ScoreRule(name="change", statistic=Statistic.CHANGE),
    ScoreRule(name="steadiness", statistic=Statistic.STEADINESS),
  ),
  frames=16,
  size=None,
  source="walt_t5x/metrics/motion.py",
)

# Frechet video distance with the surrogate network, for rendered shapes on machines without I3D's weights.
# Scores are not comparable with published numbers, and with each other only for the same fingerprint of the weights.
SHAPES_FVD = ScoreRule(
  name="shapes_fvd",
  statistic=Statistic.FRECHET,
  network="shapes",
  layer="features",
  network_size=(64, 64),
  network_resize=ResizeRule.LEGACY,
)

ANY_SHAPES_FVD = Protocol(
  name="shapes_fvd",
  scores=(SHAPES_FVD,),
  frames=9,
  size=None,
  source="surrogate: walt_t5x/metrics/shapes_network.py",
)
