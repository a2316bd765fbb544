"""Memory and time of the published cascade's shapes on a CPU: a 17 x 512 x 896 mp4 with networks of width 32.

  python -m benchmarks.cascade_shapes --folder=/tmp/wide

Writes random weights for gin/tiny/cascade_512x896.gin to the folder, then runs `walt_t5x.generate` in a separate
process and reports its peak resident memory, the seconds of each part (from the sidecar) and the shape of the decoded
file. Writes cascade_shapes.json and cascade_shapes.md next to this file.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import results

ROOT = Path(__file__).resolve().parents[1]
GIN_FILE = "gin/tiny/cascade_512x896.gin"
STAGES = ("base", "sr1", "sr2")


def bindings(folder: Path) -> list[str]:
  """Gin bindings of the paths of the cascade's parts."""
  names = [(f"{stage.upper()}_CHECKPOINT", stage) for stage in STAGES]
  names += [("VAE_CHECKPOINT", "vae"), ("TEXT_ENCODER", "text")]
  return [f'{macro} = "{folder / name}"' for macro, name in names]


def write_weights(folder: Path) -> None:
  """Writes random weights of all parts."""
  import gin
  from tests.generation.random_cascade import write_random_cascade
  from walt_t5x.config import gin_config
  from walt_t5x.generation.loading import CascadeConfig

  sys.modules["__main__"].generate = CascadeConfig
  gin_config.parse([GIN_FILE], bindings(folder), [str(ROOT)])
  write_random_cascade(
    CascadeConfig(
      stages=gin_config.macro_value("STAGES"),
      vae=gin_config.macro_value("VAE"),
      vae_checkpoint=str(folder / "vae"),
      text_encoder=str(folder / "text"),
      text_length=64,
      vae_ema=False,
    )
  )
  gin.clear_config()


def run(folder: Path, output: Path, *, steps: int, rounds: int) -> dict:
  """Generates in a separate process."""
  command = [
    sys.executable,
    "-m",
    "walt_t5x.generate",
    f"--gin_file={GIN_FILE}",
    *(f"--gin_bindings={binding}" for binding in bindings(folder)),
    f"--gin.STEPS={steps}",
    f"--extensions={rounds - 1}",
    "--prompt=a red square moves right",
    f"--output={output}",
    "--verbosity=-1",
  ]
  started = time.monotonic()
  process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise SystemExit(f"cascade_shapes: {' '.join(command)} failed with {status}")
  return {
    "seconds": round(time.monotonic() - started, 1),
    "peak_mib": round(usage.ru_maxrss / 1024),
    "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
  }


def main() -> None:
  """Writes weights, generates, reads the file, and prints and writes the results."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--folder", type=Path, required=True, help="for weights and samples")
  parser.add_argument("--steps", type=int, default=50)
  parser.add_argument("--rounds", type=int, default=1)
  parser.add_argument("--output", type=Path, default=Path(__file__).parent)
  args = parser.parse_args()
  from walt_t5x.media import reading

  if not (args.folder / "sr2").exists():
    write_weights(args.folder)
  samples = args.folder / f"samples_{args.steps}_{args.rounds}_{int(time.time())}"
  result = run(args.folder, samples, steps=args.steps, rounds=args.rounds)
  sidecar = json.loads((samples / "00000.json").read_text(encoding="utf-8"))
  clip = reading.read_video(samples / "00000_sr2.mp4")
  result |= {
    "steps": args.steps,
    "rounds": args.rounds,
    "decoded_shape": list(clip.frames.shape),
    "fps": clip.fps,
    "batch_seconds": sidecar["batch_seconds"],
  }
  expected = [17 + 12 * (args.rounds - 1), 512, 896, 3]
  if result["decoded_shape"] != expected:
    raise SystemExit(
      f"cascade_shapes: the file has shape {result['decoded_shape']}, expected {expected}"
    )
  lines = [
    "# The published cascade's shapes on a CPU",
    "",
    "`python -m benchmarks.cascade_shapes`: `walt_t5x.generate` of one prompt with gin/tiny/cascade_512x896.gin",
    f"(random weights, width 32, tokenizer of width 16), {args.steps} steps per stage, {args.rounds} round(s),",
    "including compilation, on 2 CPU cores.",
    "",
    "| stage | sample, s | decode, s |",
    "| --- | --- | --- |",
    *(
      f"| {stage} | {times['sample']:.1f} | {times['decode']:.1f} |"
      for stage, times in sidecar["batch_seconds"].items()
    ),
    "",
    f"File: {'x'.join(map(str, clip.frames.shape[:3]))} H.264 at {clip.fps:g} fps. Entire process: "
    f"{result['seconds']} s, peak {result['peak_mib']} MiB.",
  ]
  results.write(args.output, "cascade_shapes", "\n".join(lines) + "\n", result)


if __name__ == "__main__":
  main()
