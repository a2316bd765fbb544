"""Why a run stopped before its last step, and the exit code that reports it.

 0   the run reached its last step, or an action stopped it
 1   an error; the message describes it (bad configuration, foreign checkpoint, unreadable data, ...)
65   NOT_FINITE: too many consecutive steps without a finite loss and gradient. A restart repeats them.
70   HUNG: no progress for `RunSettings.watchdog_seconds`; the stacks are in the log. A restart resumes.
75   PREEMPTED: SIGTERM was received and everything is saved. A restart resumes and loses nothing.
"""

NOT_FINITE = 65
HUNG = 70
PREEMPTED = 75


class TrainingStopped(RuntimeError):
  """The run ended early by design."""

  exit_code = 1


class Preempted(TrainingStopped):
  """SIGTERM was received; the state of `step` is saved if checkpoints are enabled."""

  exit_code = PREEMPTED

  def __init__(self, step: int, saved: str):
    super().__init__(f"Preempted after step {step}; {saved}.")
    self.step = step


class NotFinite(TrainingStopped):
  """Too many consecutive steps were skipped."""

  exit_code = NOT_FINITE

  def __init__(self, last_good_step: int, skipped: int):
    super().__init__(
      f"The loss or the gradient was not finite for {skipped} consecutive steps; the last good step is "
      f"{last_good_step}. The same command would read the same examples again: lower the learning rate, inspect the "
      "data, or raise RunSettings.max_nonfinite_steps."
    )
    self.last_good_step = last_good_step
