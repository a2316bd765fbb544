"""Imported once by the process that `tests.programs` forks: modules that have not initialized a device.

Modules that select an engine are left out: a program may get another engine by its environment.
"""

# ruff: noqa: F401 - imported for the processes to come.
import logging
import os
import warnings

# As JAX reads it when it is imported; see `tests/conftest.py`.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "1"

import beam_jobs

# isort: split
# After beam_jobs, which omits a warning of apache_beam.
import apache_beam
import av
import clu.metric_writers
import flax.linen
import jax
import optax
import orbax.checkpoint
import seqio
import tensorflow

import beam_jobs.sources.read
import walt_t5x.denoiser.transformer
import walt_t5x.diffusion.schedules
import walt_t5x.text
import walt_t5x.vae.autoencoder

# Writes to the stderr of this process; a program adds its handler.
logging.root.handlers.clear()
# No computation has started before the fork.
warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
