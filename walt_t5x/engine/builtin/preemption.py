"""Handles SIGTERM as a request to save and stop, coordinated over all hosts."""

import signal
import threading
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils


class PreemptionNotice:
  """Listens for SIGTERM while the context is open.

  A single process notices on its own. Several processes coordinate through JAX's coordination service, which reports a
  SIGTERM to any of them: all stop after the same step, which none of them has completed yet.
  """

  def __init__(self) -> None:
    self._asked = False
    self._before: Any = None
    self._installed = False

  def __enter__(self) -> "PreemptionNotice":
    alone = jax.process_count() == 1
    if alone and threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, self._handle)
      self._installed = True
    return self

  def __exit__(self, *exception: Any) -> None:
    if self._installed:
      signal.signal(signal.SIGTERM, self._before)
      self._installed = False

  def before(self, step: int) -> bool:
    """True if the run should stop before `step`. With several processes, call once per step on each."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked

  def _handle(self, signum: int, frame: Any) -> None:
    self._asked = True
    logging.warning("SIGTERM: saving and stopping after the current step.")
