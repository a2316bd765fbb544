"""Rows per CPU second and memory of each kind of source at two sizes: a streaming source uses the same memory at both.

  python benchmarks/sources.py      # prints the table, writes benchmarks/sources.{md,json}

Each source is read in a separate process on one core, from local files to manifest lines. Growth is the increase of
peak memory from the smaller to the larger size.
"""

import argparse
import csv
import io
import itertools
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
KINDS = ("jsonl", "csv", "parquet", "webdataset")


def rows(count: int):
  """Rows similar to those of a web crawl."""
  for i in range(count):
    yield {
      "path": f"videos/{i % 1000:03d}/{i:09d}.mp4",
      "text": f"a caption of about a dozen words that says what clip {i} shows",
      "t0": i % 97 / 7,
      "aesthetic": 4 + i % 31 / 10,
    }


def write(kind: str, folder: Path, count: int) -> str:
  """Writes a file of `count` rows; returns its pattern."""
  path = folder / f"rows-{count}.{'tar' if kind == 'webdataset' else kind}"
  if kind == "jsonl":
    with open(path, "w") as stream:
      stream.writelines(json.dumps(row) + "\n" for row in rows(count))
  elif kind == "csv":
    with open(path, "w", newline="") as stream:
      writer = csv.DictWriter(stream, next(rows(1)))
      writer.writeheader()
      writer.writerows(rows(count))
  elif kind == "parquet":
    import pyarrow as pa
    import pyarrow.parquet

    written = pa.parquet.ParquetWriter(path, pa.Table.from_pylist(list(rows(1))).schema)
    every = rows(count)
    while group := list(itertools.islice(every, 20_000)):
      written.write_table(pa.Table.from_pylist(group))
    written.close()
  else:
    with tarfile.open(path, "w") as tar:
      for i, row in enumerate(rows(count)):
        for extension, data in (("json", json.dumps(row).encode()), ("mp4", bytes(600))):
          info = tarfile.TarInfo(f"{i:09d}.{extension}")
          info.size = len(data)
          tar.addfile(info, io.BytesIO(data))
  return str(path)


def lines(kind: str, path: str):
  """Manifest lines of a file, as in a worker."""
  from beam_jobs.sources import parts, tables, webdataset
  from beam_jobs.sources.columns import Columns

  columns = Columns(
    fields=(("uri", "path"), ("start_seconds", "t0")),
    captions=(("text", 1.0),),
    keep=("aesthetic",),
  )
  if kind == "jsonl":
    with open(path, "rb") as stream:
      for line in stream:
        yield from parts.json_lines(line, columns)
  elif kind == "csv":
    yield from tables.csv_lines(path, columns)
  elif kind == "parquet":
    for file, group in tables.parquet_groups(path):
      yield from tables.parquet_lines(file, group, columns)
  else:
    yield from webdataset.tar_lines(path, path, columns)


def read_one(kind: str, path: str) -> dict:
  """Measures one read in this process."""
  started, count = time.process_time(), 0
  for line in lines(kind, path):
    count += 1
    if count == 1 and ("aesthetic" not in line or "source_error" in line):
      raise RuntimeError(f"{kind}: not the row that was written: {line}")
  seconds = time.process_time() - started
  # Not ru_maxrss: that of a child process is at least the memory of its parent.
  status = Path("/proc/self/status").read_text()
  peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
  return {"rows": count, "seconds": seconds, "peak_mib": peak}


def measure(small: int, large: int) -> dict:
  """Measures both sizes of every source, each in a new process."""
  figures: dict = {}
  with tempfile.TemporaryDirectory() as folder:
    for kind in KINDS:
      figures[kind] = []
      for count in (small, large):
        path = write(kind, Path(folder), count)
        done = subprocess.run(
          [sys.executable, __file__, "--read", kind, path],
          capture_output=True,
          text=True,
          check=True,
          env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        )
        figures[kind].append(json.loads(done.stdout.splitlines()[-1]))
        if figures[kind][-1]["rows"] != count:
          raise RuntimeError(f"{kind}: got {figures[kind][-1]['rows']} rows, expected {count}")
        os.unlink(path)
  return {"sources": figures, "cpus": os.cpu_count(), "machine": platform.machine()}


def table(result: dict) -> str:
  """Markdown."""
  small, large = (part["rows"] for part in result["sources"]["jsonl"])
  out = [
    "# Sources",
    "",
    f"`python benchmarks/sources.py`: one core ({result['machine']}), local files, {small:,} and {large:,} rows.",
    "",
    f"| source | rows per CPU second | peak MiB at {small:,} | peak MiB at {large:,} | growth |",
    "| --- | --- | --- | --- | --- |",
  ]
  for kind, (first, second) in result["sources"].items():
    growth = second["peak_mib"] / first["peak_mib"] - 1
    out.append(
      f"| {kind} | {second['rows'] / second['seconds']:,.0f} | {first['peak_mib']:.0f} | {second['peak_mib']:.0f} | "
      f"{growth:+.1%} |"
    )
  return "\n".join(out) + "\n"


def main() -> None:
  """Runs the program."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--small", type=int, default=20_000)
  parser.add_argument("--large", type=int, default=100_000)
  parser.add_argument("--output", default=str(HERE / "sources"))
  parser.add_argument("--read", nargs=2, metavar=("KIND", "PATH"), help="read one file and print")
  args = parser.parse_args()
  if args.read:
    print(json.dumps(read_one(*args.read)))
    return
  result = measure(args.small, args.large)
  Path(f"{args.output}.json").write_text(json.dumps(result, indent=2) + "\n")
  Path(f"{args.output}.md").write_text(table(result))
  print(table(result), end="")


if __name__ == "__main__":
  main()
