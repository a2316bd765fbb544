"""Random weights that keep the words of a caption distinguishable."""

import zlib

import numpy as np

from walt_t5x.text.config import T5Config
from walt_t5x.text.model import parameter_shapes

# Scale of what each sub-layer adds to the residual stream. At 1 (T5X's initialization) the four
# sub-layers of the tiny size dominate the token; at 0 the embedding ignores word order.
BRANCH_GAIN = 0.5
# Standard deviation of the relative position table: each head mostly attends to one or two
# distances, so that the embedding of a noun depends on its adjective.
POSITION_GAIN = 3.0


def random_weights(config: T5Config, seed: int) -> dict[str, np.ndarray]:
  """Draws an encoder's parameters by flat T5X name, float32.

  Embedding rows are N(0, 1), kernels N(0, 1/fan_in), norms 1. Kernels that write to the residual
  stream are scaled by BRANCH_GAIN / sqrt(num_layers), and queries by d_kv^-1/2, because T5 does not
  scale its logits. A tensor depends only on the seed, its name and its shape.

  Assumption: the paper uses trained weights and has no random encoder.

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
