"""Why a run stopped before its last step, and the exit code that says so to whatever started it.

 0   the run reached its last step, or an action stopped it
 1   an error; the message says which (bad configuration, foreign checkpoint, unreadable rows, ...)
65   NOT_FINITE: too many steps in a row without a finite loss and gradient. Starting again repeats them.
70   HUNG: no progress for `RunSettings.watchdog_seconds`; the stacks are in the log. Starting again goes on.
75   PREEMPTED: SIGTERM came, everything is saved. Starting again goes on and loses nothing.
"""

NOT_FINITE = 65
HUNG = 70
PREEMPTED = 75


class TrainingStopped(RuntimeError):
  """The run ended early, on purpose."""

  exit_code = 1


class Preempted(TrainingStopped):
  """SIGTERM came; the state of `step` is saved if checkpoints are."""

  exit_code = PREEMPTED

  def __init__(self, step: int, saved: str):
    super().__init__(f"Preempted after step {step}; {saved}.")
    self.step = step


class NotFinite(TrainingStopped):
  """Too many steps in a row were skipped."""

  exit_code = NOT_FINITE

  def __init__(self, last_good_step: int, skipped: int):
    super().__init__(
      f"The loss or the gradient was not finite for {skipped} steps in a row; the last good step is {last_good_step}. "
      "The same command would meet the same rows again: lower the learning rate, look at the rows, or raise "
      "RunSettings.max_nonfinite_steps."
    )
    self.last_good_step = last_good_step
