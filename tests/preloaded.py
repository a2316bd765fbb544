"""Imported once by the process that `tests.programs` forks: libraries that have not initialized a device."""

import os
import warnings

# As JAX reads it when it is imported; see `tests/conftest.py`.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "1"

import clu.metric_writers  # noqa: F401
import flax.linen  # noqa: F401
import jax  # noqa: F401
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401
import seqio  # noqa: F401
import tensorflow  # noqa: F401

# No computation has started before the fork.
warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
