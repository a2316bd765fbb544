"""What every scoring network takes: RGB bytes."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Shaped


def require_bytes(x: Shaped[Array, "..."], *, network: str, axes: Sequence[str]) -> None:
  """Refuses what is not uint8 RGB of the network's rank.

  Args:
    x: its input.
    network: its name in the message.
    axes: letters of its axes but the last, which are the 3 channels.

  Raises:
    ValueError: another dtype, rank or number of channels.
  """
  if x.dtype != jnp.uint8 or x.ndim != len(axes) + 1 or x.shape[-1] != 3:
    kind = "clips" if "T" in axes else "images"
    raise ValueError(
      f"{network} takes uint8 RGB {kind} [{', '.join(axes)}, 3], got {x.dtype} {x.shape}. "
      "Round samples in [0, 1] to bytes first: the score is defined on what a file holds."
    )
