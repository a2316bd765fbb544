"""Profiler traces of a few steps, configured in advance or requested during the run."""

from collections.abc import Sequence

import jax
from absl import logging
from etils import epath

REQUEST = "profile_now"


class Profiler:
  """Writes traces to `<model_dir>/profile`, for TensorBoard's profile plugin, XProf or Perfetto.

  Args:
    model_dir: the run's folder. A file `profile_now` in it that contains a number requests a trace of that many steps
      (checked every few dozen steps, and removed by host 0 once its trace is written; each host checks independently,
      and one that is late writes none).
    steps: (first, last + 1) step to trace, or None.
  """

  def __init__(self, model_dir: str, steps: Sequence[int] | None):
    self._folder = epath.Path(model_dir)
    self._first, self._end = steps or (-1, -1)
    self._running = False

  def poll(self, step: int) -> None:
    """Checks for a request."""
    file = self._folder / REQUEST
    if self._running or not file.exists():
      return
    text = file.read_text().strip()
    count = int(text) if text.isdecimal() and int(text) > 0 else 3
    self._first, self._end = step, step + count

  def before(self, step: int) -> None:
    """Called before `step` is dispatched."""
    if not self._running and self._first <= step < self._end:
      logging.info("Tracing steps %d to %d to %s/profile.", step, self._end - 1, self._folder)
      jax.profiler.start_trace(str(self._folder / "profile"))
      self._running = True

  def ends_at(self, step: int) -> bool:
    """True if the trace ends before `step`; then wait for the devices and call `stop`."""
    return self._running and step >= self._end

  def stop(self) -> None:
    """Ends the trace if one is active."""
    if self._running:
      jax.profiler.stop_trace()
      self._running, self._first, self._end = False, -1, -1
      if jax.process_index() == 0:
        (self._folder / REQUEST).unlink(missing_ok=True)
