"""Random weights for the scoring networks, and public torch implementations if they are installed."""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from flax import traverse_util


def random_weights(expected, *, seed):
  """Flat tensors of the given shapes, scaled so that activations stay near one throughout the network."""
  rng = np.random.default_rng(seed)
  flat = {}
  for name, shape in expected.items():
    leaf = name.rsplit("/", 1)[-1]
    if leaf == "kernel":
      tensor = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
    elif leaf in ("var", "scale"):
      tensor = rng.uniform(0.5, 1.5, size=shape)
    elif name == "input/mean":
      tensor = rng.uniform(80, 130, size=shape)
    else:
      tensor = 0.1 * rng.normal(size=shape)
    flat[name] = tensor.astype(np.float32)
  return flat


def nested(flat):
  return traverse_util.unflatten_dict(flat, sep="/")


def public_module(package, module):
  """Imports a module of a package without running the package's __init__; skips the test if not installed.

  Install such a package outside the environment: `pip install --no-deps --target=DIR NAME` and
  PYTHONPATH=DIR.
  """
  spec = importlib.util.find_spec(package)
  if spec is None:
    pytest.skip(
      f"the public package {package} is not installed: the comparison with it did not run"
    )
  if package not in sys.modules:
    bare = types.ModuleType(package)
    bare.__path__ = [str(Path(spec.origin).parent)]
    sys.modules[package] = bare
  file = Path(spec.origin).parent.joinpath(*module.split(".")).with_suffix(".py")
  module_spec = importlib.util.spec_from_file_location(f"{package}.{module}", file)
  loaded = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(loaded)
  return loaded
