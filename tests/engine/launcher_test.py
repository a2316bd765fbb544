"""The launcher, its gin files, and the files of a run."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest
from absl import flags

import gin
from tests import programs
from tests.engine import runs, toy
from walt_t5x import engine
from walt_t5x import train as launcher
from walt_t5x.config import gin_config, gin_flags
from walt_t5x.engine import checkpoints, exits, run_record, watchdog
from walt_t5x.engine.builtin import train_loop
from walt_t5x.engine.builtin.checkpoint_manager import CheckpointManager
from walt_t5x.engine.builtin.data_iterator import ShardedIterator
from walt_t5x.engine.builtin.main_loop import MainLoop
from walt_t5x.engine.builtin.restoring import Restorer
from walt_t5x.engine.builtin.seeds import drawn_seed
from walt_t5x.engine.builtin.summaries import JsonLinesWriter
from walt_t5x.engine.builtin.train_state import StateInitializer
from walt_t5x.engine.builtin.trainer import Trainer
from walt_t5x.engine.run_settings import START_LIMITS
from walt_t5x.files import locks, storage
from walt_t5x.files.mismatch import Mismatch


@pytest.fixture
def launch(monkeypatch):
  """Runs the launcher's main in this process."""
  gin.clear_config()
  values = flags.FlagValues()
  monkeypatch.setattr(flags, "DEFINE_multi_string", _into(flags.DEFINE_multi_string, values))
  for kind in ("string", "list", "boolean", "integer"):
    monkeypatch.setattr(flags, f"DEFINE_{kind}", _into(getattr(flags, f"DEFINE_{kind}"), values))
  for module in (launcher, gin_flags):
    monkeypatch.setattr(module, "FLAGS", values)
  launcher.define_flags()

  def run(*args: str) -> None:
    values(gin_config.rewrite_gin_args(["train", *args]))
    launcher.main(["train"])

  yield run
  gin.clear_config()
  vars(sys.modules["__main__"]).pop("train", None)


def _into(define, values):
  return lambda *args, **settings: define(*args, **settings, flag_values=values)


TOY = "--gin_file=tests/engine/toy.gin"


def test_importing_the_package_is_cheap():
  code = "import sys, walt_t5x, walt_t5x.engine; assert not {'jax', 'tensorflow', 'gin'} & set(sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)


def test_a_relative_model_folder_saves_and_resumes(launch, tmp_path, monkeypatch):
  toy_gin = f"--gin_file={os.path.abspath('tests/engine/toy.gin')}"
  monkeypatch.chdir(tmp_path)
  for steps in (2, 4):
    launch(toy_gin, '--gin.MODEL_DIR="a/run"', f"--gin.TRAIN_STEPS={steps}", "--gin.SAVE_PERIOD=2")
    gin.clear_config()
    assert checkpoints.checkpoint_step("a/run") == steps


def test_a_folder_in_which_another_training_runs_is_left_alone(launch, tmp_path):
  with launcher.alone(str(tmp_path)):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(SystemExit, match=f"{tmp_path} is in use by train: process {os.getpid()}"):
      launch(TOY, f'--gin.MODEL_DIR="{tmp_path}"', "--gin.TRAIN_STEPS=10")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before
  assert not list(tmp_path.iterdir())


def test_a_gin_file_trains_and_is_recorded(launch, tmp_path):
  launch(TOY, f'--gin.MODEL_DIR="{tmp_path}"', "--gin.TRAIN_STEPS=10", "--gin.STATS_PERIOD=2")
  lines = runs.lines(tmp_path)
  assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]  # One line per stats period.
  for line in lines:
    assert {"loss", "learning_rate", "gradient_norm"} <= line.keys()
    assert line["steps_per_second"] > 0 and 0 <= line["data_wait_share"] <= 1
    assert line["rows_per_second"] == pytest.approx(8 * line["steps_per_second"])
  assert "compile_seconds" in lines[0]
  assert lines[1]["learning_rate"] == pytest.approx(
    float((runs.SCHEDULE(2) + runs.SCHEDULE(3)) / 2)
  )
  every = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [e["step"] for e in every if "training_eval/engine_toy/loss" in e] == [10]
  config = (tmp_path / "config.gin").read_text()
  assert "import __main__ as train_script" in config
  assert "train_script.train.stats_period = %STATS_PERIOD" in config
  assert "target/kernel" in (tmp_path / "model-info.txt").read_text()
  assert not (tmp_path / "train.lock").exists()


def test_a_run_that_stops_early_exits_with_its_code(launch, tmp_path):
  """A learning rate at which the parameters overflow float32; the gin file sets the limit."""
  with pytest.raises(SystemExit) as end:
    launch(
      TOY,
      f'--gin.MODEL_DIR="{tmp_path}"',
      "--gin.TRAIN_STEPS=50",
      "--gin.schedules.warmup_cosine.peak=1e30",
    )
  assert end.value.code == 65
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert sum(line.get("skipped_steps", 0) for line in lines) >= 3


