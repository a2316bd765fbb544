"""Trains one run in two processes with `jax.distributed`; kills and resumes them, and moves to one process and back.

  python -m benchmarks.engine_hosts                 # all parts; writes benchmarks/engine_hosts.{md,json}
  python -m benchmarks.engine_hosts --part moves    # one of them

Each process has 4 fake CPU devices; they communicate over the loopback interface. The run is benchmarks/engine_run.gin
on videos only, so that an epoch is a fixed number of steps.

kills, in the order of the files:

  disjoint      no example is read by both processes
  epoch         the steps of the first epoch read all examples, each once
  killed        both are killed with SIGKILL in the middle of an epoch and restarted: parameters, average, optimizer
                state and the examples of every step are bit-identical to those of an undisturbed pair
  terminated    SIGTERM to one of them: both save the same step and exit with 75, and the pair resumes unchanged

moves, in a shuffled order of twelve files (no shuffle buffer, which would mix adjacent epochs): a pair stops in the
middle of an epoch, one process with 8 devices resumes, then a pair again:

  moved_steps   each step is trained once, from the step that was reached
  full_epochs  after each move the next steps read all examples, each once (docs/pods.md)
  another_order the second pair reads them in another order than the first

local, with parameters sharded over both processes, a checkpoint every 30 steps, and a local one every 10 in a folder of
each process. Ten times one or both are killed with SIGKILL at a random moment, and sometimes the folder of the killed
one is deleted, as a lost host's is:

  lost          steps that were taken again after each kill; at most 10
  ended         exit code of the first process that was not killed, and the seconds until it noticed
  state_identical, rows_identical   at the end, to an undisturbed pair
  stall         seconds for which a local checkpoint blocked the undisturbed loop, by those of another: medians
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROWS, BATCH, STEPS = 48, 8, 24
EPOCH = ROWS // BATCH


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def start(
  folder: Path, work: Path, *bindings: str, processes: int, steps: int = STEPS, devices: int = 8
) -> list[subprocess.Popen]:
  """Starts one run of `processes` processes with `devices` in total; `PROCESS` in a binding is the number of one."""
  port = free_port()
  started = []
  for index in range(processes):
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "TF_CPP_MIN_LOG_LEVEL": "3",
      "WALT_T5X_ENGINE": "builtin",
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}",
    }
    if processes > 1:
      environment |= {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
      }
    command = [
      sys.executable,
      "-m",
      "walt_t5x.train",
      "--gin_file=benchmarks/engine_hosts.gin",
      f'--gin.MODEL_DIR="{folder}"',
      f"--gin.TRAIN_STEPS={steps}",
      f"--seqio_additional_cache_dirs={work / 'cache'}",
      "--verbosity=-1",
      *(binding.replace("PROCESS", str(index)) for binding in bindings),
    ]
    log = (work / f"{folder.name}_{index}.log").open("a")
    started.append(
      subprocess.Popen(command, cwd=HERE.parent, env=environment, stdout=log, stderr=log)
    )
  return started


def finish(processes: list[subprocess.Popen], folder: Path, work: Path, expected: int = 0) -> None:
  """Waits for all processes.

  Raises:
    SystemExit: if an exit code differs, with the log of that process.
  """
  codes = [p.wait(timeout=900) for p in processes]
  for index, code in enumerate(codes):
    if code != expected:
      sys.exit(
        f"process {index} exited with {code}, expected {expected}:\n"
        + (work / f"{folder.name}_{index}.log").read_text()[-3000:]
      )


def wait_for_step(folder: Path, processes: list[subprocess.Popen], step: int) -> None:
  from benchmarks.engine_kills import last_step

  while last_step(folder) < step:
    assert all(p.poll() is None for p in processes), "a process ended before the step"
    time.sleep(0.002)


def same(a: Path, b: Path) -> bool:
  from benchmarks.engine_kills import state_of

  x, y = state_of(a), state_of(b)
  return x.keys() == y.keys() and all(x[name].tobytes() == y[name].tobytes() for name in x)


def kills(work: Path) -> dict[str, Any]:
  """Kills, terminates and resumes a pair."""
  from benchmarks.engine_rows import rows_by_step
  from walt_t5x.engine import checkpoints

  peace, killed = work / "peace", work / "killed"
  result: dict[str, Any] = {"rows": ROWS, "batch": BATCH, "steps": STEPS}
  finish(start(peace, work, processes=2), peace, work)
  seen = [rows_by_step(peace, i) for i in range(2)]
  by_process = [{row for rows in s.values() for row in rows} for s in seen]
  first = [row for s in seen for step in range(EPOCH) for row in s[step]]
  result["disjoint"] = not by_process[0] & by_process[1]
  result["epoch"] = len(first) == len(set(first)) == ROWS == len(by_process[0] | by_process[1])
  print(json.dumps(result), flush=True)

  pair = start(killed, work, processes=2)
  wait_for_step(killed, pair, 2 * EPOCH + 2)
  for process in pair:
    process.kill()
  finish(pair, killed, work, expected=-signal.SIGKILL)
  result["killed_during_step"] = max(rows_by_step(killed, 0))
  result["resumed_from"] = checkpoints.complete_steps(killed)[-1]
  pair = start(killed, work, processes=2)
  wait_for_step(killed, pair, result["killed_during_step"] + 1)
  pair[1].send_signal(signal.SIGTERM)
  finish(pair, killed, work, expected=75)
  result["terminated_after_step"] = checkpoints.complete_steps(killed)[-1]
  notes = [rows_by_step(killed, i) for i in range(2)]
  result["terminated_loses"] = [max(n) + 1 - result["terminated_after_step"] for n in notes]
  finish(start(killed, work, processes=2), killed, work)
  result["state_identical"] = same(peace, killed)
  result["rows_identical"] = [rows_by_step(killed, i) for i in range(2)] == seen
  result["held"] = (
    result["disjoint"]
    and result["epoch"]
    and result["state_identical"]
    and result["rows_identical"]
    and result["terminated_loses"] == [0, 0]
  )
  return result


def moves(work: Path) -> dict[str, Any]:
  """Runs a pair, one process and a pair: 9 steps, an epoch, an epoch."""
  from benchmarks.engine_rows import rows_by_step

  run = work / "moved"
  shuffled = (
    "--gin.train/engine.DatasetConfig.shuffle=True",
    "--gin.tasks.video_task.shuffle_buffer_size=1",
  )
  stops = (EPOCH + 3, 2 * EPOCH + 3, 3 * EPOCH + 3)
  for processes, steps in zip((2, 1, 2), stops):
    begun = start(run, work, *shuffled, "--gin.STATS_PERIOD=1", processes=processes, steps=steps)
    finish(begun, run, work)
  lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
  told = [line["step"] for line in lines if "loss" in line]
  notes = [rows_by_step(run, i) for i in range(2)]

  def rows(first: int, last: int) -> list[str]:
    return [row for step in range(first, last) for note in notes for row in note.get(step, [])]

  begun, alone, again = rows(0, EPOCH), rows(stops[0], stops[1]), rows(stops[1], stops[2])
  result = {
    "stopped_after_steps": list(stops),
    "moved_steps": told == list(range(1, stops[-1] + 1)),
    "full_epochs": all(sorted(epoch) == sorted(set(begun)) for epoch in (begun, alone, again))
    and len(begun) == ROWS,
    "another_order": begun != again,
  }
  result["held"] = result["moved_steps"] and result["full_epochs"] and result["another_order"]
  return result


PERIOD, KILLS, LOCAL_STEPS = 10, 10, 90


def local(work: Path) -> dict[str, Any]:
  """Kills one or both of a pair that writes local checkpoints."""
  from benchmarks.engine_kills import last_step
  from benchmarks.engine_rows import rows_by_step

  def begin(folder: Path) -> list[subprocess.Popen]:
    bindings = (
      f'--gin.LOCAL_CHECKPOINTS="{work}/disk_{folder.name}_PROCESS"',
      f"--gin.LOCAL_PERIOD={PERIOD}",
      f"--gin.SAVE_PERIOD={3 * PERIOD}",
      "--gin.STATS_PERIOD=1",
      "--gin.run_settings.RunSettings.max_steps_in_flight=1",
      "--gin_file=benchmarks/engine_hosts_sharded.gin",
      "--verbosity=0",
    )
    return start(folder, work, *bindings, processes=2, steps=LOCAL_STEPS, devices=4)

  peace, killed = work / "peace", work / "killed"
  finish(begin(peace), peace, work)
  drawn, kills, step = random.Random(0), [], 0
  for _ in range(KILLS):
    pair = begin(killed)
    goal = max(step, 2) + drawn.randrange(1, 12)
    wait_for_step(killed, pair, goal)
    time.sleep(drawn.random() * 0.1)
    victims = drawn.choice([[0], [1], [0, 1]])
    for victim in victims:
      pair[victim].kill()
    began = time.monotonic()
    if any("ended" in kill for kill in kills):  # Once is enough, as it takes so long.
      for process in pair:
        process.kill()
    codes = [process.wait(timeout=300) for process in pair]
    taken = last_step(killed)
    gone = len(victims) == 1 and drawn.random() < 0.5
    if gone:
      shutil.rmtree(work / f"disk_killed_{victims[0]}")
    kills.append({"killed": victims, "step": taken, "disk_lost": gone})
    if len(victims) == 1 and not any("ended" in kill for kill in kills):
      kills[-1]["ended"] = [codes[1 - victims[0]], round(time.monotonic() - began, 1)]
    step = taken
    print(json.dumps(kills[-1]), flush=True)
  finish(begin(killed), killed, work)
  # A start without any checkpoint of a later step says that it begins.
  said = re.compile(r"Resuming from step (\d+)|the run starts from its beginning")
  starts = [int(m[1] or 0) for m in said.finditer((work / "killed_0.log").read_text())]
  lost = [kill["step"] - first for kill, first in zip(kills, starts, strict=True)]
  lines = [json.loads(line) for line in (peace / "metrics.jsonl").read_text().splitlines()]
  stalls = [
    statistics.median(line[name] for line in lines if name in line)
    for name in ("local_checkpoint_seconds", "checkpoint_seconds")
  ]
  result = {
    "steps": LOCAL_STEPS,
    "killed": ["+".join(map(str, kill["killed"])) for kill in kills],
    "disk_lost": [kill["disk_lost"] for kill in kills],
    "ended": next(kill["ended"] for kill in kills if "ended" in kill),
    "during_step": [kill["step"] for kill in kills],
    "lost": lost,
    "state_identical": same(peace, killed),
    "rows_identical": all(rows_by_step(peace, i) == rows_by_step(killed, i) for i in range(2)),
    "seconds_local": stalls[0],
    "seconds_model_dir": stalls[1],
    "stall": stalls[0] / stalls[1],
  }
  result["held"] = (
    max(lost) <= PERIOD
    and result["state_identical"]
    and result["rows_identical"]
    and result["stall"] <= 0.2
  )
  return result


PARTS = {"kills": kills, "moves": moves, "local": local}


def main() -> int:
  from benchmarks.engine_rows import write_cache

  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--part", choices=sorted(PARTS), help="run only this part; the other's figures are kept"
  )
  parser.add_argument("--output", default=str(HERE), help="folder of engine_hosts.{md,json}")
  arguments = parser.parse_args()
  output = Path(arguments.output)
  file = output / "engine_hosts.json"
  results = json.loads(file.read_text()) if file.exists() else {}
  chosen = [arguments.part] if arguments.part else list(PARTS)
  with tempfile.TemporaryDirectory() as temporary:
    for part in chosen:
      work = Path(temporary) / part
      work.mkdir()
      write_cache(work / "cache", videos=ROWS, images=12, shards=12 if part == "moves" else 4)
      results[part] = PARTS[part](work)
      print(part, json.dumps(results[part]), flush=True)
  table = "| part | two processes, 4 fake devices each | |\n| --- | --- | --- |\n"
  for part, result in results.items():
    table += "".join(f"| {part} | {name} | {value} |\n" for name, value in result.items())
  print(table)
  file.write_text(json.dumps(results, indent=1) + "\n")
  (output / "engine_hosts.md").write_text("# Two processes as one run\n\n" + table)
  held = all(results[part]["held"] for part in chosen)
  print("held" if held else "NOT HELD")
  return 0 if held else 1


if __name__ == "__main__":
  sys.exit(main())
