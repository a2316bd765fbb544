"""Failures of a run are visible in its metrics and exit code: NaN, SIGTERM, Ctrl-C, hangs, slow readers."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from tests.engine import runs
from tests.engine.parallel_test import some_devices
from walt_t5x import engine
from walt_t5x.engine import checkpoints, exits, watchdog
from walt_t5x.engine.builtin import datasets
from walt_t5x.engine.builtin.data_iterator import ShardedIterator
from walt_t5x.engine.builtin.trainer import Trainer
from walt_t5x.engine.builtin.training_step import TrainingStep
from walt_t5x.engine.flops import count_flops
from walt_t5x.engine.goodput import PHASES
from walt_t5x.engine.run_settings import STEP, RunSettings


def changed_rows(change):
  """A dataset function that applies `change(index, batch)` to its batches; None drops the batch."""

  def get_dataset(*arguments, **settings):
    batches = datasets.get_dataset(*arguments, **settings)
    return batches.enumerate().map(change)

  return get_dataset


def poisoned(*indices):
  def change(index, batch):
    bad = tf.reduce_any(index == tf.constant(indices, tf.int64))
    return batch | {"x": tf.where(bad, np.float32("nan"), batch["x"])}

  return changed_rows(change)


def without(*indices):
  def get_dataset(*arguments, **settings):
    batches = datasets.get_dataset(*arguments, **settings).enumerate()
    kept = batches.filter(lambda i, _: tf.reduce_all(i != tf.constant(indices, tf.int64)))
    return kept.map(lambda _, batch: batch)

  return get_dataset


QUIET = {"checkpoint_cfg": engine.CheckpointConfig()}


def test_a_nonfinite_batch_has_no_effect(tmp_path):
  """Skipped on the device: parameters, moments, average and schedule are those of a run over the other batches."""
  model = runs.model()  # Without noise, which depends on the step.
  skipping = runs.train(
    tmp_path / "a", 8, model=model, get_dataset_fn=poisoned(2, 5), stats_period=2, **QUIET
  )
  clean = runs.train(tmp_path / "b", 6, model=model, get_dataset_fn=without(2, 5), **QUIET)
  a, b = runs.flat(skipping), runs.flat(clean)
  assert (a.pop("state/step"), b.pop("state/step")) == (8, 6)
  for name in b:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  lines = runs.lines(tmp_path / "a")
  assert [line["skipped_steps"] for line in lines] == [0, 1, 1, 0]
  losses = [line["loss"] for line in runs.lines(tmp_path / "b")]
  assert [line["loss"] for line in lines] == pytest.approx(
    [(losses[0] + losses[1]) / 2, losses[2], losses[3], (losses[4] + losses[5]) / 2], rel=1e-5
  )


def test_a_run_of_nonfinite_batches_ends_and_names_the_last_good_step(tmp_path):
  settings = RunSettings(max_nonfinite_steps=3)
  rows = poisoned(1, 4, 5, 6, 7, 8, 9)
  with pytest.raises(exits.NotFinite, match="last good step is 4") as stop:
    runs.train(tmp_path, 30, get_dataset_fn=rows, settings=settings, stats_period=20)
  (line,) = runs.lines(tmp_path)  # Of a period that did not end.
  assert line["skipped_steps"] >= 4 and np.isfinite(line["loss"])
  assert (stop.value.last_good_step, stop.value.exit_code) == (4, 65)
  assert checkpoints.complete_steps(tmp_path)[-1] <= 5  # Nothing was saved after the limit.


@pytest.mark.parametrize("limit", [1, 2, 4, 5])
def test_the_host_is_ahead_by_at_most_the_limit_and_never_waits_for_all(
  tmp_path, monkeypatch, limit
):
  """The newest step runs while the host waits, so that the devices are busy."""
  dispatched, ahead, left = [], [], []
  step, wait = TrainingStep.__call__, Trainer.wait_for_steps

  def dispatch(self, state, batch):
    dispatched.append(None)
    return step(self, state, batch)

  def waited(self, in_flight=0):
    within = len(dispatched) < 20  # The end of the run waits for all.
    ahead.append(len(self._in_flight) if within else 0)
    wait(self, in_flight)
    left.append(len(self._in_flight) if within else 1)

  monkeypatch.setattr(TrainingStep, "__call__", dispatch)
  monkeypatch.setattr(Trainer, "wait_for_steps", waited)
  settings = RunSettings(max_steps_in_flight=limit)
  runs.train(tmp_path, 20, settings=settings, stats_period=20, **QUIET)
  assert len(dispatched) == 20
  assert max(ahead) == limit + 1 and min(left) >= 1  # One more is dispatched before the host waits.
  assert max(left) <= limit


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
  """An uninterrupted run to step 12."""
  folder = tmp_path_factory.mktemp("complete")
  return folder, runs.train(folder, 12)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_sigterm_and_ctrl_c_lose_no_step(complete, tmp_path, number, code):
  """The run saves its current step, reports it, and resumes as if uninterrupted."""

  class Stopped:
    def run(self, state, metrics_by_task):
      if int(state.step) == 7:
        os.kill(os.getpid(), number)
      return False

  folder, state = complete
  before = signal.getsignal(number)
  with pytest.raises(
    exits.Preempted, match=r"after step 7; saved in .*checkpoint_7; start"
  ) as stop:
    actions = {"TRAIN": [Stopped()]}
    runs.train(tmp_path, 12, actions=actions, concurrent_metrics=False)
  assert stop.value.exit_code == code
  assert signal.getsignal(number) is before
  assert checkpoints.complete_steps(tmp_path) == [0, 5, 7]
  resumed = runs.flat(runs.train(tmp_path, 12))
  for name, array in runs.flat(state).items():
    np.testing.assert_array_equal(resumed[name], array, err_msg=name)
  ids = [[line["ids"] for line in runs.lines(path)] for path in (folder, tmp_path)]
  assert ids[0] == ids[1]


def test_a_signal_ends_a_run_that_does_not_return_to_python():
  """The second Ctrl-C; of a program without a step, also the first, and SIGTERM."""
  code = """
