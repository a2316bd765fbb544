"""Kills the preprocessing job and its workers at random moments, and compares runs on several runners byte by byte.

  python -m benchmarks.preprocess_kills                       # prints and writes benchmarks/preprocess_kills.{md,json}
  python -m benchmarks.preprocess_kills --rows=60 --kills=1   # quicker

The corpus: rendered and real clips and images (`python -m data.samples`), every tenth file broken (empty, cut in the
middle, text, a flipped run of bytes, absent). The encoders are small and random. One run is left in peace; then

  launcher      SIGKILL of the launcher (one process, the workers are its threads) at random moments, each time the same
                command again, and in the end to its end
  worker        SIGKILL of one of two worker processes likewise
  runners       the same job by two worker processes, and by the portable runner with a pool of external workers

Held: every output tree equals the one left in peace byte by byte; the ledger adds up to the rows of the manifest; and
no shard was made again once its sidecar was whole: after each kill the inode and time of every whole shard and sidecar
are noted, and at the end they must be the same.

Not yet run to its end at 500 rows: there is no table of it.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUNNERS = {
  "in_process": ["--runner=FnApiRunner"],
  "two_workers": [
    "--runner=FnApiRunner",
    "--direct_running_mode=multi_processing",
    "--direct_num_workers=2",
  ],
}


def environment() -> dict[str, str]:
  """The interpreter's own folder first: Beam starts `python` from PATH."""
  path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
  return os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "PATH": path}


