"""Memory and time of the search for duplicates in 12,500, 25,000 and 50,000 synthetic clips, on the default runner.

  python -m benchmarks.duplicates_scale                    # about 4 minutes on two cores

A clip has random hashes and a random embedding of 512 numbers. A fifth of the clips share a band of their hashes: the
crowded one. One in ten clips is a near duplicate of another (each hash differs in 8 bits), one in twenty a semantic one
(cosine 0.98, other hashes). The originals of the latter are in a few hundred groups of clips with similar embeddings
(cosine 0.7). `Duplicates` runs as `--duplicates=near` and `--duplicates=semantic`, each in a new process. Writes
benchmarks/duplicates_scale.{md,json}; fails below a recall of 0.95 or a precision of 0.99, or if a clip of the largest
corpus needs more memory than one of the smallest by a quarter. Counts also how many pairs one cluster has.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results

HERE = Path(__file__).resolve().parent
SIZES = (12_500, 25_000, 50_000)
PARTS = 16
WIDTH, GROUPS = 512, 300
NEAR, SEMANTIC, CROWDED = 0.1, 0.05, 0.2
RECALL, PRECISION, GROWTH = 0.95, 0.99, 1.25
_CROWD = 12_345


def original(number: int) -> tuple[np.ndarray, np.ndarray]:
  """(hashes uint16 [24], unit vector) of a clip."""
  rng = np.random.default_rng(number)
  hashes = rng.integers(0, 2**16, 24, dtype=np.uint16)
  if rng.random() < CROWDED:
    hashes[0] = _CROWD
  group = np.random.default_rng((1, int(rng.integers(GROUPS)))).normal(size=WIDTH)
  return hashes, _mixed(group, rng.normal(size=WIDTH), 0.7)


def _mixed(one: np.ndarray, other: np.ndarray, cosine: float) -> np.ndarray:
  """The unit vector with a cosine of about `cosine**0.5` to one; two of the same one have about `cosine`."""
  return _unit(cosine**0.5 * _unit(one) + (1 - cosine) ** 0.5 * _unit(other))


def kinds(count: int) -> dict[str, range]:
  """Numbers of the clips that are copies; copy i of a kind is one of clip i, or of clip i behind the near ones."""
  near, semantic = round(NEAR * count), round(SEMANTIC * count)
  return {
    "near": range(count - near - semantic, count - semantic),
    "semantic": range(count - semantic, count),
  }


def source_of(number: int, count: int) -> int:
  """The clip that a clip is a copy of, or itself."""
  near, semantic = kinds(count).values()
  if number in near:
    return number - near.start
  return number - semantic.start + len(near) if number in semantic else number


def candidates(part: int, count: int, with_embeddings: bool) -> Iterator[Any]:
  """Every 16th clip."""
  from beam_jobs.curation import duplicates

  near, semantic = kinds(count).values()
  for number in range(part, count, PARTS):
    hashes, vector = original(number)
    rng = np.random.default_rng((2, number))
    source = source_of(number, count)
    if number in near:
      bits = np.unpackbits(original(source)[0].view(np.uint8)).reshape(3, -1)
      for row in bits:
        row[rng.choice(128, 8, replace=False)] ^= 1
      hashes = np.packbits(bits).view(np.uint16)
    elif number in semantic:
      vector = original(source)[1]
      vector = _mixed(vector, rng.normal(size=WIDTH), 0.98**2)
    yield duplicates.Candidate(
      quality=float(source == number) + float(rng.random()),
      name=f"{part:05d} 0 2000000 videos/{number:06}.mp4",
      digest=f"{number:032x}",
      hashes=hashes.tobytes(),
      embedding=vector.astype(np.float16).tobytes() if with_embeddings else b"",
    )


def measure(count: int, mode: str, folder: str) -> dict[str, Any]:
  """What one run finds and needs, in a new process."""
  import apache_beam as beam
  from apache_beam.io import WriteToText

  from beam_jobs.curation import duplicates
  from beam_jobs.runners import running

  # Imports and the first pipeline need memory too.
  with beam.Pipeline(options=running.beam_options([])) as root:
    few = root | beam.Create(range(PARTS)) | beam.FlatMap(candidates, 100, True)
    _ = few | duplicates.Duplicates(18.0, 0.95)
  before, started = _peak(), time.monotonic()
  semantic = mode == "semantic"
  with beam.Pipeline(options=running.beam_options([])) as root:
    clips = root | beam.Create(range(PARTS)) | beam.FlatMap(candidates, count, semantic)
    pairs = clips | duplicates.Duplicates(18.0, 0.95 if semantic else None)
    _ = pairs | beam.Map(json.dumps) | WriteToText(f"{folder}/found", shard_name_template="")
  took, after = time.monotonic() - started, _peak()
  found = [json.loads(line) for line in Path(folder, "found").open(encoding="utf-8")]
  planted = kinds(count) if semantic else {"near": kinds(count)["near"]}
  right = dict.fromkeys(planted, 0)
  for name, (_, _, better) in found:
    number, of = (int(text[-10:-4]) for text in (name, better))
    if source_of(number, count) == of != number:
      right[next(kind for kind in planted if number in planted[kind])] += 1
  return {
    "clips": count,
    "mode": mode,
    "seconds": round(took, 1),
    "before_mib": round(before / 2**20, 1),
    "peak_mib": round(after / 2**20, 1),
    "kib_per_clip": round((after - before) / 2**10 / count, 2),
    "recall": {kind: round(right[kind] / len(planted[kind]), 4) for kind in planted},
    "precision": round(sum(right.values()) / max(1, len(found)), 4),
  }


def shares_of_clusters(cosine: float) -> list[float]:
  """Share of 10,000 pairs with a cosine that are in one cluster: of vectors in groups, and of independent ones."""
  from beam_jobs.curation import clusters

  found, count = [], 10_000
  for groups in (GROUPS, 0):
    rng = np.random.default_rng(0)
    one, other = _unit(rng.normal(size=(2, count, WIDTH)))
    if groups:
      centers = _unit(rng.normal(size=(groups, WIDTH)))
      one = 0.7**0.5 * centers[rng.integers(groups, size=count)] + 0.3**0.5 * one
      one = _unit(one)
    other = _unit(other - (other * one).sum(1, keepdims=True) * one)
    pairs = np.concatenate([one, cosine * one + (1 - cosine**2) ** 0.5 * other]).astype(np.float16)
    sample = pairs[rng.permutation(len(pairs))]
    own = clusters.nearest(pairs, clusters.fit(sample, len(pairs), least_distance=1 - cosine))
    found.append(float((own[:count] == own[count:]).mean()))
  return found


def _unit(vectors: np.ndarray) -> np.ndarray:
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _peak() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
  """Measures each size in a new process and writes the table; returns 1 if a bar is missed."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--clips", type=int, help="only this size, in this process")
  parser.add_argument("--mode", choices=("near", "semantic"), default="near")
  args = parser.parse_args()
  if args.clips:
    with tempfile.TemporaryDirectory() as folder:
      print(json.dumps(measure(args.clips, args.mode, folder)))
    return 0
  rows = []
  for mode in ("near", "semantic"):
    for count in SIZES:
      command = [
        sys.executable,
        "-m",
        "benchmarks.duplicates_scale",
        f"--clips={count}",
        f"--mode={mode}",
      ]
      done = subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.PIPE, text=True)
      rows.append(json.loads(done.stdout.splitlines()[-1]))
      print(rows[-1], file=sys.stderr)
  shares = {cosine: shares_of_clusters(cosine) for cosine in (0.99, 0.95, 0.9, 0.8)}
  lines = [
    "# Duplicates in 50,000 clips",
    "",
    "Written by `python -m benchmarks.duplicates_scale`, which says what the clips are. The runner is the default one,",
    "which keeps in memory what other runners write to disks. A clip is in up to 24 bands, with about 130 bytes in",
    "each: 3 KiB; the rest is what the runner needs for its copies and keys. An embedding has 1 KiB, and is grouped",
    "twice. A comparison holds the clips of one band or one cluster.",
    "",
    "| --duplicates | clips | in one band | seconds | peak MiB | before | KiB per clip | recall | precision |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    *map(_line, rows),
    "",
    "Semantic duplicates in different clusters are missed. Of 10,000 pairs of vectors with 512 numbers, these are in",
    f"one cluster, if the vectors are in {GROUPS} groups (cosine 0.7), and if they are independent, the worst case:",
    "",
    "| cosine | in groups | independent |",
    "| --- | --- | --- |",
    *(f"| {cosine} | {a:.4f} | {b:.4f} |" for cosine, (a, b) in shares.items()),
    "",
  ]
  figures = {"runs": rows, "pairs_in_one_cluster": shares}
  results.write(HERE, "duplicates_scale", "\n".join(lines), figures)
  wrong = [
    row for row in rows if min(row["recall"].values()) < RECALL or row["precision"] < PRECISION
  ]
  for small, large in ((rows[0], rows[2]), (rows[3], rows[5])):
    if large["kib_per_clip"] > GROWTH * small["kib_per_clip"]:
      wrong.append(large)
  return int(bool(wrong))


def _line(row: dict[str, Any]) -> str:
  recall = ", ".join(f"{kind} {value:.3f}" for kind, value in row["recall"].items())
  return (
    f"| {row['mode']} | {row['clips']:,} | {round(CROWDED * row['clips']):,} | {row['seconds']:,.0f} "
    f"| {row['peak_mib']:,.0f} | {row['before_mib']:,.0f} | {row['kib_per_clip']:.1f} | {recall} "
    f"| {row['precision']:.3f} |"
  )


if __name__ == "__main__":
  sys.exit(main())
