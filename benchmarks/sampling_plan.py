"""Memory per chip of sampling the published cascade, with weights that the chips split and with complete copies.

  JAX_PLATFORMS=cpu python -m benchmarks.sampling_plan                    # all missing rows; minutes each on two cores
  JAX_PLATFORMS=cpu python -m benchmarks.sampling_plan --slice=v5e:2x2 --samples=4

Runs `walt_t5x.plan_sampling`: the TPU compiler compiles the guided chain of every stage; nothing runs on a TPU. Adds
the rows to sampling_plan.json and writes sampling_plan.md next to this file; a row that exists is not computed again.
Needs the extra [tpu].
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import results

HERE = Path(__file__).resolve().parent
GIN_FILE = "gin/walt_cascade_512x896.gin"
GIB = 1024**3
COLUMNS = (
  "slice", "samples", "weights", "stage", "all weights, GiB", "weights per chip, GiB", "temporaries per chip, GiB",
  "memory per chip, GiB", "libtpu",
)  # fmt: skip


def plan(topology: str, samples: int, weights: str) -> dict[str, Any]:
  """The plan of all stages, from a separate process."""
  command = [sys.executable, "-m", "walt_t5x.plan_sampling", f"--gin_file={GIN_FILE}", "--json"]
  command += [f"--topology={topology}", f"--samples={samples}", f"--gin.STAGE_WEIGHTS='{weights}'"]
  started = time.monotonic()
  done = subprocess.run(
    command,
    cwd=HERE.parent,
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"},
  )
  if done.returncode:
    raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
  return {
    "slice": topology,
    "samples": samples,
    "weights": weights,
    "stages": json.loads(done.stdout.strip().splitlines()[-1]),
    "seconds_to_plan": round(time.monotonic() - started),
    **{name: metadata.version(name) for name in ("libtpu", "jax")},
  }


def page(plans: list[dict[str, Any]]) -> str:
  """The table of all plans."""
  lines = [
    "# Memory of sampling",
    "",
    f"`python -m benchmarks.sampling_plan`: the guided chain of each stage of `{GIN_FILE}` (weights in bfloat16),",
    "compiled for a slice. Estimates of the TPU compiler; nothing has run on a TPU. Memory is arguments, results,",
    "temporaries and code. Split weights are gathered one pair of layers at a time.",
    "",
    "| " + " | ".join(COLUMNS) + " |",
    "|" + " --- |" * len(COLUMNS),
  ]
  for found in plans:
    for stage in found["stages"]:
      memory = stage["topologies"][found["slice"]]
      sizes = (
        stage["weight_bytes"],
        stage["chip_weight_bytes"][found["slice"]],
        memory["temporaries"],
        memory["needed"],
      )
      shown = ["-" if size is None else f"{size / GIB:.2f}" for size in sizes]
      shown[-1] += f" of {memory['limit'] / GIB:.0f}"
      cells = [found["slice"], str(found["samples"]), found["weights"], stage["stage"], *shown]
      lines.append("| " + " | ".join([*cells, found["libtpu"]]) + " |")
  seconds = ", ".join(f"{found['weights']} {found['seconds_to_plan']} s" for found in plans)
  return "\n".join([*lines, "", f"Time to plan all stages: {seconds}."]) + "\n"


def main() -> None:
  """Computes the missing rows, and prints and writes all of them."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--slice", default="v5p:2x2x1")
  parser.add_argument("--samples", type=int, default=4)
  parser.add_argument("--output", type=Path, default=HERE)
  arguments = parser.parse_args()
  file = arguments.output / "sampling_plan.json"
  plans = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
  for weights in ("sharded", "replicated"):
    wanted = (arguments.slice, arguments.samples, weights)
    if wanted not in [(p["slice"], p["samples"], p["weights"]) for p in plans]:
      plans.append(plan(*wanted))
      results.write(arguments.output, "sampling_plan", page(plans), plans)


if __name__ == "__main__":
  main()
