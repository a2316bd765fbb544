"""Every second of a job is counted once, over all its starts."""

import pytest

from tests.engine import runs
from walt_t5x.engine import goodput
from walt_t5x.engine.goodput import PHASES, Goodput, Start


def start(*, began, written, steps, step_seconds, saved=(), finished=False, **seconds):
  """A start; the phases that are not given took no time."""
  phases = dict.fromkeys(PHASES, 0.0) | seconds | {"step": step_seconds}
  first, last = steps
  return Start(
    began=began,
    written=written,
    first_step=first,
    step=last,
    finished=finished,
    seconds=phases,
    saved=saved,
  )


def nonzero(account):
  return {name: seconds for name, seconds in account.badput.items() if seconds}


def test_goodput_assigns_every_second_to_one_phase():
  now = iter([0.0, 3.0, 5.0, 6.0, 10.0, 11.0, 12.0])
  one = Goodput(before=7.0, clock=lambda: next(now))
  with one.within("compile"):  # From 3 to 5.
    pass
  one.enter("step")  # At 6.
  with one.within("data"):  # From 10 to 11.
    pass
  spent = {phase: seconds for phase, seconds in one.seconds().items() if seconds}  # At 12.
  assert spent == {"backend": 7, "init": 4, "compile": 2, "step": 5, "data": 1}


def test_steps_that_a_restart_repeats_are_lost():
  """A timeline of 100 s, by hand.

  0 to 50: 10 s until the first step, then a step per second, with a checkpoint of 2 s after step 20; killed at step 38.
  60 to 80: reads step 20, damaged; step 0 again, which takes 5 s, then 15 steps; killed.
  85 to 100: restores a checkpoint of step 10, in 4 s; 9 steps are trained, and 2 s are not accounted for.
  """
  starts = [
    start(began=0.0, written=50.0, steps=(0, 38), step_seconds=38.0, saved=[(20, 20.0)], init=10.0, checkpoint=2.0),
    start(began=60.0, written=80.0, steps=(0, 15), step_seconds=15.0, saved=[(10, 10.0)], restore=5.0),
    start(began=85.0, written=100.0, steps=(10, 19), step_seconds=9.0, restore=4.0),
  ]  # fmt: skip
  account = goodput.account(starts)
  assert account.elapsed == 100 and account.productive == 0 + 10 + 9
  assert nonzero(account) == {
    "training_prep": 10,
    "unproductive_checkpoint_save_time": 2,
    "unproductive_checkpoint_restore_time": 5 + 4,
    "wasted_progress_from_disruption": 38 + 5,
    "infrastructure_recovery_from_disruption": 10 + 5,
    "other": 2,
  }
  assert account.share == 0.19


def test_a_later_start_repeats_the_steps_of_all_before_it():
  """The second start has saved step 8, but the third one continues from step 4 of the first."""
  starts = [
    start(began=0.0, written=6.0, steps=(0, 6), step_seconds=6.0, saved=[(2, 2.0), (6, 6.0)]),
    start(began=6.0, written=8.0, steps=(6, 8), step_seconds=2.0, saved=[(8, 2.0)]),
    start(began=8.0, written=9.0, steps=(4, 5), step_seconds=1.0),
  ]
  account = goodput.account(starts)
  assert account.productive == 4 + 0 + 1
  assert nonzero(account) == {"wasted_progress_from_disruption": 2 + 2}


def test_a_finished_job_waits_for_nothing():
  """A month before it is continued to a later last step."""
  first = start(began=0.0, written=10.0, steps=(0, 9), step_seconds=9.0, init=1.0, finished=True)
  later = start(began=2.6e6, written=2.6e6 + 10, steps=(9, 18), step_seconds=9.0, init=1.0)
  account = goodput.account([first, later])
  assert account.elapsed == pytest.approx(20) and account.share == pytest.approx(0.9)


def test_a_job_that_is_killed_records_its_starts(tmp_path):
  """Killed at step 7, it continues from step 5; the record has all that the metrics say."""
  settings = {"concurrent_metrics": False}
  with pytest.raises(runs.Crashed):
    runs.train(tmp_path, 10, actions={"TRAIN": [runs.Crash(7)]}, **settings)
  (tmp_path / goodput.FOLDER / "1.json").write_text("{")  # Is skipped.
  runs.train(tmp_path, 10, **settings)
  first, second = goodput.read(tmp_path)
  assert (first.first_step, first.step, first.finished) == (0, 7, False)
  assert (second.first_step, second.step, second.finished) == (5, 10, True)
  assert [step for step, _ in first.saved] == [0, 5]
  for one in (first, second):
    assert sum(one.seconds.values()) == pytest.approx(one.written - one.began, abs=0.5)
  account = goodput.account([first, second])
  kept = dict(first.saved)[5]
  assert account.productive == pytest.approx(kept + second.seconds["step"])
  assert account.badput["wasted_progress_from_disruption"] == first.seconds["step"] - kept > 0
  # Two clocks.
  total = account.productive + sum(account.badput.values())
  assert total == pytest.approx(account.elapsed, abs=0.05)
  last = runs.lines(tmp_path)[-1]
  lost = {name: seconds for name, seconds in last.items() if name.startswith("badput/")}
  assert lost["badput/wasted_progress_from_disruption_seconds"] == first.seconds["step"] - kept
  productive = kept + last["goodput/step_seconds"]
  share = productive / (productive + sum(lost.values()))
  assert last["goodput/job_share"] == pytest.approx(share, abs=0.05)
