"""FVD of two folders of clips by public code: ffmpeg, cd-fvd's network and distance, and torchmetrics' statistics.

Runs in the environment that `benchmarks.fvd_parity` creates and imports nothing of this repository. The weights are a
safetensors file of `walt_t5x.metrics.import_weights`.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

# A branch of an Inception block in cd-fvd -> in the original TensorFlow graph.
BRANCHES = {
  "b0": "Branch_0_Conv3d_0a_1x1",
  "b1a": "Branch_1_Conv3d_0a_1x1",
  "b1b": "Branch_1_Conv3d_0b_3x3",
  "b2a": "Branch_2_Conv3d_0a_1x1",
  "b2b": "Branch_2_Conv3d_0b_3x3",
  "b3b": "Branch_3_Conv3d_0b_1x1",
}


def i3d_state(flat: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
  """The weights under the names and in the layout of cd-fvd's InceptionI3d; norms have no scale: 1 is not listed.

  Args:
    flat: weights by flat name, kernels [t, h, w, in, out].
    names: keys of the state dict of the torch network.
  """
  state = {}
  for key in names:
    *path, leaf = key.split(".")
    where = "/".join(BRANCHES.get(part, part) for part in path[:-1])
    if path[0] == "logits":
      tensor = flat[f"params/Logits_Conv3d_0c_1x1/{'kernel' if leaf == 'weight' else 'bias'}"]
    elif path[-1] == "conv3d":
      tensor = flat[f"params/{where}/conv/kernel"]
    elif leaf == "bias":
      tensor = flat[f"params/{where}/norm/bias"]
    elif leaf.startswith("running"):
      tensor = flat[f"batch_stats/{where}/norm/{leaf.removeprefix('running_')}"]
    else:
      continue
    tensor = tensor.transpose(4, 3, 0, 1, 2) if tensor.ndim == 5 else tensor
    state[key] = np.ascontiguousarray(tensor)
  return state


def public_package(name: str) -> None:
  """Makes modules of a package importable without its __init__, which needs more packages."""
  spec = importlib.util.find_spec(name)
  assert spec is not None and spec.submodule_search_locations, f"{name} is not installed"
  package = types.ModuleType(name)
  package.__path__ = list(spec.submodule_search_locations)
  sys.modules[name] = package


def read(file: Path, size: int) -> np.ndarray:
  """All frames [T, size, size, 3] uint8, scaled by ffmpeg's command line with area averaging."""
  scaled = f"scale={size}:{size}:flags=area+accurate_rnd"
  command = ["ffmpeg", "-v", "error", "-i", str(file), "-vf", scaled, "-f", "rawvideo"]
  command += ["-pix_fmt", "rgb24", "-"]
  done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
  return np.frombuffer(done.stdout, np.uint8).reshape(-1, size, size, 3).copy()


def main() -> None:
  """Prints {"fvd", "population", "torchmetrics"} as JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--weights", type=Path, required=True)
  parser.add_argument("--folders", type=Path, nargs=2, required=True)
  parser.add_argument("--size", type=int, required=True)
  parser.add_argument("--features", type=Path, required=True, help="npz to write")
  args = parser.parse_args()

  import scipy.linalg
  import torch
  from safetensors.numpy import load_file

  for package in ("cdfvd", "cdfvd.third_party", "cdfvd.utils"):
    public_package(package)
  from cdfvd.third_party.i3d import pytorch_i3d, utils  # type: ignore[import-not-found]
  from cdfvd.utils import metric_utils  # type: ignore[import-not-found]
  from torchmetrics.image.fid import FrechetInceptionDistance  # type: ignore[import-not-found]

  network = pytorch_i3d.InceptionI3d(400, in_channels=3).eval()
  state: dict[str, Any] = i3d_state(load_file(args.weights), network.state_dict())
  tensors = {name: torch.from_numpy(value) for name, value in state.items()}
  missing = network.load_state_dict(tensors, strict=False).missing_keys
  # The original norms have no scale; torch starts with 1.
  assert all(name.endswith(("num_batches_tracked", "bn.weight")) for name in missing), missing
  for layer in network.modules():
    if isinstance(layer, torch.nn.BatchNorm3d):
      # TensorFlow's constant; torch's default is 1e-5.
      layer.eps = 1e-3
  features = []
  for folder in args.folders:
    found = []
    for file in sorted(folder.iterdir()):
      with torch.no_grad():
        clip = read(file, args.size)
        found.append(network(utils.preprocess_i3d(clip[None])))
    features.append(torch.cat(found).double())

  class Identity(torch.nn.Module):
    num_features = features[0].shape[1]

    def forward(self, rows: Any) -> Any:
      return rows

  metric = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
  for rows, real in zip(features, (False, True)):
    for part in torch.split(rows, 16):
      metric.update(part, real=real)
  arrays: dict[str, Any] = {f"set_{i}": f.numpy() for i, f in enumerate(features)}
  for i, kind in enumerate(("fake", "real")):
    # The metric's sums, combined as its `compute` does.
    total, products, count = (
      getattr(metric, f"{kind}_features_{name}") for name in ("sum", "cov_sum", "num_samples")
    )
    mean = total / count
    covariance = (products - count * torch.outer(mean, mean)) / (count - 1)
    arrays |= {f"mean_{i}": mean.numpy(), f"covariance_{i}": covariance.numpy()}
  np.savez(args.features, **arrays)
  # cd-fvd's statistics, as in StyleGAN-V: covariances are divided by n.
  biased = []
  for rows in features:
    kept = metric_utils.FeatureStats(capture_mean_cov=True)
    kept.append(rows.numpy())
    biased.append(kept.get_mean_cov())
  root = scipy.linalg.sqrtm(biased[0][1] @ biased[1][1])
  spread = np.trace(biased[0][1] + biased[1][1] - 2 * root.real)
  result = {
    "fvd": float(utils.frechet_distance(*features)),
    "population": float(np.square(biased[0][0] - biased[1][0]).sum() + spread),
    "torchmetrics": float(metric.compute()),
  }
  print(json.dumps(result))


if __name__ == "__main__":
  main()
