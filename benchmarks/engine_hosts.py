"""Two processes train as one run over `jax.distributed`, are killed, resumed, and moved to one process and back.

  python -m benchmarks.engine_hosts          # prints the table, writes benchmarks/engine_hosts.{md,json}

Each process has 4 fake CPU devices and talks to the other through the loopback. The run is benchmarks/engine_run.gin
over video rows alone, in the order of the files, so that an epoch is a fixed number of steps. Checked:

  disjoint      no row is read by both processes
  epoch         the rows of the first epoch's steps are all rows, each once
  killed        both are killed with SIGKILL in the middle of an epoch and started again: parameters, average, optimizer
                state and the rows of every step equal those of an undisturbed pair, bit for bit
  terminated    SIGTERM to one of them: both save the same step and exit with 75, and the pair goes on unchanged
  moved         the pair's checkpoint goes on in one process of 8 devices, and that one's in a pair again: the step goes
                on, no error, rows as documented in docs/pods.md
"""

import argparse
import json
import os
import shutil
import signal
import socket
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
  folder: Path, work: Path, *, processes: int, steps: int = STEPS
) -> list[subprocess.Popen]:
  """One run of `processes` processes, 8 devices together."""
  port = free_port()
  started = []
  for index in range(processes):
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "TF_CPP_MIN_LOG_LEVEL": "3",
      "WALT_T5X_ENGINE": "builtin",
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}",
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
    ]
    log = (work / f"{folder.name}_{index}.log").open("a")
    started.append(
      subprocess.Popen(command, cwd=HERE.parent, env=environment, stdout=log, stderr=log)
    )
  return started


def finish(processes: list[subprocess.Popen], folder: Path, work: Path, expected: int = 0) -> None:
  """Waits for all.

  Raises:
    SystemExit: with the log of one that ended otherwise.
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


def run() -> dict[str, Any]:
  from benchmarks.engine_rows import rows_by_step, write_cache
  from walt_t5x.engine import checkpoints

  with tempfile.TemporaryDirectory() as temporary:
    work = Path(temporary)
    write_cache(work / "cache", videos=ROWS, images=8, shards=4)
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
    result["resumed_from"] = checkpoints.whole_steps(killed)[-1]
    pair = start(killed, work, processes=2)
    wait_for_step(killed, pair, result["killed_during_step"] + 1)
    pair[1].send_signal(signal.SIGTERM)
    finish(pair, killed, work, expected=75)
    result["terminated_after_step"] = checkpoints.whole_steps(killed)[-1]
    notes = [rows_by_step(killed, i) for i in range(2)]
    result["terminated_loses"] = [max(n) + 1 - result["terminated_after_step"] for n in notes]
    moved = work / "moved"
    shutil.copytree(killed, moved)
    finish(start(killed, work, processes=2), killed, work)
    result["state_identical"] = same(peace, killed)
    result["rows_identical"] = [rows_by_step(killed, i) for i in range(2)] == seen
    print(json.dumps(result), flush=True)

    finish(start(moved, work, processes=1, steps=STEPS + EPOCH), moved, work)
    finish(start(moved, work, processes=2, steps=STEPS + 2 * EPOCH), moved, work)
    result["moved_to_step"] = checkpoints.whole_steps(moved)[-1]
    result["held"] = (
      result["disjoint"]
      and result["epoch"]
      and result["state_identical"]
      and result["rows_identical"]
      and result["terminated_loses"] == [0, 0]
      and result["moved_to_step"] == STEPS + 2 * EPOCH
    )
    return result


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--output", default=str(HERE), help="where engine_hosts.{md,json} go")
  output = Path(parser.parse_args().output)
  result = run()
  rows = "\n".join(f"| {name} | {value} |" for name, value in result.items())
  table = f"| two processes, 4 fake devices each | |\n| --- | --- |\n{rows}\n"
  print(table)
  (output / "engine_hosts.json").write_text(json.dumps(result, indent=1) + "\n")
  (output / "engine_hosts.md").write_text("# Two processes as one run\n\n" + table)
  print("held" if result["held"] else "NOT HELD")
  return 0 if result["held"] else 1


if __name__ == "__main__":
  sys.exit(main())
