"""Input check of the scoring networks, which take RGB bytes."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Shaped


def require_bytes(x: Shaped[Array, "..."], *, network: str, axes: Sequence[str]) -> None:
  """Raises an error unless the input is uint8 RGB of the network's rank.

  Args:
    x: input of the network.
    network: name of the network, for the message.
    axes: letters of the axes except the last, which is the 3 channels.

  Raises:
    ValueError: for another dtype, rank or number of channels.
  """
  if x.dtype != jnp.uint8 or x.ndim != len(axes) + 1 or x.shape[-1] != 3:
    kind = "clips" if "T" in axes else "images"
    raise ValueError(
      f"{network} takes uint8 RGB {kind} [{', '.join(axes)}, 3], got {x.dtype} {x.shape}. "
      "Round samples in [0, 1] to bytes first: the score is defined on the contents of a file."
    )
