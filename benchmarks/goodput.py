"""The goodput of a job that is killed twice, by `walt_t5x.engine.goodput` and by Google's `ml-goodput-measurement`.

  pip install --no-deps --target=/tmp/goodput ml-goodput-measurement
  python -m benchmarks.goodput --library=/tmp/goodput

A toy training with steps of 0.2 s, evaluations of 1 s, a restore of 2 s and a first batch of 8 s is killed by SIGKILL,
twice. The engine keeps its records; the library reads a log of the same starts, which patches of the engine write: an
entry for every step, and when something begins or ends. Modules of Google Cloud that the library imports are replaced.
Prints the table, and writes goodput.json and .md next to this file.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import results

HERE = Path(__file__).resolve().parent
STEP_SECONDS, EVALUATION_SECONDS, RESTORE_SECONDS, DATA_SECONDS = 0.2, 1.0, 2.0, 8.0
# The step in which a start is killed; None for the last start.
KILLS = (38, 71, None)
PAUSE = 3.0
SETTINGS = {
  "TRAIN_STEPS": 80,
  "SAVE_PERIOD": 20,
  "STATS_PERIOD": 2,
  "train_script.train.eval_period": 25,
}
STUBS = ("google.cloud.logging", "google.cloud.monitoring_v3", "tensorboardX")
PREP, INIT, DATA, CUSTOM = "training_prep", "tpu_init", "data_loading", "custom_badput_event"


def start(events: str, arguments: Sequence[str]) -> None:
  """Runs `walt_t5x.train`, slowed down, and appends the library's entries to a file."""
  from walt_t5x.engine import watchdog
  from walt_t5x.engine.builtin.checkpoint_manager import CheckpointManager
  from walt_t5x.engine.builtin.data_iterator import ShardedIterator
  from walt_t5x.engine.builtin.main_loop import MainLoop
  from walt_t5x.engine.builtin.restoring import Restorer
  from walt_t5x.engine.builtin.trainer import Trainer

  log = open(events, "a", buffering=1, encoding="utf-8")

  def tell(**entry: Any) -> None:
    log.write(json.dumps({"job_name": "job"} | entry) + "\n")

  def times(name: str, edge: str, **more: Any) -> None:
    tell(**{f"{name}_{edge}_time": time.time()}, **more)

  def wrapped(owner: Any, name: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    setattr(owner, name, lambda *a, **k: around(lambda: original(*a, **k), *a))

  def made(call: Callable[[], Any], *_: Any) -> None:
    call()
    times("job", "start")
    times(INIT, "start")

  def entered(call: Callable[[], Any], dog: Any, phase: str) -> None:
    ends = {"data": INIT, "first_save": PREP, "step": DATA}
    begins = {"data": PREP, "first_batch": DATA}
    # The launcher enters "data", and the training again.
    if phase in ends and phase != dog._phase:
      times(ends[phase], "end")
    if phase in begins and phase != dog._phase:
      times(begins[phase], "start")
    call()

  def restored(call: Callable[[], Any], *_: Any) -> Any:
    times(PREP, "end")
    began = time.time()
    time.sleep(RESTORE_SECONDS)
    found = call()
    seconds = time.time() - began
    names = ("checkpoint_manager_duration_secs", "checkpointer_duration_secs")
    # The library averages over the restores of one step.
    tell(step=int(began), event_type="restore", directory="d", **dict.fromkeys(names, seconds))
    times(PREP, "start")
    return found

  def saved(call: Callable[[], Any], _: Any, step: int, *__: Any) -> Any:
    began = time.time()
    found = call()
    names = (
      "checkpoint_manager_blocking",
      "checkpointer_blocking",
      "wait_for_prev",
      "get_old_steps",
    )
    seconds = {f"{name}_duration_secs": time.time() - began for name in names}
    tell(step=step, event_type="save", directory="d", **seconds)
    return found

  def stepped(call: Callable[[], Any], _: Any, step: int) -> Any:
    times("step", "start", step_count=step)
    time.sleep(STEP_SECONDS)
    return call()

  def evaluated(call: Callable[[], Any], *_: Any) -> Any:
    times(CUSTOM, "start", custom_badput_event_type="EVALUATION")
    time.sleep(EVALUATION_SECONDS)
    found = call()
    times(CUSTOM, "end", custom_badput_event_type="EVALUATION")
    return found

  delays = [DATA_SECONDS]

  def read(call: Callable[[], Any], *_: Any) -> Any:
    time.sleep(delays.pop() if delays else 0.0)
    return call()

  wrapped(watchdog.Watchdog, "__post_init__", made)
  wrapped(watchdog.Watchdog, "enter", entered)
  wrapped(Restorer, "newest", restored)
  wrapped(CheckpointManager, "save", saved)
  wrapped(MainLoop, "_before_step", stepped)
  wrapped(Trainer, "eval", evaluated)
  wrapped(ShardedIterator, "_read", read)
  sys.argv = ["walt_t5x.train", *arguments]
  try:
    runpy.run_module("walt_t5x.train", run_name="__main__", alter_sys=True)
  finally:
    times("job", "end")


def run(folder: Path) -> tuple[Path, Path]:
  """Trains with kills; the run's folder, and the library's log."""
  run, events = folder / "run", folder / "events.jsonl"
  events.touch()
  flags = [f"--gin.{name}={value}" for name, value in SETTINGS.items()]
  flags += ["--gin_file=tests/engine/toy.gin", f'--gin.MODEL_DIR="{run}"']
  for kill in KILLS:
    process = subprocess.Popen(
      [sys.executable, "-m", "benchmarks.goodput", f"--start={events}", *flags],
      env=os.environ | {"WALT_T5X_ENGINE": "builtin"},
      stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and (kill is None or f'"step_count": {kill}' not in _last(events)):
      time.sleep(0.02)
    process.kill()
    if kill is None:
      assert process.wait() == 0, process.returncode
    else:
      process.wait()
      time.sleep(PAUSE)
  return run, events


def _last(file: Path) -> str:
  return "".join(file.read_text("utf-8").splitlines(keepends=True)[-1:])


def of_the_library(library: Path, events: Path, folder: Path) -> dict[str, float]:
  """Seconds by the library: "goodput", each badput, "elapsed"."""
  sys.path.insert(0, str(library))
  for name in STUBS:
    sys.modules[name] = module = mock.MagicMock()
    package, _, leaf = name.rpartition(".")
    if package:
      setattr(importlib.import_module(package), leaf, module)
  from ml_goodput_measurement.src import (
    goodput as theirs,  # pyright: ignore[reportMissingImports]
  )

  entries = [json.loads(line) for line in events.read_text("utf-8").splitlines()]

  class Log:
    def read_cloud_logging_entries(self, *_: Any, **__: Any) -> tuple[list[Any], Any]:
      return entries, None

  calculator = theirs.GoodputCalculator("job", "log", Log(), cache_dir=str(folder / "cache"))
  calculator.get_job_goodput()
  details = calculator.get_job_goodput_details()
  badput = {kind.name.lower(): seconds for kind, seconds in details["badput_time"].items()}
  badput["custom_badput_events"] = sum(badput["custom_badput_events"].values())
  (goodput,) = details["goodput_time"].values()
  return badput | {"goodput": goodput, "elapsed": details["total_elapsed_time"]}


def page(ours: Mapping[str, float], theirs: Mapping[str, float], version: str) -> str:
  lines = [f"| {name} | {ours[name]:.1f} | {theirs[name]:.1f} |" for name in ours]
  kills = " and ".join(str(kill) for kill in KILLS if kill)
  return f"""# Goodput

    pip install --no-deps --target=/tmp/goodput ml-goodput-measurement
    python -m benchmarks.goodput --library=/tmp/goodput

A toy training that SIGKILL ends in step {kills}: seconds by `walt_t5x.engine.goodput`, and by Google's
`ml-goodput-measurement` {version} from a log of the same starts.

| seconds | engine | library |
| --- | --- | --- |
{chr(10).join(lines)}

Where they differ:

- The library has no entry for a compilation before the first step, which is part of its `other`.
- An evaluation that a restart repeats, and the one after the last step, are `custom_badput_events` of the engine only.
  The library counts them with the steps.
- The library counts the data loading of every second restart twice, so that its parts add up to more than `elapsed`.
- The library knows each step of a killed start, the engine those before its last record. The time after that is
  `infrastructure_recovery_from_disruption`.
"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--library", type=Path, help="folder with ml_goodput_measurement")
  parser.add_argument("--start", help=argparse.SUPPRESS)
  arguments, flags = parser.parse_known_args()
  if arguments.start:
    start(arguments.start, flags)
    return
  from walt_t5x.engine import goodput

  if arguments.library is None:
    parser.error("--library is required")
  with tempfile.TemporaryDirectory() as work:
    folder = Path(work)
    model_dir, events = run(folder)
    account = goodput.account(goodput.read(model_dir))
    theirs = of_the_library(arguments.library, events, folder)
  ours = {"goodput": account.productive, **account.badput, "elapsed": account.elapsed}
  version = importlib.metadata.version("ml-goodput-measurement")
  text = page(ours, theirs, version)
  results.write(HERE, "goodput", text, {"engine": ours, "library": theirs, "version": version})


if __name__ == "__main__":
  main()
