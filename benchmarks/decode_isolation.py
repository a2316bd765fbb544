"""CPU time of rows that are decoded in threads of the worker compared with separate processes.

  python benchmarks/decode_isolation.py     # prints the table, writes benchmarks/decode_isolation.{md,json}

Two threads decode 17 frames at 8 fps from the middle of a rendered 1280x720 H.264 clip of 5 s, read from disk; both
modes in turns, median of the rounds. CPU time, including that of the decoding processes, is also valid on a machine
with other load. The cost of isolation is the transfer of the pixels through a socket.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZES = {
  "128x128": ((128, 128),),
  "128x128 + 256x448 + 512x896": ((128, 128), (256, 448), (512, 896)),
}


def render(path: Path) -> None:
  """Writes a moving pattern with detail."""
  import numpy as np

  from walt_t5x.media import writing

  y, x = np.mgrid[0:720, 0:1280]
  noise = np.random.default_rng(0).integers(0, 24, (720, 1280, 3))
  frames = [
    np.stack([(x + 4 * k) % 200, (y + 2 * k) % 200, (x + y) % 200], axis=-1) + np.roll(noise, k, 0)
    for k in range(120)
  ]
  writing.write_video(path, np.stack(frames).astype(np.uint8), fps=24, crf=23)


def cpu_seconds() -> float:
  """CPU time so far, of this process and its decoding processes."""
  total = time.process_time()
  for pid in decoders():
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
  return total


def decoders() -> list[int]:
  """Decoding processes of this process."""
  shown = subprocess.run(
    ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())],
    capture_output=True,
    text=True,
    check=False,
  )
  lines = [line.split(maxsplit=1) for line in shown.stdout.splitlines()]
  return [int(pid) for pid, command in lines if "walt_t5x.media.isolation" in command]


def cost(row, spec, settings, *, rows: int, threads: int) -> float:
  """Milliseconds of CPU time per row."""
  from beam_jobs.shards import loading

  with ThreadPoolExecutor(threads) as pool:
    started = cpu_seconds()
    loaded = list(pool.map(lambda _: loading.load_row(row, spec, (), settings), range(rows)))
    seconds = cpu_seconds() - started
  failed = [result for result in loaded if isinstance(result, loading.Failure)]
  if failed:
    raise RuntimeError(f"a row failed: {failed[0]}")
  return 1000 * seconds / rows


def start_seconds() -> float:
  """Time from the start of a decoding process to its first result."""
  from walt_t5x.media.isolation import Isolated

  started = time.monotonic()
  pool = Isolated(len, processes=1, timeout_seconds=60)
  pool(b"x")
  seconds = time.monotonic() - started
  pool.close()
  return seconds


def measure(*, rows: int, rounds: int, threads: int) -> dict:
  """Measures the figures of the table."""
  from beam_jobs.shards import loading
  from beam_jobs.sources.rows import parse_line
  from walt_t5x.media.clips import ClipSpec

  settings = {
    kind: loading.DecodeSettings(isolation=kind, threads=threads) for kind in loading.ISOLATIONS
  }
  figures = {}
  with tempfile.TemporaryDirectory() as folder:
    render(Path(folder) / "clip.mp4")
    row = parse_line('{"uri": "clip.mp4", "caption": "x"}', folder)
    for name, sizes in SIZES.items():
      spec = ClipSpec(resolutions=sizes, num_frames=17, fps=8.0)
      found = {kind: [] for kind in settings}
      for _ in range(rounds + 1):
        for kind, how in settings.items():
          found[kind].append(cost(row, spec, how, rows=rows, threads=threads))
      # The first round starts the processes and warms the caches.
      figures[name] = {kind: values[1:] for kind, values in found.items()}
  return {
    "cpu_ms_a_row": figures,
    "start_seconds": start_seconds(),
    "resident_mib": resident_mib(),
    "threads": threads,
    "rows": rows,
    "cpus": os.cpu_count(),
    "machine": platform.machine(),
  }


def resident_mib() -> list[float]:
  """Resident memory of the running decoding processes."""
  found = []
  for pid in decoders():
    status = Path(f"/proc/{pid}/status").read_text()
    found.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
  return found


def table(result: dict) -> str:
  """Markdown."""
  lines = [
    "# Decoding in separate processes",
    "",
    f"`python benchmarks/decode_isolation.py`: 17 frames from 720p H.264, {result['threads']} rows at a time, median "
    f"(min to max) on {result['cpus']} CPU cores ({result['machine']}).",
    "",
    "| resolutions | thread, CPU ms per row | process, CPU ms per row | process / thread |",
    "| --- | --- | --- | --- |",
  ]
  for name, found in result["cpu_ms_a_row"].items():
    middle = {kind: statistics.median(values) for kind, values in found.items()}
    cells = [
      f"{middle[kind]:.0f} ({min(found[kind]):.0f} to {max(found[kind]):.0f})"
      for kind in ("thread", "process")
    ]
    lines.append(
      f"| {name} | {cells[0]} | {cells[1]} | {middle['process'] / middle['thread']:.2f} |"
    )
  sizes = ", ".join(f"{size:.0f}" for size in result["resident_mib"])
  lines += [
    "",
    f"A process starts in {result['start_seconds']:.2f} s and uses {sizes} MiB after this.",
  ]
  return "\n".join(lines) + "\n"


def main() -> None:
  """Runs the program."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rows", type=int, default=24)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--output", default=str(HERE / "decode_isolation"))
  args = parser.parse_args()
  result = measure(rows=args.rows, rounds=args.rounds, threads=args.threads)
  Path(f"{args.output}.json").write_text(json.dumps(result, indent=2) + "\n")
  Path(f"{args.output}.md").write_text(table(result))
  print(table(result), end="")


if __name__ == "__main__":
  sys.path.insert(0, str(HERE.parent))
  main()
