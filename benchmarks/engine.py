"""The built-in engine's step compared with a hand-written loop and T5X's Trainer, and the stall of a checkpoint.

  python -m benchmarks.engine                         # the built-in engine
  WALT_T5X_ENGINE=t5x python -m benchmarks.engine     # T5X's Trainer, if `import t5x` works

Each prints the tables and writes its part of benchmarks/engine.{md,json}. benchmarks/engine_loops.py describes the
loops. They run in one process, in turns; a ratio is the median over the turns of (loop / by hand), for wall-clock time
and for the CPU time of all threads.

The stall of a checkpoint is the time that `save` blocks the training thread; the file is written during training.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("WALT_T5X_ENGINE", "builtin")

HERE = Path(__file__).resolve().parent
# Name -> layers, width, batch size, steps per turn (which ends with a summary), turns.
SIZES = {"narrow": (2, 64, 8, 40, 24), "tiny": (4, 128, 16, 10, 8)}
BAR = 1.03


def step_times(size: str, folder: Path, turns: int | None = None) -> dict[str, Any]:
  """Measures every loop in turns, and the checkpoints of the built-in engine."""
  import jax

  from benchmarks import engine_loops as loops
  from walt_t5x import engine
  from walt_t5x.engine.exits import preemption_notice

  layers, width, rows, steps, usual_turns = SIZES[size]
  turns = turns or usual_turns
  model = loops.make_model(layers, width)
  iterator, layout = loops.training_rows(model, rows, folder)
  batch = next(iterator)
  summaries = folder / size
  summaries.mkdir()
  if engine.use_t5x():
    trainer = loops.t5x_trainer(model, batch, summaries)
    params = trainer.train_state.params
    runs = {"by hand": loops.by_hand(model, params, batch)}
    runs["T5X"] = loops.by_trainer(trainer, batch)
    return in_turns(runs, turns, steps) | about(params, rows, turns, steps)

  from walt_t5x.engine.builtin.partitioner import PjitPartitioner
  from walt_t5x.engine.builtin.train_state import StateInitializer

  partitioner = PjitPartitioner(num_partitions=1)
  initializer = StateInitializer(model, input_spec=iterator.element_spec, partitioner=partitioner)
  state = initializer.from_scratch(jax.random.PRNGKey(0))
  runs = {
    "by hand": loops.by_hand(model, state.params, batch),
    "engine's program": loops.by_program(model, state, initializer, batch),
  }
  result = about(state.params, rows, turns, steps)
  trainer = loops.builtin_trainer(model, state, initializer, summaries)
  with preemption_notice() as stop_before:
    trainer.before_step = stop_before
    runs["engine"] = loops.by_trainer(trainer, batch)
    result |= in_turns(runs, turns, steps)
    result["checkpoint"] = stalls(trainer, iterator, layout, runs["engine"], folder / f"{size}_run")
  trainer.close()
  return result


def about(params: Any, rows: int, turns: int, steps: int) -> dict[str, Any]:
  import jax

  return {
    "parameters": sum(int(p.size) for p in jax.tree.leaves(params)),
    "rows": rows,
    "turns": turns,
    "steps_a_turn": steps,
    "date": datetime.date.today().isoformat(),
    "processors": os.cpu_count(),
    "load_average": os.getloadavg()[0],
  }


def in_turns(
  loops: Mapping[str, Callable[[int], tuple[float, float]]], turns: int, steps: int
) -> dict[str, Any]:
  """Milliseconds per step and ratios of each loop; the order is reversed in every turn."""
  for loop in loops.values():
    loop(2)
  taken: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
  for turn in range(turns):
    names = list(loops)
    for name in names[:: -1 if turn % 2 else 1]:
      taken[name].append(loops[name](steps))
  hand = taken["by hand"]

  def ratio(name: str, clock: int) -> float:
    return statistics.median(a[clock] / b[clock] for a, b in zip(taken[name], hand))

  return {
    "loops": {
      name: {
        "ms": 1e3 * statistics.median(t[0] for t in times),
        "ratio": ratio(name, 0),
        "processor_ratio": ratio(name, 1),
      }
      for name, times in taken.items()
    }
  }


def stalls(
  trainer: Any, iterator: Any, layout: Any, train: Callable[[int], Any], folder: Path
) -> dict[str, Any]:
  """Cost of saving: the stall of the training thread, and the time until the files are complete."""
  import jax

  from walt_t5x import engine
  from walt_t5x.engine.builtin.checkpoint_manager import CheckpointManager

  config = engine.SaveCheckpointConfig(period=1, keep=2, save_dataset=True)
  manager = CheckpointManager(str(folder), config=config, layout=layout)
  stall, complete = [], []
  for n in range(5):
    trainer.wait_for_steps()
    started = time.perf_counter()
    manager.save(n, trainer.train_state, iterator)
    stall.append(time.perf_counter() - started)
    train(2)  # Continues during the write.
    manager.wait()
    complete.append(time.perf_counter() - started)
  manager.close()
  size = sum(x.nbytes for x in jax.tree.leaves(trainer.train_state.state_dict()))
  return {
    "MB": size / 1e6,
    "stall_ms": 1e3 * statistics.median(stall[1:]),
    "first_stall_ms": 1e3 * stall[0],
    "complete_ms": 1e3 * statistics.median(complete[1:]),
  }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
  """Both tables, from all measurements so far."""
  lines = [
    "| size | parameters | batch | loop | ms per step | ratio | CPU time ratio | CPUs | load | date |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  for engine, sizes in results.items():
    for size, r in sizes.items():
      for name, t in r["loops"].items():
        run = " (in T5X's process)" if engine == "t5x" and name == "by hand" else ""
        lines.append(
          f"| {size} | {r['parameters']:,} | {r['rows']} | {name}{run} | {t['ms']:.1f} | {t['ratio']:.3f} | "
          f"{t['processor_ratio']:.3f} | {r['processors']} | {r['load_average']:.1f} | {r['date']} |"
        )
  lines += [
    "",
    "Loops of one size and engine ran in turns: compare ratios, not milliseconds of different blocks. If the load",
    "(at the start) shows that other programs shared the CPUs, a ratio is uncertain by several percent; a ratio below",
    "1 is noise. T5X's loop does not check for non-finite values, computes no norms, and does not check for SIGTERM.",
    "",
    "| size | checkpoint MB | stall ms | first stall ms | complete after ms |",
    "| --- | --- | --- | --- | --- |",
  ]
  for size, r in results.get("builtin", {}).items():
    c = r["checkpoint"]
    lines.append(
      f"| {size} | {c['MB']:.1f} | {c['stall_ms']:.0f} | {c['first_stall_ms']:.0f} | {c['complete_ms']:.0f} |"
    )
  if "t5x" not in results:
    lines += ["", "T5X's Trainer was not measured."]
  return "\n".join(lines) + "\n"


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
  parser.add_argument("--turns", type=int, help="instead of each size's default")
  parser.add_argument("--output", default=str(HERE), help="folder of engine.{md,json}")
  arguments = parser.parse_args()
  output = Path(arguments.output)
  output.mkdir(parents=True, exist_ok=True)
  file = output / "engine.json"
  results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
  chosen = os.environ["WALT_T5X_ENGINE"]
  mine = results.setdefault(chosen, {})
  with tempfile.TemporaryDirectory() as folder:
    for size in arguments.sizes:
      mine[size] = step_times(size, Path(folder), arguments.turns)
      print(size, json.dumps(mine[size]), flush=True)
      file.write_text(json.dumps(results, indent=1) + "\n")
      text = table(results)
      (output / "engine.md").write_text("# The engine's step and its checkpoints\n\n" + text)
  print(text)
  if chosen == "t5x":
    return 0
  worst = max(mine[size]["loops"]["engine"]["ratio"] for size in arguments.sizes)
  print(f"worst ratio {worst:.3f}: {'within' if worst <= BAR else 'NOT within'} 3%")
  return 0 if worst <= BAR else 1


if __name__ == "__main__":
  sys.exit(main())
