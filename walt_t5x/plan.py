"""The cost of a run, from its gin file: parameters, tokens and FLOPs per step, computed from shapes only.

  python -m walt_t5x.plan --gin_file=gin/walt_3b.gin
  python -m walt_t5x.plan --gin_file=gin/walt_3b.gin --json --batch_size=256
  python -m walt_t5x.plan --gin_file=gin/walt_3b.gin --topology=v5p:4x4x4     # needs the extra [tpu], takes minutes
  python -m walt_t5x.plan --gin_file=gin/walt_3b.gin --topology=v5p:4x4x4 --search [--batch_size=256,512]
  python -m walt_t5x.plan --compare gin/walt_3b.gin gin/walt_3b_mxu.gin       # one column per file

Reads only the gin files. FLOPs are those of matrix products and convolutions in the loss and its gradient, including
the self-conditioning pass and excluding recomputation by a remat policy. With --topology the TPU compiler compiles the
engine's step for that slice, on this machine, and its estimates are printed too. With --search it compiles every remat
policy, at half, once and twice the batch size or at those of --batch_size, and recommends one.
"""

import dataclasses
import json
import os
from collections.abc import Sequence

from absl import app, flags

from walt_t5x.config import gin_flags, programs, usage
from walt_t5x.config.waiting import waiting
from walt_t5x.planning import plan_text, run_plan

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Registers this program's flags with absl."""
  gin_flags.define()
  flags.DEFINE_multi_string(
    "topology", [], "TPU slice to compile the step for, e.g. v5p:4x4x4; may be repeated."
  )
  flags.DEFINE_list("batch_size", [], "Batch size instead of the files'; several with --search.")
  flags.DEFINE_boolean(
    "search", False, "Try remat policies and batch sizes for --topology; recommend one."
  )
  flags.DEFINE_integer("corpus_videos", 0, "Videos of the corpus, for its size.", lower_bound=0)
  flags.DEFINE_integer("corpus_images", 0, "Images of the corpus.", lower_bound=0)
  flags.DEFINE_boolean("json", False, "Print JSON instead of a table.")
  flags.DEFINE_boolean("compare", False, "One column for each gin file given as an argument.")


def main(argv: Sequence[str]) -> None:
  """Reads the configuration and prints the plan."""
  files = [[file] for file in argv[1:]] if FLAGS.compare else [FLAGS.gin_file]
  if not FLAGS.compare:
    gin_flags.check(argv, "gin_file=gin/walt_3b.gin", complete=False)
  elif len(files) < 2 or FLAGS.gin_file:
    gin_flags.reject("--compare takes two or more gin files as arguments, and no --gin_file.")
  sizes = _batch_sizes()
  if FLAGS.search and (FLAGS.compare or not FLAGS.topology):
    gin_flags.reject("--search takes one configuration and at least one --topology.")
  if len(sizes) > 1 and not FLAGS.search:
    gin_flags.reject(
      f"--batch_size={','.join(FLAGS.batch_size)}: expected one number without --search."
    )
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  from walt_t5x.planning import tpu_compile

  with programs.user_errors("plan", exit_code=usage.EXIT_CODE):
    for name in FLAGS.topology:
      tpu_compile.check_topology(name)
  with programs.user_errors("plan"):
    if FLAGS.search:
      _search(files[0], sizes)
      return
    plans = {" ".join(names): _plan_files(names, sizes) for names in files}
  if FLAGS.json:
    found = {name: dataclasses.asdict(plan) for name, plan in plans.items()}
    print(json.dumps(found if FLAGS.compare else next(iter(found.values()))))
  else:
    first = next(iter(plans.values()))
    print(plan_text.comparison(plans) if FLAGS.compare else plan_text.table(first))


def _batch_sizes() -> list[int]:
  try:
    sizes = [int(size) for size in FLAGS.batch_size]
  except ValueError:
    sizes = [0]
  if any(size < 1 for size in sizes):
    gin_flags.reject(f"--batch_size={','.join(FLAGS.batch_size)}: expected numbers from 1.")
  return sizes


def _parse(names: Sequence[str]) -> None:
  """Reads gin files and the bindings of the command line."""
  import gin
  from walt_t5x import engine

  programs.register(train=engine.train)
  gin.clear_config()
  gin_flags.read(names, finalize=False)


def _plan_files(names: Sequence[str], sizes: Sequence[int]) -> run_plan.Plan:
  """The plan for gin files and flags."""
  _parse(names)
  with waiting("plan", "tracing the step"):
    plan = run_plan.plan_gin(*sizes)
  corpus = {"video": FLAGS.corpus_videos, "image": FLAGS.corpus_images}
  total = sum(count * plan.record_bytes.get(kind, 0) for kind, count in corpus.items())
  plan = dataclasses.replace(plan, corpus_bytes=total)
  if FLAGS.topology:
    with waiting("plan", f"compiling the step for {', '.join(FLAGS.topology)}"):
      plan = dataclasses.replace(plan, topologies=run_plan.topologies_gin(plan, FLAGS.topology))
  return plan


def _search(names: Sequence[str], sizes: Sequence[int]) -> None:
  """Prints the TPU compiler's estimates for every variant, and the recommended one."""
  from walt_t5x.planning import tpu_report

  _parse(names)
  plan, found = run_plan.plan_gin(), {}
  for name in FLAGS.topology:
    variants = run_plan.search_gin(plan, name, sizes)
    best = tpu_report.recommended(variants)
    if FLAGS.json:
      tried = [dataclasses.asdict(variant) for variant in variants]
      found[name] = {
        "tried": tried, "recommended": None if best is None else dataclasses.asdict(best),
      }  # fmt: skip
    else:
      print(plan_text.search_table(name, variants, best), flush=True)
  if FLAGS.json:
    print(json.dumps(found))


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=gin_flags.parse_args)
