"""The scoring networks by name: they map batches of byte clips to features on the host."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from walt_t5x.metrics import c3d, i3d, inception, shapes_network, weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkKind:
  """A network without its weights.

  Attributes:
    public: its public weights.
    layers: names of the outputs.
    extract: (variables, bytes [B, T, H, W, 3]) -> {layer: [B, F]}; an image is a clip of one frame.
    expected: flat name -> shape of its weights.
  """

  public: weights.PublicWeights
  layers: tuple[str, ...]
  extract: Callable[[Any, jax.Array], Mapping[str, jax.Array]]
  expected: Callable[[], dict[str, tuple[int, ...]]]


def _shapes(module: Any, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  return weights.shapes_of(jax.eval_shape(module.init, jax.random.key(0), x))


def _i3d(variables: Any, videos: jax.Array) -> Mapping[str, jax.Array]:
  return {"logits": i3d.logits(variables, videos)}


def _c3d(variables: Any, videos: jax.Array) -> Mapping[str, jax.Array]:
  return {"logits": c3d.logits(variables, videos)}


def _inception(variables: Any, videos: jax.Array) -> Mapping[str, jax.Array]:
  if videos.ndim != 5 or videos.shape[1] != 1:
    raise ValueError(f"Inception takes images [B, 1, H, W, 3], got {videos.shape}.")
  return inception.features(variables, videos[:, 0])


def _surrogate(variables: Any, videos: jax.Array) -> Mapping[str, jax.Array]:
  return {"features": shapes_network.features(variables, videos)}


def _c3d_shapes() -> dict[str, tuple[int, ...]]:
  clip = (c3d.NUM_FRAMES, c3d.SIZE, c3d.SIZE, 3)
  return _shapes(c3d.C3D(), (1, *clip)) | {"input/mean": clip}


KINDS = {
  "i3d": NetworkKind(
    public=weights.I3D,
    layers=("logits",),
    extract=_i3d,
    expected=lambda: _shapes(i3d.I3D(), (1, 9, 224, 224, 3)),
  ),
  "inception": NetworkKind(
    public=weights.INCEPTION,
    layers=("pool_3", "logits_unbiased", "logits"),
    extract=_inception,
    expected=lambda: _shapes(inception.InceptionV3(), (1, 299, 299, 3)),
  ),
  "c3d": NetworkKind(public=weights.C3D, layers=("logits",), extract=_c3d, expected=_c3d_shapes),
  "shapes": NetworkKind(
    public=weights.SHAPES,
    layers=("features",),
    extract=_surrogate,
    expected=lambda: _shapes(
      shapes_network.ShapesNetwork(), (1, 9, shapes_network.SIZE, shapes_network.SIZE, 3)
    ),
  ),
}


class FeatureNetwork:
  """A network with weights.

  Attributes:
    name: its name.
    fingerprint: fingerprint of its weights.
    is_public: whether these are the public weights; None if unknown.
    description: the same in words, for tables.
  """

  def __init__(self, name: str, variables: Any, fingerprint: str):
    self.name, self.fingerprint = name, fingerprint
    self._kind = KINDS[name]
    self._variables = jax.device_put(variables)
    self._apply = jax.jit(self._kind.extract)

  @classmethod
  def load(cls, name: str, path: Any) -> "FeatureNetwork":
    """Reads weights written by `import_weights` or `train_surrogate`.

    Raises:
      FileNotFoundError: if the file does not exist; the message says where to get it, with its hash.
      ValueError: for an unknown network, or weights that do not fit it.
    """
    if name not in KINDS:
      raise ValueError(f"Unknown network {name!r}; expected one of {sorted(KINDS)}.")
    kind = KINDS[name]
    return cls(name, *weights.load_weights(path, public=kind.public, expected=kind.expected()))

  @functools.cached_property
  def is_public(self) -> bool | None:
    """Whether the weights are the public ones; None if the public fingerprint is not recorded."""
    public = self._kind.public
    if public.surrogate:
      return False
    return None if public.fingerprint is None else public.fingerprint == self.fingerprint

  @property
  def description(self) -> str:
    """What the weights are: public, not public, not recorded, or those of a surrogate."""
    return self._kind.public.describe(self.fingerprint)

  def __call__(self, videos: np.ndarray, *, batch_size: int | None = None) -> dict[str, np.ndarray]:
    """Features of one batch.

    Args:
      videos: uint8 [B, T, H, W, 3].
      batch_size: a smaller batch is padded to this size, to avoid recompilation.

    Returns:
      layer -> [B, F], float32.
    """
    count = len(videos)
    if batch_size and count < batch_size:
      videos = np.concatenate([videos, np.repeat(videos[:1], batch_size - count, axis=0)])
    features = self._apply(self._variables, videos)
    return {layer: np.asarray(value[:count]) for layer, value in features.items()}
