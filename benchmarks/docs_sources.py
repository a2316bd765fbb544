"""Small data sets of each kind that docs/sources.md and docs/your-data.md name, from the sample corpus."""

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def make_own(corpus: Path, data: Path) -> None:
  """Writes what docs/your-data.md starts from to `data`: twelve videos and a table, twelve images, four classes."""
  rows = [json.loads(line) for line in (corpus / "manifest.jsonl").open(encoding="utf-8")]
  clips = [row for row in rows if row["uri"].startswith("clips/") and "mp4" in row["uri"]][:12]
  stills = [row for row in rows if row["uri"].startswith("stills/")][:12]
  (data / "videos").mkdir(parents=True, exist_ok=True)
  with (data / "videos.csv").open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["file", "caption"])
    for i, row in enumerate(clips):
      shutil.copy2(corpus / row["uri"], data / f"videos/{i:02}.mp4")
      writer.writerow([f"videos/{i:02}.mp4", row["captions"][0]])
  with tarfile.open(data / "images.tar", "w") as tar:
    for i, row in enumerate(stills):
      _add(tar, f"{i:02}{Path(row['uri']).suffix}", (corpus / row["uri"]).read_bytes())
      _add(tar, f"{i:02}.txt", row["captions"][0].encode())
  for i, row in enumerate(clips):
    folder = data / "classes" / ("runs", "jumps", "falls", "turns")[i % 4]
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(corpus / row["uri"], folder / f"{i:02}.mp4")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
  entry = tarfile.TarInfo(name)
  entry.size = len(content)
  tar.addfile(entry, io.BytesIO(content))


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
        name = Path(row["uri"]).stem
        _add(tar, f"{name}.mp4", (corpus / row["uri"]).read_bytes())
        _add(tar, f"{name}.txt", row["captions"][0].encode())
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
