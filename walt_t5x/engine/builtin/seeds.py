"""The random seeds of a run, kept in its folder."""

from collections.abc import Sequence

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from walt_t5x.files import storage


def fresh_seed(entropy: Sequence[int] | None = None) -> int:
  """A seed derived from `entropy`, by default from the operating system's; the same on every host."""
  seed = np.random.SeedSequence(entropy).generate_state(1)[0] >> 1
  return int(multihost_utils.broadcast_one_to_all(np.int32(seed)))


def drawn_seed(model_dir: str) -> int:
  """A random seed, the same on every host and after every restart of the run."""
  file = storage.join(model_dir, "random_seed.json")
  seed = fresh_seed()
  if jax.process_index() == 0:
    if storage.exists(file):
      seed = int(storage.read_json(file)["random_seed"])
    else:
      storage.write_json(file, {"random_seed": seed}, seal=True)
  seed = int(multihost_utils.broadcast_one_to_all(np.int32(seed)))
  logging.info("Random seed %d, drawn for this run.", seed)
  return seed


class RowSeeds:
  """The seed that orders the data from each step on, stored in `<model_dir>/row_seeds.json`.

  A run whose data position cannot be restored (other hosts, another batch size, a checkpoint without a position)
  starts a new epoch. With the old seed it would start with the same examples again, and a run that is moved often
  would never see the others. It therefore gets a new seed, derived from the old one and the step, and keeps it.

  Args:
    model_dir: the run's folder.
    first: the seed from step 0 on.
  """

  def __init__(self, model_dir: str, first: int):
    self._file = storage.join(model_dir, "row_seeds.json")
    self._seeds = [(0, first)]
    if storage.exists(self._file):
      kept = storage.read_json(self._file)
      # Until version 0.2 the file was the list.
      kept = kept["seeds"] if isinstance(kept, dict) else kept
      self._seeds += [(int(step), int(seed)) for step, seed in kept]

  def at(self, step: int) -> tuple[int, int]:
    """(first step, seed) of the order in which a run that resumes from `step` reads the data."""
    return [entry for entry in self._seeds if entry[0] <= step][-1]

  def renew(self, step: int) -> int:
    """Creates a new seed from `step` on; seeds of later steps are dropped."""
    kept = [(start, seed) for start, seed in self._seeds if start < step]
    fresh = fresh_seed([self.at(step)[1], step])  # Every host has read the file when this returns.
    self._seeds = [*kept, (step, fresh)]
    if jax.process_index() == 0:
      storage.write_json(self._file, {"seeds": self._seeds[1:]}, seal=True)
    return fresh