HANGS = """
from __gin__ import dynamic_registration
import __main__ as train_script
from tests.engine import toy
from walt_t5x import engine
from walt_t5x.engine import run_settings
include 'tests/engine/toy.gin'
train_script.train.get_dataset_fn = @toy.rows_that_hang
engine.SaveCheckpointConfig.save_dataset = False  # The position of a Python function cannot be saved.
SAVE_PERIOD = 2
run_settings.RunSettings.watchdog_seconds = 4.0
"""


SLOW_CHECKPOINTS = """
import runpy, sys
from orbax.checkpoint import checkpoint_manager
checkpoint_manager._WAIT_FOR_PREV_SAVE_WARNING_THRESHOLD_SECS = -1.0
sys.argv[0] = "walt_t5x.train"
runpy.run_module("walt_t5x.train", run_name="__main__", alter_sys=True)
"""


def test_a_run_says_little_and_libraries_only_warn(tmp_path):
  """Checkpoints say nothing and progress has a pace (`config.waiting`): the number of steps adds no line."""
  arguments = [TOY, "--gin.TRAIN_STEPS=60", "--gin.SAVE_PERIOD=10", f'--gin.MODEL_DIR="{tmp_path}"']
  arguments += ["--gin.train_script.train.eval_period=60"]
  done = programs.run_in_a_new_shell("-c", SLOW_CHECKPOINTS, *arguments)
  assert done.returncode == 0, done.stderr
  lines = done.stderr.splitlines()
  assert len(lines) <= 12 and lines[-1].endswith("Trained steps 0 to 60."), done.stderr
  assert checkpoints.complete_steps(tmp_path)[-1] == 60
  assert any(line.startswith("step 60/60") for line in lines)
  others = [line for line in lines if not line.startswith(("I", "step ", "train: "))]
  # The toy task has no cache.
  assert [line for line in others if "uncached FunctionDataset" not in line] == []
  logged = re.findall(r"^I\d{4} .* (\w+\.py):\d+\]", done.stderr, re.MULTILINE)
  ours = {file.name for file in (programs.ROOT / "walt_t5x").rglob("*.py")}
  assert logged and set(logged) <= ours


def test_a_hang_ends_the_process(tmp_path):
  """A real process, whose main thread waits for data that never arrives."""
  (tmp_path / "hangs.gin").write_text(HANGS)
  arguments = [f"--gin_file={tmp_path / 'hangs.gin'}", f'--gin.MODEL_DIR="{tmp_path}"']
  ended = programs.run(
    "walt_t5x.train",
    *arguments,
    "--gin.TRAIN_STEPS=10",
    environment=programs.ONE_DEVICE | {"WALT_T5X_ENGINE": "builtin"},
  )
  assert ended.returncode == exits.HUNG == 70, ended.stderr[-3000:]
  assert "No progress for" in ended.stderr and "data_iterator.py" in ended.stderr
  (report,) = tmp_path.glob("hang_step*_host0.txt")
  text = report.read_text()
  assert "after step 6, while: data" in text and "data_iterator.py" in text
  assert checkpoints.complete_steps(tmp_path)[-1] == 6  # A restart resumes from it.


# Phase -> (object, name) of a function in which it can hang.
CALLS = {
  "backend": (jax, "devices"),
  "lock": (locks, "held"),
  "data": (train_loop, "ShardedIterator"),
  "restore": (Restorer, "newest"),
  "initialize": (StateInitializer, "from_scratch"),
  "record": (train_loop, "write_model_info"),
  "first_evaluation": (Trainer, "eval"),
  "first_save": (CheckpointManager, "save"),
  "compile": (Trainer, "compile_train"),
  "first_batch": (ShardedIterator, "_read"),
}


