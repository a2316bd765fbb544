"""Rows per second of the preprocessing job compared with a bare loop, with one and two workers, and its memory.

  python -m benchmarks.preprocess                  # all; prints and writes benchmarks/preprocess.{md,json}
  python -m benchmarks.preprocess --parts=memory   # one of rate, memory; the other's figures are kept

Rate: rendered clips of 17 frames at 64 x 64, every row with its own caption, encoded by a causal VAE with 16 base
channels and a T5 with random weights. Each variant is timed after its first part, when everything is compiled:

  bare    one process, one loop: read the file, `decoding.decode`, stack a batch, `encode` of the VAE and of the T5,
          fetch the latents. Nothing is hashed, filtered, packed, written or counted.
  one     the job, one process: FnApiRunner, decoding in separate processes, shards, sidecars
  two     the job on two worker processes

Every process and its descendants are pinned to one core: bare and one to core 0, the two workers to one core each. So
overlapping gains nothing, and the overhead of the job is visible. Rows per second of wall-clock time are comparable
only on an otherwise idle machine; with other load, a job of several processes gets a larger share. Rows per CPU second
then show the cost of a row, but not how well two workers run in parallel.

Memory: 5,000 rows of 9 frames at 32 x 32 in one process; resident memory of the job and its descendants during the
last nine tenths of its shards.

Held: one at least 0.9 of bare; two at least 1.7 of one; memory within 5% of its mean.
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import beam_runners
from benchmarks.preprocess_corpus import make_encoders

HERE = Path(__file__).resolve().parent
BATCH = 4
BARS = {"one_of_bare": 0.9, "two_of_one": 1.7, "memory_spread": 0.05}
_SIDECAR = ".sidecar.json"


def make_corpus(folder: Path, *, rows: int, files: int, size: int, frames: int) -> Path:
  """Renders `files` clips and writes a manifest that repeats them with distinct names and captions."""
  command = [sys.executable, "-m", "data.samples", f"--output={folder}", "--no_real"]
  command += [f"--num_clips={files}", "--num_stills=1", "--validation_fraction=0"]
  command += [f"--size={size}", f"--num_frames={frames}"]
  subprocess.run(
    command, cwd=beam_runners.ROOT, env=beam_runners.environment(), check=True, capture_output=True
  )
  manifest = folder / "manifest.jsonl"
  lines = [json.loads(line) for line in manifest.read_text().splitlines()]
  clips = [row for row in lines if row["modality"] == "video"]
  with manifest.open("w") as file:
    for number in range(rows):
      row = clips[number % len(clips)]
      (caption,) = row["captions"]
      # The name decides the shard: with equal names, shards would have very different sizes.
      take = f"take{number}{Path(row['uri']).suffix}"
      (folder / take).hardlink_to(folder / row["uri"])
      row = row | {"uri": take, "captions": [f"{caption}, take {number}"]}
      file.write(json.dumps(row) + "\n")
  return manifest


def flags_of(manifest: Path, encoders: Sequence[str], *, size: int, frames: int) -> list[str]:
  """Flags of the job that the bare loop also uses."""
  return [
    f"--manifest={manifest}",
    *encoders,
    f"--resolutions={size}x{size}",
    f"--num_frames={frames}",
    f"--batch_size={BATCH}",
    "--task=clips",
    "--num_validation_shards=1",
  ]


def bare_loop(argv: Sequence[str]) -> dict[str, float]:
  """Only decodes and encodes every row; rows per second after the first batch."""
  import numpy as np

  from beam_jobs.runners import job_flags
  from beam_jobs.shards import encoders
  from beam_jobs.sources.rows import parse_line
  from walt_t5x.media import clips, decoding

  args, _ = job_flags.parse(argv, description=__doc__)
  config = encoders.EncoderConfig(
    vae_config=json.dumps(job_flags.vae_fields_of_gin(args.vae_gin_file), sort_keys=True),
    vae_checkpoint=args.vae_checkpoint,
    text_folder=args.text_encoder,
    max_text_length=args.max_text_length,
    batch_size=BATCH,
  )
  loaded = encoders.get_encoders(config)
  clip = clips.ClipSpec(resolutions=args.resolutions, num_frames=args.num_frames, fps=args.fps)
  (size,) = args.resolutions
  folder = str(Path(args.manifest).parent)
  rows = [parse_line(line, folder) for line in Path(args.manifest).read_text().splitlines()]
  batches = [rows[i : i + BATCH] for i in range(0, len(rows) - BATCH + 1, BATCH)]
  began, processor = 0.0, 0.0
  for number, batch in enumerate(batches):
    if number == 1:
      began, processor = time.perf_counter(), time.process_time()
    clips = [decoding.decode(Path(row.path).read_bytes(), "video", clip) for row in batch]
    latents = loaded.start_encode(np.stack([c.frames[size] for c in clips]), BATCH)
    loaded.encode_text([caption for row in batch for caption in row.captions])
    np.asarray(latents)
  done = (len(batches) - 1) * BATCH
  return {
    "rows": done,
    "rows_per_second": done / (time.perf_counter() - began),
    "rows_per_processor_second": done / (time.process_time() - processor),
  }


def pinned(core: int) -> list[str]:
  """Command prefix that pins a process and its descendants to one core."""
  code = f"import os, sys; os.sched_setaffinity(0, {{{core}}}); os.execv(sys.argv[1], sys.argv[1:])"
  return [sys.executable, "-c", code]


def pin(pid: int, core: int) -> None:
  """Pins the threads of a process, and the processes that they start later, to one core."""
  with contextlib.suppress(FileNotFoundError, ProcessLookupError):
    for thread in Path(f"/proc/{pid}/task").iterdir():
      with contextlib.suppress(ProcessLookupError):
        os.sched_setaffinity(int(thread.name), {core})


def closings(output: Path) -> list[tuple[float, int]]:
  """(closing time, number of rows) of each shard with rows, in order."""
  found = []
  for path in output.glob(f"*_videos/train*{_SIDECAR}"):
    if rows := json.loads(path.read_text())["rows"]:
      found.append((path.stat().st_mtime, rows))
  return sorted(found)


class Processor:
  """CPU seconds of a process and its descendants, sampled by `look`."""

  def __init__(self, pid: int):
    self._pid, self._seen = pid, [(time.time(), 0.0)]

  def look(self) -> None:
    ticks = 0
    for one in (self._pid, *beam_runners.descendants(self._pid)):
      with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    self._seen.append((time.time(), ticks / os.sysconf("SC_CLK_TCK")))

  def at(self, moment: float) -> float:
    """Seconds used at a time, interpolated between samples."""
    import numpy as np

    return float(np.interp(moment, *zip(*self._seen, strict=True)))

  def busy_until(self) -> float:
    """Time of the last sample at which it had used more than half of the time since the previous sample."""
    pairs = itertools.pairwise(self._seen)
    return max(b[0] for a, b in pairs if b[1] - a[1] > 0.5 * (b[0] - a[0]))


def rate(output: Path, processor: Processor, workers: Sequence[Processor] = ()) -> dict[str, float]:
  """Rows per second while all workers are busy: the slope of the number of closed rows over closing time.

  The number of rows in open shards is about constant, so it does not affect the slope. The runner assigns the shards
  once, so one worker finishes before the other; the time after that is not counted.
  """
  import numpy as np

  closed = closings(output)
  end = min((one.busy_until() for one in workers), default=closed[-1][0])
  times = [moment for moment, _ in closed if moment <= end]
  rows = np.cumsum([rows for _, rows in closed])
  used = [processor.at(moment) for moment in times]
  return {
    "rows": int(rows[-1]),
    "shards": len(closed),
    "shards_counted": len(times),
    "rows_per_second": float(np.polyfit(np.array(times) - times[0], rows[: len(times)], 1)[0]),
    "rows_per_processor_second": float(np.polyfit(used, rows[: len(times)], 1)[0]),
  }


def job(
  flags: Sequence[str], output: Path, log: Path, *, shards: int, workers: int
) -> beam_runners.Process:
  runner = beam_runners.TWO_WORKERS if workers == 2 else beam_runners.IN_PROCESS
  command = [sys.executable, "-m", "beam_jobs.preprocess", f"--output={output}"]
  command += [f"--num_shards={shards}", *flags, *runner]
  return beam_runners.Process([*(pinned(0) if workers == 1 else []), *command], log)


def measure_rate(work: Path, *, rows: int, shards: int) -> dict[str, Any]:
  size, frames = 64, 17
  manifest = make_corpus(work / "corpus", rows=rows, files=72, size=size, frames=frames)
  encoders = make_encoders(work, manifest, base_channels=16)
  flags = flags_of(manifest, encoders, size=size, frames=frames)
  environment = beam_runners.environment()
  found: dict[str, Any] = {"rows": rows, "size": size, "frames": frames}
  bare = [sys.executable, "-m", "benchmarks.preprocess", "--bare", "--output=-", *flags]
  done = subprocess.run(
    [*pinned(0), *bare], cwd=beam_runners.ROOT, env=environment, check=True, stdout=subprocess.PIPE
  )
  found["bare"] = json.loads(done.stdout.splitlines()[-1])
  for name, workers in (("one", 1), ("two", 2)):
    output = work / name
    process = job(flags, output, work / f"{name}.log", shards=shards, workers=workers)
    processor, busy = Processor(process.pid), {}
    while process.running:
      if workers == 2:
        for core, pid in enumerate(beam_runners.workers_of(process.pid)):
          busy.setdefault(pid, Processor(pid)).look()
          if not closings(output):
            pin(pid, core % 2)
      processor.look()
      time.sleep(0.3)
    process.must_finish()
    found[name] = rate(output, processor, list(busy.values()))
  for kind in ("rows_per_second", "rows_per_processor_second"):
    speeds = {name: found[name][kind] for name in ("bare", "one", "two")}
    after = "" if kind == "rows_per_second" else "_by_processor_seconds"
    found[f"one_of_bare{after}"] = speeds["one"] / speeds["bare"]
    found[f"two_of_one{after}"] = speeds["two"] / speeds["one"]
  return found


def resident(pid: int) -> float:
  """Resident memory in MiB of a process and its descendants."""
  pages = 0
  for one in (pid, *beam_runners.descendants(pid)):
    with contextlib.suppress(OSError, IndexError):
      pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure_memory(work: Path, *, rows: int, shards: int) -> dict[str, Any]:
  size, frames = 32, 9
  manifest = make_corpus(work / "small", rows=rows, files=72, size=size, frames=frames)
  flags = flags_of(manifest, make_encoders(work, manifest), size=size, frames=frames)
  output = work / "memory"
  process = job(flags, output, work / "memory.log", shards=shards, workers=1)
  samples: list[list[float]] = [[] for _ in range(shards + 1)]
  while process.running:
    samples[len(closings(output))].append(resident(process.pid))
    time.sleep(0.25)
  seconds = process.must_finish()
  # After the last shard, the job stops its decoders and writes statistics.
  means = [statistics.fmean(part) for part in samples[shards // 10 : len(closings(output))] if part]
  mean = statistics.fmean(means)
  return {
    "rows": rows,
    "shards": shards,
    "seconds": round(seconds, 1),
    "mebibytes_by_part": [round(value, 1) for value in means],
    "mean_mebibytes": round(mean, 1),
    "memory_spread": max(abs(value / mean - 1) for value in means),
  }


def table(report: dict[str, Any]) -> str:
  lines = []
  if rates := report.get("rate"):
    lines += ["| | rows/s | ratio | rows per CPU second | ratio |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for name, against in (("bare", ""), ("one", "one_of_bare"), ("two", "two_of_one")):
      ratio = f"{rates[against]:.2f} of {against[7:]} (bar {BARS[against]})" if against else ""
      work = rates[name]["rows_per_processor_second"]
      by_work = f"{rates[against + '_by_processor_seconds']:.2f}" if against else ""
      clock = rates[name]["rows_per_second"]
      lines.append(f"| {name} | {clock:.2f} | {ratio} | {work:.2f} | {by_work} |")
    held = all(rates[name] >= BARS[name] for name in ("one_of_bare", "two_of_one"))
    lines += [
      "",
      f"{rates['rows']} clips of {rates['frames']} frames at {rates['size']} x {rates['size']}: "
      + ("held" if held else "NOT HELD"),
    ]
  if memory := report.get("memory"):
    parts = memory["mebibytes_by_part"]
    held = memory["memory_spread"] <= BARS["memory_spread"]
    lines += [
      "",
      f"Memory over {memory['rows']:,} rows: {min(parts):,.0f} to {max(parts):,.0f} MiB, mean "
      f"{memory['mean_mebibytes']:,.0f}, at most {memory['memory_spread']:.1%} off (bar 5%): "
      + ("held" if held else "NOT HELD"),
    ]
  return "\n".join(lines) + "\n"


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--rows", type=int, default=1280, help="rows of the rate part")
  parser.add_argument("--shards", type=int, default=32, help="shards of the rate part")
  parser.add_argument("--memory_rows", type=int, default=5000)
  parser.add_argument("--parts", default="rate,memory")
  parser.add_argument("--output", default=str(HERE), help="folder of preprocess.{md,json}")
  parser.add_argument("--work", help="folder for the runs; a temporary one by default")
  if "--bare" in sys.argv:
    sys.argv.remove("--bare")
    print(json.dumps(bare_loop(sys.argv[1:])))
    return 0
  args = parser.parse_args()
  file = Path(args.output) / "preprocess.json"
  report = json.loads(file.read_text()) if file.exists() else {}
  parts = {
    "rate": functools.partial(measure_rate, rows=args.rows, shards=args.shards),
    "memory": functools.partial(measure_memory, rows=args.memory_rows, shards=25),
  }
  for part in args.parts.split(","):
    with tempfile.TemporaryDirectory(dir=args.work) as work:
      report[part] = parts[part](Path(work))
    file.write_text(json.dumps(report, indent=1) + "\n")
  report["held"] = (
    report.get("rate", {}).get("one_of_bare", 0) >= BARS["one_of_bare"]
    and report["rate"]["two_of_one"] >= BARS["two_of_one"]
    and report.get("memory", {}).get("memory_spread", 1) <= BARS["memory_spread"]
  )
  print(table(report))
  file.write_text(json.dumps(report, indent=1) + "\n")
  file.with_suffix(".md").write_text("# Preprocessing: rate and memory\n\n" + table(report))
  return 0 if report["held"] else 1


if __name__ == "__main__":
  raise SystemExit(main())
