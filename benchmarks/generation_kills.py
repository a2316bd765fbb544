"""`walt_t5x.generate` interrupted by SIGINT and SIGKILL: which samples are kept, and whether the files are identical.

  python -m benchmarks.generation_kills --folder=/tmp/kills

Writes random weights for gin/tiny/generate.gin (two layers of width 16) to the folder. One run is undisturbed; another
is stopped by each signal after a number of finished samples, and restarted with the same command. Compares every media
file of both, and counts the samples that a restart wrote. Writes generation_kills.json and .md next to this file.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import results
from walt_t5x.files import storage
from walt_t5x.files.paths import AnyPath

ROOT = Path(__file__).resolve().parents[1]
GIN_FILE = "gin/tiny/generate.gin"
PARTS = {"BASE_CHECKPOINT": "base", "SR1_CHECKPOINT": "sr1"}
PARTS |= {"VAE_CHECKPOINT": "vae", "TEXT_ENCODER": "text"}
PROMPTS, SAMPLES, BATCH = ("a red square moves right", "a blue circle moves up"), 20, 2
# (signal, finished samples after which it is sent)
STOPS = (("SIGINT", 6), ("SIGKILL", 20))


def bindings(folder: AnyPath) -> list[str]:
  """Gin bindings of the paths of the parts, and of sizes that run in seconds."""
  found = [f'{macro} = "{folder / name}"' for macro, name in PARTS.items()]
  for scope in ("base", "sr1"):
    network = {"num_layers": 2, "width": 16, "mlp_dim": 32}
    found += [f"{scope}/transformer.WaltDenoiser.{k} = {v}" for k, v in network.items()]
    found.append(f"{scope}/sampling.SamplerConfig.num_steps = 2")
  return found


def write_weights(folder: Path) -> None:
  """Writes random weights of all parts."""
  import gin
  from tests.generation.random_cascade import write_random_cascade
  from walt_t5x.config import gin_config
  from walt_t5x.generation.loading import CascadeConfig

  sys.modules["__main__"].generate = CascadeConfig
  gin_config.parse([GIN_FILE], bindings(folder), [str(ROOT)])
  config = CascadeConfig(
    stages=gin_config.macro_value("STAGES"),
    vae=gin_config.macro_value("VAE"),
    vae_checkpoint=str(folder / "vae"),
    text_encoder=str(folder / "text"),
    text_length=gin_config.macro_value("TEXT_LENGTH"),
  )
  write_random_cascade(config)
  gin.clear_config()


def command(folder: AnyPath, output: storage.PathLike, *, samples: int = SAMPLES) -> list[str]:
  """Module and arguments; `samples` of each prompt."""
  found = ["walt_t5x.generate", f"--gin_file={GIN_FILE}"]
  found += [f"--gin_bindings={binding}" for binding in bindings(folder)]
  found += [f"--prompt={prompt}" for prompt in PROMPTS]
  found += [f"--num_samples={samples}", f"--batch_size={BATCH}"]
  return [*found, "--formats=mp4,latents", f"--output={output}", "--verbosity=-1"]


def start(folder: Path, output: Path, log: Path) -> subprocess.Popen:
  """Starts the command in a separate process."""
  argv = [sys.executable, "-m", *command(folder, output)]
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  with log.open("ab") as stream:
    return subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=stream, stderr=stream)


def finished(output: Path) -> int:
  """Number of samples with a sidecar."""
  return len(list(output.glob("[0-9]*.json")))


def media(output: Path) -> dict[str, str]:
  """sha256 by file name, without sidecars and pages."""
  files = [p for p in sorted(output.iterdir()) if p.suffix in (".mp4", ".npy")]
  return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main() -> None:
  """Runs the commands, compares the files, and prints and writes the results."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--folder", type=Path, required=True)
  parser.add_argument("--output", type=Path, default=Path(__file__).parent)
  args = parser.parse_args()
  args.folder.mkdir(parents=True, exist_ok=True)
  if not (args.folder / "sr1").exists():
    write_weights(args.folder)
  total = SAMPLES * len(PROMPTS)
  stamp = int(time.time())
  broken, undisturbed = args.folder / f"broken_{stamp}", args.folder / f"undisturbed_{stamp}"
  log = args.folder / "log.txt"
  rows = []
  for name, after in STOPS:
    process = start(args.folder, broken, log)
    while finished(broken) < after and process.poll() is None:
      time.sleep(0.02)
    process.send_signal(getattr(signal, name))
    code = process.wait()
    rows.append({"signal": name, "exit": code, "finished": finished(broken), "of": total})
    print(json.dumps(rows[-1]), flush=True)
  before = {p.name: p.stat().st_mtime_ns for p in broken.glob("[0-9]*.json")}
  codes = [start(args.folder, path, log).wait() for path in (broken, undisturbed)]
  kept = sum((broken / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
  same = media(broken) == media(undisturbed)
  result = {
    "stops": rows,
    "exits": codes,
    "samples": finished(broken),
    "kept": kept,
    "finished_before_the_last_run": len(before),
    "media_files": len(media(undisturbed)),
    "bytes_equal": same,
  }
  lines = [
    "# Generation, interrupted",
    "",
    f"`python -m benchmarks.generation_kills`: {total} samples of two stages in batches of {BATCH}, mp4 and latents.",
    "",
    "| signal | exit code | finished samples |",
    "| --- | --- | --- |",
    *(f"| {r['signal']} | {r['exit']} | {r['finished']} of {r['of']} |" for r in rows),
    "",
    f"The same command then made the other {total - len(before)}; {kept} of {len(before)} finished samples were not",
    f"changed. All {result['media_files']} media files are byte-identical to those of an undisturbed run: "
    f"{'yes' if same else 'NO'}.",
  ]
  results.write(args.output, "generation_kills", "\n".join(lines) + "\n", result)
  if not same or any(codes) or kept < len(before):
    raise SystemExit("generation_kills: the runs differ")


if __name__ == "__main__":
  main()