import hashlib, os, signal, threading, time
from walt_t5x.engine import exits

def ended(number, at_once, trained):
  child = os.fork()
  if child:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  with exits.preemption_notice(at_once=at_once) as outer, exits.preemption_notice() as request:
    assert request is outer
    request.trained = trained
    if trained or not at_once:
      os.kill(os.getpid(), number)
      assert request(1)
      time.sleep(0.5)
    if number == signal.SIGINT or not trained:
      threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
      # Like a compilation, minutes in C that no signal interrupts.
      hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
  os._exit(0)

for case in [
  (signal.SIGINT, False, False),
  (signal.SIGINT, True, True),
  (signal.SIGTERM, True, True),
  (signal.SIGINT, True, False),
  (signal.SIGTERM, True, False),
]:
  print(ended(*case))
"""
  started = time.monotonic()
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert done.stdout.split() == ["130", "130", "0", "130", "75"], done.stderr
  assert time.monotonic() - started < 40
  lines = done.stderr.splitlines()
  assert len(lines) == 5 and all("a second Ctrl-C" in line for line in lines[:2])
  assert ["before the first step" in line for line in lines] == [False, False, False, True, True]


def test_sigterm_before_the_first_step_ends_a_resumed_run_at_its_step(tmp_path):
  """Even if a batch is already read ahead and the step has no checkpoint."""

  def terminate(*_):
    os.kill(os.getpid(), signal.SIGTERM)

  save = engine.CheckpointConfig(
    engine.SaveCheckpointConfig(checkpoint_steps=[3], save_dataset=True)
  )
  with pytest.raises(exits.Preempted, match="after step 0; no step was taken"):
    runs.train(tmp_path, 5, checkpoint_cfg=save, summarize_config_fn=terminate)
  runs.train(tmp_path, 5, checkpoint_cfg=save)
  assert checkpoints.complete_steps(tmp_path) == [3, 5]


def test_a_slow_reader_is_visible_in_the_metrics(tmp_path, monkeypatch):
  read, calls = ShardedIterator._read, []

  def slow(self):
    calls.append(None)
    time.sleep(1.0 if len(calls) == 4 else 0.0)
    return read(self)

  monkeypatch.setattr(ShardedIterator, "_read", slow)
  runs.train(tmp_path, 8, stats_period=2, **QUIET)
  lines = runs.lines(tmp_path)
  waited = [2 * line["data_wait_share"] / line["steps_per_second"] for line in lines]
  # The fourth batch is in the second period; its rate and its share are of intervals that differ by milliseconds.
  assert waited[1] > 0.9
  assert lines[1]["goodput/data_seconds"] - lines[0]["goodput/data_seconds"] > 1.0
  assert sum(lines[-1][f"goodput/{phase}_seconds"] for phase in PHASES) > sum(waited)


def test_a_hang_dumps_the_stacks_and_exits(tmp_path, monkeypatch, capfd):
  """A reader that never returns; the exit is caught to keep the test running."""
  left, ended, code = threading.Event(), threading.Event(), []

  def leave(status):
    code.append(status)
    left.set()
    ended.wait(60)

  monkeypatch.setattr(os, "_exit", leave)

  def stuck(index, batch):
    def wait(i):
      if i == 4:
        left.wait(60)
      return i

    with tf.control_dependencies([tf.py_function(wait, [index], tf.int64)]):
      return {k: tf.identity(v) for k, v in batch.items()}

  settings = RunSettings(watchdog_seconds=5.0)
  runs.train(tmp_path, 6, get_dataset_fn=changed_rows(stuck), settings=settings, **QUIET)
  ended.set()
  assert code == [exits.HUNG]
  (report,) = tmp_path.glob("hang_step*_host0.txt")
  text = report.read_text()
  assert "while: data" in text and "in wait" in text and "data_iterator.py" in text
  assert "data_iterator.py" in capfd.readouterr().err
  metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  (hang,) = [line for line in metrics if "hang_seconds" in line]
  assert hang["hang_seconds"] > 5 and hang["goodput/data_seconds"] > 4.5
  assert hang["step"] >= 3  # The last of 4 steps may not be reported yet.


@pytest.fixture
def watched(monkeypatch):
  """When a watchdog whose thread wakes up every 3 s ends the process, with `f(dog, now)` called at each of them."""
  now, left = [0.0], []
  monkeypatch.setattr(watchdog, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
  monkeypatch.setattr(watchdog.locks, "leave", lambda code: left.append((code, now[0])))

  def until_left(at_each_tick, **limits):
    dog = watchdog.Watchdog(limits=limits, model_dir=None)
    monkeypatch.setattr(dog, "_report", lambda silent, limit: None)

    def wait(seconds):
      now[0] += seconds + (at_each_tick(dog, now[0]) or 0.0)
      return left

    monkeypatch.setattr(dog, "_stop", types.SimpleNamespace(wait=wait, is_set=lambda: False))
    dog.enter(next(iter(limits)))
    dog._watch()
    return left

  return until_left


def test_time_in_which_the_process_was_suspended_is_no_hang(watched):
  """The thread wakes up once after a suspension of 40 s."""
  left = watched(lambda dog, now: 40.0 if now == 12.0 else 0.0, **{STEP: 30.0})
  assert left == [(exits.HUNG, 40.0 + 33.0)]


def test_a_phase_under_its_limit_is_no_hang(watched):
  """The limits are those of the phases, and their times do not add up; the last phase hangs."""
  phases = {27.0: "restore", 111.0: "compile", 168.0: "first_batch"}

  def advance(dog, now):
    if now in phases:
      dog.enter(phases[now])
    if now in (195.0, 213.0):
      dog.beat()

  left = watched(advance, data=30.0, compile=60.0, first_batch=30.0)  # None for `restore`.
  assert left == [(exits.HUNG, 213.0 + 33.0)]


def test_flops_equal_xlas_count_and_loops_count_per_iteration():
  """Compared with XLA's cost analysis for programs that it counts correctly: those without loops."""
  x, w, k = jnp.ones((16, 32)), jnp.ones((4, 32, 32)), jnp.ones((3, 3, 4, 8))
  image = jnp.ones((2, 16, 16, 4))

  def unrolled(x, w):
    for layer in w:
      x = x @ layer
    return (x**2).sum()

  def scanned(x, w, body=lambda c, layer: (c @ layer, None)):
    return (jax.lax.scan(body, x, w)[0] ** 2).sum()

  def layer(c, w):
    return jnp.tanh(c @ w) @ w, None

  def remat(x, w):
    return scanned(x, w, jax.checkpoint(layer))

  def convolved(k):
    numbers = ("NHWC", "HWIO", "NHWC")
    return (
      jax.lax.conv_general_dilated(image, k, (1, 1), "VALID", dimension_numbers=numbers).sum() ** 2
    )

  def counted(f, *arguments):
    return count_flops(jax.make_jaxpr(jax.grad(f, argnums=len(arguments) - 1))(*arguments))

  def xla(f, *arguments):
    compiled = jax.jit(jax.grad(f, argnums=len(arguments) - 1)).lower(*arguments).compile()
    return compiled.cost_analysis()["flops"]

  assert counted(unrolled, x, w) == pytest.approx(xla(unrolled, x, w), rel=0.05)
  assert counted(scanned, x, w) == pytest.approx(counted(unrolled, x, w), rel=0.15)
  assert counted(remat, x, w) == counted(lambda x, w: scanned(x, w, layer), x, w)
  assert counted(convolved, k) == pytest.approx(xla(convolved, k), rel=0.05)


