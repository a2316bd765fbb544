"""Test set-up: CPU with eight fake devices, and shape annotations checked at every call."""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
  ).strip()

import pytest
from jaxtyping import install_import_hook

install_import_hook(
  ["walt_t5x.vae", "walt_t5x.denoiser", "walt_t5x.diffusion", "walt_t5x.text", "walt_t5x.metrics"],
  "beartype.beartype",
)


@pytest.fixture(scope="module")
def compilation_cache(tmp_path_factory):
  """Programs that a module starts find what an earlier one compiled."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("xla")))
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    yield


@pytest.fixture(autouse=True)
def random_numbers():
  """A run with HARDWARE_RNG sets the generator of its process; the next test gets JAX's own."""
  _use_threefry()
  yield
  _use_threefry()


def _use_threefry():
  if "jax" in sys.modules:
    sys.modules["jax"].config.update("jax_default_prng_impl", "threefry2x32")
