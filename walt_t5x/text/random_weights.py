"""Random weights under which the words of a caption stay distinguishable."""

import zlib

import numpy as np

from walt_t5x.text.config import T5Config
from walt_t5x.text.model import parameter_shapes

# Share of the residual stream that each sub-layer adds. At 1 (T5X's own initialisation) the four
# sub-layers of the tiny size drown the token; at 0 "red ball, blue box" is a bag of words.
BRANCH_GAIN = 0.5
# Spread of the relative position table: each head mostly looks at one or two distances, so that a
# noun's embedding carries its own adjective.
POSITION_GAIN = 3.0


def random_weights(config: T5Config, seed: int) -> dict[str, np.ndarray]:
  """Draws an encoder's parameters by flat T5X name, float32.

  Embedding rows are N(0, 1), kernels N(0, 1/fan_in), norms 1; the kernels that write to the
  residual stream are scaled by BRANCH_GAIN / sqrt(num_layers), and queries by d_kv^-1/2, since T5
  does not scale its logits. A tensor depends on the seed, its name and its shape alone.

  Assumption: none of this is in the paper, which uses trained weights.

  Args:
    config: the encoder's sizes.
    seed: any non-negative integer.
  """
  weights = {}
  for name, shape in parameter_shapes(config).items():
    if name.endswith("scale"):
      weights[name] = np.ones(shape, np.float32)
      continue
    if name.endswith("embedding"):
      gain = POSITION_GAIN if "relpos_bias" in name else 1.0
    else:
      gain = shape[0] ** -0.5
      if "/query/" in name:
        gain *= config.d_kv**-0.5
      elif "/out/" in name or "/wo/" in name:
        gain *= BRANCH_GAIN * config.num_layers**-0.5
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    weights[name] = generator.standard_normal(shape, np.float32) * np.float32(gain)
  return weights