def test_utilization_is_flops_over_the_peak_of_all_devices(tmp_path):
  settings = RunSettings(peak_flops_per_device=1e9)
  mesh = some_devices(2)
  runs.train(tmp_path, 4, settings=settings, stats_period=2, partitioner=mesh, **QUIET)
  line = runs.lines(tmp_path)[-1]
  # Two products forward (8x4 @ 4x8, 8x8 @ 8x1), the gradients of both weights and of the value between them.
  operations = 2 * 8 * (4 * 8 + 8) + 2 * 8 * (4 * 8 + 8) + 2 * 8 * 8
  expected = operations * line["steps_per_second"] / 2e9
  assert line["model_flops_utilisation"] == pytest.approx(expected, rel=1e-6)


def test_a_trace_is_written_on_request(tmp_path):
  (tmp_path / "profile_now").write_text("2\n")
  runs.train(tmp_path, 6, stats_period=2, **QUIET)
  assert not (tmp_path / "profile_now").exists()
  assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))


def test_settings_are_checked():
  for bad in (
    {"watchdog_seconds": 0},
    {"start_limits": {"compiling": 3.0}},
    {"start_limits": {"compile": 0}},
    {"max_steps_in_flight": 0},
    {"profile_steps": (5, 5)},
  ):
    with pytest.raises(ValueError, match=f"RunSettings.{next(iter(bad))}: got"):
      RunSettings(**bad)