def test_each_phase_of_the_start_has_a_limit(launch, tmp_path, monkeypatch, caplog):
  """Each hangs once, in one start: where the process would end, the hang does."""
  freed, entered = {phase: threading.Event() for phase in CALLS}, threading.Event()
  now, codes = [""], []
  assert CALLS.keys() == START_LIMITS.keys()

  def hanging(phase, function):
    def call(*arguments, **settings):
      assert freed[phase].wait(60)
      return function(*arguments, **settings)

    return call

  def leave(code):
    codes.append(code)
    entered.clear()
    freed[now[0]].set()
    assert entered.wait(60)

  def enter(self, phase, original=watchdog.Watchdog.enter):
    original(self, phase)
    now[0] = phase
    entered.set()

  for phase, (owner, name) in CALLS.items():
    monkeypatch.setattr(owner, name, hanging(phase, getattr(owner, name)))
  monkeypatch.setattr(locks, "leave", leave)
  monkeypatch.setattr(watchdog.Watchdog, "enter", enter)
  limits = dict.fromkeys(START_LIMITS, 0.2)
  launch(
    TOY,
    f'--gin.MODEL_DIR="{tmp_path}"',
    "--gin.TRAIN_STEPS=1",
    "--gin.train_script.train.run_eval_before_training=True",
    f"--gin.run_settings.RunSettings.start_limits={limits}",
  )
  assert codes == [exits.HUNG] * len(START_LIMITS)
  for phase in START_LIMITS:
    (report,) = tmp_path.glob(f"hang_{phase}_host*.txt")
    assert re.match(
      rf"no progress for \d+ s in the phase '{phase}' of the start\n", report.read_text()
    )
    assert f"in the phase '{phase}' of the start. The limit is" in caplog.text
    assert f"to raise it: --gin.START_LIMITS=\"{{'{phase}': 0.4}}\"" in caplog.text
  assert [line["step"] for line in runs.lines(tmp_path)] == [1]


def test_signals_end_a_hang_of_the_first_batch(launch, tmp_path):
  """Real processes; the next start trains in their folder."""
  (tmp_path / "hangs.gin").write_text(HANGS + "toy.rows_that_hang.at = 0\n")
  numbers = {exits.PREEMPTED: signal.SIGTERM, exits.INTERRUPTED: signal.SIGINT}
  started = {
    code: programs.start(
      "walt_t5x.train",
      f"--gin_file={tmp_path / 'hangs.gin'}",
      f'--gin.MODEL_DIR="{tmp_path / str(code)}"',
      "--gin.TRAIN_STEPS=1",
      environment={"XLA_FLAGS": "", "WALT_T5X_ENGINE": "builtin"},
    )
    for code in numbers
  }
  for code, program in started.items():
    while "the reader hangs" not in Path(program.files[1]).read_text():
      assert program.running()
      time.sleep(0.1)
    os.kill(program.process.pid, numbers[code])
    ended = program.wait(30)
    assert ended.returncode == code, ended.stderr[-3000:]
    assert f"{numbers[code].name} before the first step" in ended.stderr
    assert not (tmp_path / str(code) / "train.lock").exists()
  launch(TOY, f'--gin.MODEL_DIR="{tmp_path / str(code)}"', "--gin.TRAIN_STEPS=1")
  assert [line["step"] for line in runs.lines(tmp_path / str(code))] == [1]


def test_sigterm_after_the_first_step_saves(launch, tmp_path, monkeypatch):
  left = []

  def terminate(self, step, original=MainLoop._on_finished):
    original(self, step)
    os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(locks, "leave", left.append)
  monkeypatch.setattr(MainLoop, "_on_finished", terminate)
  with pytest.raises(SystemExit) as end:
    launch(TOY, f'--gin.MODEL_DIR="{tmp_path}"', "--gin.TRAIN_STEPS=50")
  assert end.value.code == exits.PREEMPTED and not left
  assert 0 < checkpoints.complete_steps(tmp_path)[-1] < 50


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--gin.TRAIN_STEPZ=3", "Did you mean --gin.TRAIN_STEPS?"),
    (
      "--gin.train/engine.DatasetConfig.batch_sise=3",
      "mean --gin.train/engine.DatasetConfig.batch_size?",
    ),
    ("--gin.engine.Trainr.num_microbatches=3", "mean --gin.engine.Trainer.num_microbatches?"),
    ("--gin.STATS_PERIOD=@nothing()", "nothing"),
    ("--gin_file=no_such.gin", "no_such.gin"),
  ],
)
def test_a_typo_ends_the_launch_with_a_message(launch, tmp_path, capfd, argument, message):
  with pytest.raises(SystemExit, match="2"):
    launch(TOY, f'--gin.MODEL_DIR="{tmp_path}"', "--gin.TRAIN_STEPS=1", argument)
  told = capfd.readouterr().err
  assert message in told and len(told.splitlines()) <= 6


