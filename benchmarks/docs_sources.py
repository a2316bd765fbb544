"""Small data sets of each kind that docs/sources.md names, from the sample corpus, for its commands."""

import csv
import json
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def make(corpus: Path, data: Path) -> None:
  """Writes them to the folder `data` from the files of `corpus`, the output of `data.samples`."""
  rows = [json.loads(line) for line in (corpus / "manifest.jsonl").open(encoding="utf-8")]
  clips = [row for row in rows if row["uri"].startswith("clips/train") and "mp4" in row["uri"]][:4]
  stills = [row for row in rows if row["uri"].startswith("stills/")][:4]
  for name in (
    "shards",
    "UCF-101/Square",
    "ILSVRC/train/n01440764",
    "k600/train/square",
    "ucf",
    "rows",
  ):
    (data / name).mkdir(parents=True, exist_ok=True)
  (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in clips))
  table = {
    "path": [row["uri"] for row in clips],
    "alt_text": [row["captions"][0] for row in clips],
    "long_caption": [f"a clip in which {row['captions'][0]}" for row in clips],
    "t0": [0.0] * len(clips),
    "sha256": [f"{i:064x}" for i in range(len(clips))],
  }
  pq.write_table(pa.table(table), data / "rows/0.parquet")
  for number in range(2):
    with tarfile.open(data / f"shards/{number:05d}.tar", "w") as tar:
      for row in clips[2 * number : 2 * number + 2]:
        text = data / "caption.txt"
        text.write_text(row["captions"][0])
        name = Path(row["uri"]).stem
        tar.add(corpus / row["uri"], f"{name}.mp4")
        tar.add(text, f"{name}.txt")
  for i, row in enumerate(clips):
    shutil.copy2(corpus / row["uri"], data / f"UCF-101/Square/v_Square_g01_c0{i}.mp4")
    shutil.copy2(corpus / row["uri"], data / f"k600/train/square/clip{i}_000000_000001.mp4")
  (data / "ucf/testlist01.txt").write_text("Square/v_Square_g01_c00.mp4\n")
  for row in stills:
    shutil.copy2(corpus / row["uri"], data / "ILSVRC/train/n01440764")
  (data / "LOC_synset_mapping.txt").write_text("n01440764 square, quadrangle\n")
  with (data / "k600/train.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
    writer.writerows(["square", f"clip{i}", 0, 1, "train"] for i in range(len(clips)))
