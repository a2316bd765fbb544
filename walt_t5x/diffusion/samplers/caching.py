"""Caching between sampling steps: calls of the network that reuse what its blocks added in an earlier call.

Successive calls have similar inputs. In a call that reuses, the blocks are not computed: the tokens of the new input
get the change that the blocks made to those of the last call that computed them (TeaCache, 2411.19108). A rule says
which calls reuse. It sees the times of the calls, which are the same for all examples, and nothing of an example: all
examples of a batch reuse in the same calls, and a sample does not depend on its batch.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


@runtime_checkable
class Cache(Protocol):
  """Chooses the calls that reuse."""

  @property
  def reads_embeddings(self) -> bool:
    """Whether the choice depends on the time embeddings, and so on the weights."""
    ...

  def reused(
    self,
    times: np.ndarray,
    *,
    first: np.ndarray,
    embeddings: Float[Array, "n D"] | None = None,
  ) -> np.ndarray | Bool[Array, " n"]:
    """Whether each of n calls reuses, bool [n].

    Args:
      times: t in [0, 1] of each call (1 = noise).
      first: calls that have nothing to reuse, bool [n].
      embeddings: the network's embedding of each time; None if `reads_embeddings` is False.
    """
    ...


@dataclasses.dataclass(frozen=True)
class EveryNth:
  """One of `every` successive calls computes, the others reuse it (FORA, 2407.01425; DeepCache, 2312.00858).

  Attributes:
    every: from 1, with which all compute.
    low, high: t in [low, high], outside of which every call computes; the first calls make the layout and the last ones
      the details (PAB, 2408.12588, reuses between them only).
  """

  every: int = 2
  low: float = 0.0
  high: float = 1.0

  def __post_init__(self):
    if self.every < 1:
      raise ValueError(f"EveryNth.every={self.every}: expected a number from 1 on")
    if not 0 <= self.low < self.high <= 1:
      raise ValueError(f"EveryNth: low={self.low}, high={self.high}, expected 0 <= low < high <= 1")

  @property
  def reads_embeddings(self) -> bool:
    return False

  def reused(
    self,
    times: np.ndarray,
    *,
    first: np.ndarray,
    embeddings: Float[Array, "n D"] | None = None,
  ) -> np.ndarray:
    """See `Cache`."""
    del embeddings
    found, since = np.zeros(len(times), bool), 0
    for call, time in enumerate(times):
      computes = first[call] or since + 1 >= self.every or not self.low <= time <= self.high
      since = 0 if computes else since + 1
      found[call] = not computes
    return found


@dataclasses.dataclass(frozen=True)
class EmbeddingChange:
  """Calls reuse until the time embedding e has changed enough (TeaCache, 2411.19108).

    sum_i |e_i - e_{i-1}|_1 / |e_{i-1}|_1 < threshold,    over the calls since the one that computed

  The last call computes. Assumption: e is the network's embedding of the time alone, as in the authors' code for Wan
  2.1, so that the calls are known before sampling; the paper adds the noised input. The distances are not rescaled by a
  polynomial, which has to be fitted to a model.

  Attributes:
    threshold: with 0, every call computes. Assumption: 0.3, with which the toy cascade computes 20 of 50 calls.
  """

  threshold: float = 0.3

  def __post_init__(self):
    if self.threshold < 0:
      raise ValueError(f"EmbeddingChange.threshold={self.threshold}: expected a number from 0 on")

  @property
  def reads_embeddings(self) -> bool:
    return True

  def reused(
    self,
    times: np.ndarray,
    *,
    first: np.ndarray,
    embeddings: Float[Array, "n D"] | None = None,
  ) -> Bool[Array, " n"]:
    """See `Cache`."""
    assert embeddings is not None, "EmbeddingChange reads the time embeddings"
    e = embeddings.astype(jnp.float32)
    moved = jnp.sum(jnp.abs(e[1:] - e[:-1]), axis=1) / jnp.sum(jnp.abs(e[:-1]), axis=1)
    computes = np.array(first)
    computes[-1] = True

    def step(total: Array, call: tuple[Array, Array]) -> tuple[Array, Array]:
      change, must = call
      total = total + change
      reuses = (total < self.threshold) & ~must
      return jnp.where(reuses, total, 0.0), reuses

    changes = jnp.concatenate([jnp.zeros(1), moved])
    return jax.lax.scan(step, jnp.float32(0), (changes, jnp.asarray(computes)))[1]


CACHES = (EveryNth, EmbeddingChange)