def test_ctrl_c_outside_the_steps_prints_one_line(launch, tmp_path, monkeypatch, capfd):
  def interrupted(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(gin_config, "configured", lambda *_: interrupted)
  with pytest.raises(SystemExit) as end:
    launch(TOY, f'--gin.MODEL_DIR="{tmp_path}"', "--gin.TRAIN_STEPS=1")
  assert end.value.code == 130
  said = [line for line in capfd.readouterr().err.splitlines() if line]
  # A slow machine announces its waits.
  said = [line for line in said if ": importing " not in line]
  assert said == ["train: interrupted; the same command resumes from the last checkpoint"]


def test_gin_arguments_are_rewritten():
  assert gin_config.rewrite_gin_args(["--gin.A=1", "--gin.x/f.y='=z'", "--gin_file=a"]) == [
    "--gin_bindings=A = 1",
    "--gin_bindings=x/f.y = '=z'",
    "--gin_file=a",
  ]
  with pytest.raises(gin_config.GinError, match=r"--gin\.A : write --gin\.A=VALUE"):
    gin_config.rewrite_gin_args(["--gin.A"])


def test_the_data_must_have_the_same_meaning(tmp_path, monkeypatch):
  given = {"schema_version": 1, "vae": {"fingerprint": "aa"}, "text_encoder": {"fingerprint": "tt"}}
  recorded = tmp_path / "provenance.json"
  monkeypatch.setattr(toy.TASK, "walt_provenance", given, raising=False)
  runs.train(tmp_path, 1)
  assert storage.read_json(recorded) == given
  run_record.record(str(tmp_path), given | {"fps": 8})  # Not a required field.
  other = given | {"vae": {"fingerprint": "bb"}}
  monkeypatch.setattr(toy.TASK, "walt_provenance", other)
  with pytest.raises(Mismatch) as error:
    runs.train(tmp_path, 2)
  for part in ("vae.fingerprint", "'aa'", "'bb'", "another MODEL_DIR"):
    assert part in str(error.value)
  assert storage.read_json(recorded) == given


def test_a_start_that_is_not_accepted_records_no_data(tmp_path, monkeypatch):
  monkeypatch.setattr(toy.TASK, "walt_provenance", {"fps": 8}, raising=False)

  def reject(*_):
    raise Mismatch("to fail")

  with pytest.raises(Mismatch, match="to fail"):
    runs.train(tmp_path, 1, summarize_config_fn=reject)
  assert not (tmp_path / "provenance.json").exists()


def test_an_incomplete_line_is_removed(tmp_path):
  file = tmp_path / "metrics.jsonl"
  file.write_text('{"step": 1}\n{"step": 2, "lo')
  writer = JsonLinesWriter(str(file), prefix="p")
  writer.write_scalars(3, {"x": float("nan"), "y": 0.5})
  assert [json.loads(line) for line in file.read_text().splitlines()] == [
    {"step": 1},
    {"step": 3, "p/x": "NaN", "p/y": 0.5},
  ]


def test_a_drawn_seed_is_drawn_once(tmp_path):
  """Without a seed two runs differ, and a resumed run keeps its seed."""
  for name in "ab":
    (tmp_path / name).mkdir()
  first, again, other = (drawn_seed(str(tmp_path / name)) for name in "aab")
  assert first == again != other


class _Stop:
  def __init__(self, step: int):
    self.step, self.seen = step, []

  def run(self, train_state, metrics_by_task):
    self.seen.append(metrics_by_task["train"]["loss"])
    return len(self.seen) == self.step


def test_an_action_stops_the_run(tmp_path):
  stop = _Stop(3)
  state = runs.train(tmp_path, 10, actions={"TRAIN": [stop]}, concurrent_metrics=False)
  assert int(state.step) == 3
  assert stop.seen == [line["loss"] for line in runs.lines(tmp_path)]
  assert engine.checkpoints.complete_steps(tmp_path) == [0, 3]


def test_arguments_are_checked(tmp_path):
  with pytest.raises(TypeError, match="unexpected keyword argument 'eval_perod'"):
    runs.train(tmp_path, 1, eval_perod=1)
  with pytest.raises(ValueError, match="infer_eval_dataset_cfg must be None"):
    runs.train(tmp_path, 1, infer_eval_dataset_cfg=runs.dataset())
  with pytest.raises(ValueError, match="got 'float8'"):
    engine.SaveCheckpointConfig(dtype="float8")
  with pytest.raises(ValueError, match="checkpointer_cls"):
    engine.SaveCheckpointConfig(checkpointer_cls=object)


def test_the_environment_selects_the_engine(monkeypatch):
  choose = engine.use_t5x.__wrapped__
  monkeypatch.setenv("WALT_T5X_ENGINE", "builtin")
  assert choose() is False
  monkeypatch.setenv("WALT_T5X_ENGINE", "jax")
  with pytest.raises(ValueError, match="expected 'auto', 't5x' or 'builtin'"):
    choose()


def test_steps_of_a_period_are_averaged_over_their_examples(tmp_path):
  runs.train(tmp_path / "1", 6, checkpoint_cfg=engine.CheckpointConfig(), stats_period=1)
  runs.train(tmp_path / "3", 6, checkpoint_cfg=engine.CheckpointConfig(), stats_period=3)
  single = [line["loss"] for line in runs.lines(tmp_path / "1")]
  triple = [line["loss"] for line in runs.lines(tmp_path / "3")]
  assert triple == pytest.approx([sum(single[:3]) / 3, sum(single[3:]) / 3], rel=1e-5)
