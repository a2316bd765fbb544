"""Runs the complete pipeline at toy size: each stage is a command, printed with its progress and its result.

  python -m scripts.quickstart [FOLDER] [--fast | --showcase] [--seed=N] [--prompts=N]
  python -m scripts.quickstart --smallest --store=gs --faults=0.05

Prints the stages with their expected seconds first, and a table of times, results and bars last. The same command
resumes an interrupted run: finished stages are skipped, and an interrupted one resumes if its program can.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence

from scripts.quickstart_recipes import FAST, FULL, SHOWCASE, SMALLEST, Recipe, bars
from scripts.quickstart_stages import Pipeline
from scripts.stages import Stage, Step, duration, flat, run_all
from walt_t5x.files import storage
from walt_t5x.files.paths import AnyPath, as_path

# Of requests to a store that this program starts (`tests.stores.faults`).
FAULTS = ("429", "503", "reset", "truncated", "stall")


def print_plan(todo: Sequence[Step], folder: AnyPath, expected: Callable[[Stage], int]) -> None:
  """Prints the stages with their expected seconds; lanes after the first one are marked."""
  print(f"{len(flat(todo))} stages, expected on two idle cores; everything goes into {folder}")
  number = 0
  for step in todo:
    for lane, stages in enumerate([[step]] if isinstance(step, Stage) else step):
      for stage in stages:
        number += 1
        print(f"{number:>4}  {'| ' * lane + stage.name:<36} {expected(stage):>4} s")
  total = f"{duration(todo, expected):>4.0f} s; stages with | run at the same time as those above"
  print(f"      {'in all':<36} {total}")


def main() -> int:
  """Runs all stages; returns 0 if every bar is reached."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", nargs="?", help="output folder or address; by default in runs")
  kind = parser.add_mutually_exclusive_group()
  kind.add_argument("--fast", action="store_true", help="less training, lower bars")
  kind.add_argument("--showcase", action="store_true", help="larger clips, richer captions")
  kind.add_argument("--smallest", action="store_true", help="too little training to show anything")
  parser.add_argument(
    "--store", choices=("gs", "s3"), help="start such a store on this machine and write to it"
  )
  parser.add_argument(
    "--faults",
    type=float,
    help=f"share of its requests that fail in each of these ways: {', '.join(FAULTS)}",
  )
  parser.add_argument("--seed", type=int, default=0, help="of corpus, trainings and samples")
  parser.add_argument("--prompts", type=int, help="clips to generate and score")
  args = parser.parse_args()
  recipe = FAST if args.fast else SHOWCASE if args.showcase else SMALLEST if args.smallest else FULL
  with contextlib.ExitStack() as opened:
    if args.store:
      # Of the test environment.
      from tests.stores import faults, servers

      server = opened.enter_context(servers.SERVERS[args.store]())
      injected = faults.Faults(dict.fromkeys(FAULTS, args.faults or 0.0), seed=args.seed)
      server = opened.enter_context(faults.proxied(server, injected))
      os.environ.update(server.environment)
      args.folder = f"{server.address}/{args.folder or recipe.folder}"
      opened.callback(
        lambda: print(f"{injected.requests():,} requests, of which {injected.injected():,} failed")
      )
    return run(recipe, args)


def run(recipe: Recipe, args: argparse.Namespace) -> int:
  """Runs the stages of a recipe and prints the tables; returns 0 if every bar is reached."""
  folder = as_path(args.folder or recipe.folder).absolute()
  storage.make_folder(folder)
  prompts = args.prompts or recipe.prompts
  todo = Pipeline(folder=folder, recipe=recipe, seed=args.seed, prompts=prompts).steps()

  def expected(stage: Stage) -> int:
    return next((s for name, s in recipe.seconds.items() if stage.name.startswith(name)), 2)

  print_plan(todo, folder, expected)
  done, printed = run_all(todo, folder / "finished.json", expected)
  seconds = {d.name: d.seconds for d in done}
  total = duration(todo, lambda stage: seconds[stage.name])

  print(f"\n{'stage':<34} {'seconds':>8} {'peak MiB':>9}  result")
  for d in done:
    print(f"{d.name:<34} {d.seconds:>8.0f} {d.peak_mib:>9.0f}  {d.result}")
  print(f"{'total':<34} {total:>8.0f} {max(d.peak_mib for d in done):>9.0f}")
  reached = bars(recipe, printed)
  print(f"\n{'what':<66} {'reached':>8} {'bar':>6}")
  for row in reached:
    said = "" if row["ok"] else "  NOT REACHED"
    print(f"{row['what']:<66} {row['reached']:>8.4g} {row['bar']:>6.4g}{said}")
  report = folder / "quickstart.json"
  table = {"stages": [vars(d) for d in done], "seconds": total, "bars": reached}
  table |= {k: printed["score"][k] for k in ("scores", "scores_apart") if k in printed["score"]}
  storage.write_json(report, table)
  print(
    f"\nopen in a browser: {printed['score']['gallery']}\n"
    f"                   {folder / 'report.html'}\n"
    f"table as JSON:     {report}"
  )
  return 0 if all(row["ok"] for row in reached) else 1


if __name__ == "__main__":
  sys.exit(main())