def make_corpus(folder: Path, rows: int, seed: int) -> int:
  """Media, every tenth broken, and manifest.jsonl; the number of broken rows."""
  run = [sys.executable, "-m", "data.samples", f"--output={folder}"]
  subprocess.run(run, cwd=HERE.parent, env=environment(), check=True, stdout=subprocess.DEVNULL)
  lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
  draw = random.Random(seed)
  draw.shuffle(lines)
  lines = lines[:rows]
  broken = 0
  for number, row in enumerate(lines):
    if number % 10 == 3:
      break_file(folder, row, ("empty", "cut", "text", "flipped", "absent")[broken % 5], draw)
      broken += 1
  (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
  return broken


def break_file(folder: Path, row: dict[str, Any], kind: str, draw: random.Random) -> None:
  """Points a row at a damaged copy of its file."""
  source = folder / row["uri"]
  target = source.with_name(f"{kind}-{source.name}")
  content = bytearray(source.read_bytes())
  if kind == "flipped":
    start = draw.randrange(max(1, len(content) // 2))
    for i in range(start, min(len(content), start + 200)):
      content[i] ^= 0xFF
  if kind != "absent":
    changed = {"empty": b"", "cut": content[: len(content) // 2], "text": b"no media\n" * 40}
    target.write_bytes(changed.get(kind, bytes(content)))
  row["uri"] = str(target.relative_to(folder))


def make_encoders(folder: Path, manifest: Path) -> list[str]:
  """A small VAE and a small T5 of random weights; the flags that name them."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  import orbax.checkpoint as ocp

  from walt_t5x.vae.autoencoder import CausalVae

  fields = {
    "latent_channels": 8,
    "base_channels": 4,
    "channel_multipliers": (1, 2, 4),
    "num_res_blocks": 1,
    "temporal_downsample": (True, True),
  }
  lines = ["from __gin__ import dynamic_registration", "from walt_t5x.vae import autoencoder"]
  lines += [f"autoencoder.CausalVae.{name} = {value!r}" for name, value in fields.items()]
  gin, vae, text = folder / "vae.gin", folder / "vae", folder / "text"
  gin.write_text("\n".join(lines) + "\n")
  clip = jax.ShapeDtypeStruct((1, 5, 16, 16, 3), jnp.float32)
  shapes = jax.eval_shape(CausalVae(**fields).init, jax.random.key(0), clip)["params"]
  draw = np.random.default_rng(0)

  def weights(leaf: Any) -> np.ndarray:
    # Kernels keep the size of what they act on; biases and scales are near one.
    if len(leaf.shape) < 2:
      return (1 + 0.1 * draw.normal(size=leaf.shape)).astype(np.float32)
    values = draw.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
    return values.astype(np.float32)

  params = jax.tree.map(weights, shapes)
  tree = {"target": params, "state": {"step": np.int32(0), "param_states": {}}}
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
    writer.save(
      (vae / "checkpoint_0").resolve(), args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree))
    )
  command = ["-m", "walt_t5x.text.init_encoder", f"--captions={manifest}", f"--output={text}"]
  subprocess.run(
    [sys.executable, *command],
    cwd=HERE.parent,
    env=environment(),
    check=True,
    stdout=subprocess.DEVNULL,
  )
  return [f"--vae_gin_file={gin}", f"--vae_checkpoint={vae}", f"--text_encoder={text}"]


def command(corpus: Path, output: Path, flags: Sequence[str]) -> list[str]:
  return [
    sys.executable,
    "-m",
    "beam_jobs.preprocess",
    f"--manifest={corpus / 'manifest.jsonl'}",
    f"--output={output}",
    "--task=kills",
    "--resolutions=32x32",
    "--num_frames=9",
    "--num_shards=12",
    "--allow_upscale",
    "--batch_size=8",
    "--image_batch_size=8",
    "--qa_samples=2",
    *flags,
  ]


def tree(output: Path) -> dict[str, str]:
  return {
    str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(output.rglob("*"))
    if path.is_file()
  }


def whole_shards(output: Path) -> dict[str, tuple[int, ...]]:
  """Inode and time of the files of every shard whose sidecar states its content."""
  found = {}
  for sidecar in output.rglob("*.sidecar.json"):
    shard = Path(str(sidecar).removesuffix(".sidecar.json"))
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
      stated = json.loads(sidecar.read_text())["sha256"]
      if hashlib.sha256(shard.read_bytes()).hexdigest() == stated:
        stats = [path.stat() for path in (shard, sidecar)]
        found[str(shard)] = tuple(n for s in stats for n in (s.st_ino, s.st_mtime_ns))
  return found


def workers_of(launcher: int) -> list[int]:
  """Beam's worker processes below a launcher."""
  parents, names = {}, {}
  for entry in Path("/proc").iterdir():
    if entry.name.isdigit():
      with contextlib.suppress(OSError, IndexError):
        stat = (entry / "stat").read_text()
        parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
        names[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
  found = []
  for pid in parents:
    above = pid
    while above in parents and above != launcher:
      above = parents[above]
    if above == launcher and pid != launcher and "sdk_worker_main" in names.get(pid, ""):
      found.append(pid)
  return found


class Job:
  """One start of the job."""

  def __init__(self, argv: Sequence[str], log: Path):
    self._log = log.open("a")
    self.process = subprocess.Popen(
      argv, cwd=HERE.parent, env=environment(), stdout=self._log, stderr=self._log
    )
    self.started = time.monotonic()

  def end(self) -> None:
    """SIGKILL of the launcher and of the workers it leaves behind."""
    left = workers_of(self.process.pid)
    self.process.kill()
    self.process.wait()
    for pid in left:
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)

  def finish(self, seconds: float = 1200) -> int:
    return self.process.wait(timeout=seconds)


def killed_run(
  argv: Sequence[str],
  output: Path,
  log: Path,
  *,
  kills: int,
  target: str,
  seconds: float,
  draw: random.Random,
) -> dict[str, Any]:
  """Starts, kills and starts the job again; what happened."""
  whole: dict[str, tuple[int, ...]] = {}
  kept = again = 0
  moments = []
  for _ in range(kills):
    before = len(whole_shards(output)) if output.exists() else 0
    job = Job(argv, log)
    # Half of the kills fall anywhere in a run, the others right after a shard was closed.
    if draw.random() < 0.5:
      wait = draw.uniform(0.3, 0.9) * seconds
      while time.monotonic() - job.started < wait and job.process.poll() is None:
        time.sleep(0.02)
    else:
      wanted = before + draw.randint(1, 3)
      while job.process.poll() is None:
        if output.exists() and len(list(output.rglob("*.sidecar.json"))) >= wanted:
          break
        time.sleep(0.02)
      time.sleep(draw.uniform(0, 0.3))
    moments.append(round(time.monotonic() - job.started, 2))
    if target == "worker":
      victims = workers_of(job.process.pid)
      if victims:
        os.kill(draw.choice(victims), signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
          job.finish(20)
    job.end()
    found = whole_shards(output)
    again += sum(found.get(name) != stamp for name, stamp in whole.items())
    whole, kept = found, max(kept, len(found))
  job = Job(argv, log)
  code = job.finish()
  if code:
    sys.exit(f"the run to the end exited with {code}:\n{log.read_text()[-3000:]}")
  found = whole_shards(output)
  again += sum(found.get(name) != stamp for name, stamp in whole.items())
  return {
    "kills_after_seconds": moments,
    "whole_shards_at_last_kill": len(whole),
    "shards": len(found),
    "made_again_when_whole": again,
  }


@contextlib.contextmanager
def portable(log: Path) -> Iterator[list[str]]:
  """A job service and a pool of external workers, each a process of its own; the flags for them."""
  ports = []
  for _ in range(2):
    with socket.socket() as free:
      free.bind(("localhost", 0))
      ports.append(free.getsockname()[1])
  service, pool = ports
  out = log.open("a")
  started = [
    subprocess.Popen(
      [sys.executable, "-m", module, *flags],
      cwd=HERE.parent,
      env=environment(),
      stdout=out,
      stderr=out,
    )
    for module, flags in (
      ("apache_beam.runners.portability.local_job_service_main", [f"--job-port={service}"]),
      ("apache_beam.runners.worker.worker_pool_main", [f"--service_port={pool}"]),
    )
  ]
  try:
    for port in ports:
      deadline = time.monotonic() + 120
      while True:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
          break
        if time.monotonic() > deadline:
          sys.exit(f"nothing answers on port {port}:\n{log.read_text()[-2000:]}")
        time.sleep(0.2)
    yield [
      "--runner=PortableRunner",
      f"--job_endpoint=localhost:{service}",
      "--environment_type=EXTERNAL",
      f"--environment_config=localhost:{pool}",
    ]
  finally:
    for process in started:
      left = workers_of(process.pid)
      process.kill()
      process.wait()
      for pid in left:
        with contextlib.suppress(ProcessLookupError):
          os.kill(pid, signal.SIGKILL)


def ledger_of(output: Path) -> dict[str, int]:
  """Rows of all sidecars, and where they ended."""
  total = dict.fromkeys(("rows", "written", "rejected", "dead", "quarantined"), 0)
  for path in output.rglob("*.sidecar.json"):
    sidecar = json.loads(path.read_text())
    for kind in total:
      total[kind] += sidecar[kind]
  return total


def run(*, rows: int, kills: int, seed: int, checks: Sequence[str]) -> dict[str, Any]:
  draw = random.Random(seed)
  with tempfile.TemporaryDirectory() as temporary:
    work = Path(temporary)
    # Programs that a killed start has compiled are not compiled again, so that kills fall into the work.
    os.environ |= {
      "JAX_COMPILATION_CACHE_DIR": str(work / "xla"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    broken = make_corpus(work / "corpus", rows, seed)
    flags = make_encoders(work, work / "corpus" / "manifest.jsonl")
    peace, started = work / "peace", time.monotonic()
    code = Job(
      command(work / "corpus", peace, [*flags, *RUNNERS["in_process"]]), work / "peace.log"
    ).finish()
    if code:
      sys.exit(f"the run in peace exited with {code}:\n{(work / 'peace.log').read_text()[-3000:]}")
    seconds = time.monotonic() - started
    expected, ledger = tree(peace), ledger_of(peace)
    result: dict[str, Any] = {
      "rows": ledger["rows"],
      "broken": broken,
      "ledger": ledger,
      "seconds_in_peace": round(seconds, 1),
    }
    exact = ledger["rows"] == sum(v for k, v in ledger.items() if k != "rows")
    held = [exact and ledger["rows"] == rows and 0.7 * broken <= ledger["dead"] <= broken]
    print(json.dumps(result), flush=True)
    for target, runner in (("launcher", "in_process"), ("worker", "two_workers")):
      if target in checks:
        output = work / target
        found = killed_run(
          command(work / "corpus", output, [*flags, *RUNNERS[runner]]),
          output,
          work / f"{target}.log",
          kills=kills,
          target=target,
          seconds=seconds,
          draw=draw,
        )
        found["identical"] = tree(output) == expected
        held += [found["identical"], found["made_again_when_whole"] == 0]
        result[f"{target}_killed"] = found
        print(target, json.dumps(found), flush=True)
    if "runners" in checks:
      result["same_bytes"] = {}
      with portable(work / "portable.log") as portable_flags:
        for name, more in (("two_workers", RUNNERS["two_workers"]), ("portable", portable_flags)):
          output, log = work / name, work / f"{name}.log"
          code = Job(command(work / "corpus", output, [*flags, *more]), log).finish()
          if code:
            sys.exit(f"the run by {name} exited with {code}:\n{log.read_text()[-3000:]}")
          result["same_bytes"][name] = tree(output) == expected
          held.append(result["same_bytes"][name])
          print(name, result["same_bytes"][name], flush=True)
  result["held"] = all(held)
  return result


def table(result: Mapping[str, Any]) -> str:
  lines = ["| check | result |", "| --- | --- |"]
  for name, value in result.items():
    parts = value.items() if isinstance(value, dict) else [("", value)]
    text = ", ".join(f"{key.replace('_', ' ')} {part}".strip() for key, part in parts)
    lines.append(f"| {name.replace('_', ' ')} | {text} |")
  return "\n".join(lines) + "\n"


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rows", type=int, default=500)
  parser.add_argument("--kills", type=int, default=5, help="of each kind")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--checks", default="launcher,worker,runners")
  parser.add_argument("--output", default=str(HERE), help="where preprocess_kills.{md,json} go")
  args = parser.parse_args()
  result = run(
    rows=args.rows, kills=args.kills, seed=args.seed, checks=tuple(args.checks.split(","))
  )
  before = Path(args.output) / "preprocess_kills.json"
  if before.exists():
    # Checks may be run one by one; results of the same corpus stand together.
    found = json.loads(before.read_text())
    if all(found.get(key) == result[key] for key in ("rows", "broken", "ledger")):
      result = found | result | {"held": found["held"] and result["held"]}
  print(table(result))
  (Path(args.output) / "preprocess_kills.json").write_text(json.dumps(result, indent=1) + "\n")
  (Path(args.output) / "preprocess_kills.md").write_text(
    "# Preprocessing under SIGKILL, and on three runners\n\n" + table(result)
  )
  print("held" if result["held"] else "NOT HELD")
  return 0 if result["held"] else 1


if __name__ == "__main__":
  sys.exit(main())
