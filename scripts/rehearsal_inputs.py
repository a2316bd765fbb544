"""Lays what the commands of docs/reproduce.md read into the current folder, under the names that the page uses.

  python -m scripts.rehearsal_inputs ucf101 /data

Corpora are links to the first rows of the given one. Weights are random: those of the scoring networks have their real
shapes, the text encoder has T5-XL's width and one layer. Gin files include the repository's, then gin/rehearsal/.
"""

import itertools
import json
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from scripts.rehearsal_steps import IMAGES, gin_files, page_steps, weights

ROOT = Path(__file__).resolve().parents[1]
# Rows for training, and for validation or reference. A protocol with one clip per reference needs 10.
ROWS = 16
VALIDATION_ROWS = 8


def find(corpus: Path, *names: str) -> list[Path]:
  """Paths below the corpus.

  Raises:
    FileNotFoundError: one does not exist; the message lists what the corpus needs.
  """
  missing = [name for name in names if not (corpus / name).exists()]
  if missing:
    raise FileNotFoundError(
      f"{corpus} has no {' and no '.join(missing)}; expected the names of docs/reproduce.md: {', '.join(names)}"
    )
  return [corpus / name for name in names]


def link(source: Path, target: Path) -> None:
  """Links a file or folder at its own name."""
  target.parent.mkdir(parents=True, exist_ok=True)
  target.unlink(missing_ok=True)
  target.symlink_to(source.resolve())


def in_turn(groups: Iterable[Iterable[str]], count: int) -> list[str]:
  """The first of each group, then the second of each, and so on, up to `count`."""
  rounds = itertools.zip_longest(*groups)
  return list(itertools.islice((item for group in rounds for item in group if item), count))


def link_class_folders(source: Path, target: Path, count: int) -> str:
  """Links the first files of the first classes; returns what was taken."""
  classes = sorted(folder for folder in source.iterdir() if folder.is_dir())[:count]
  files = (sorted(f"{folder.name}/{file.name}" for file in folder.iterdir()) for folder in classes)
  taken = in_turn(files, count)
  for name in taken:
    link(source / name, target / name)
  return f"{len(taken)} files of {source.name}"


def link_list(corpus: Path, work: Path, name: str, count: int) -> str:
  """Writes the first lines of each class in one of UCF-101's lists, and links their videos."""
  (listed,) = find(corpus, f"ucfTrainTestlist/{name}")
  groups = defaultdict(list)
  lines = listed.read_text("utf-8").splitlines()
  for line in filter(str.strip, lines):
    groups[line.split("/")[0]].append(line)
  taken = in_turn(groups.values(), count)
  target = work / "ucfTrainTestlist" / name
  target.parent.mkdir(exist_ok=True)
  target.write_text("".join(f"{line}\n" for line in taken), encoding="utf-8")
  for video in (line.split()[0] for line in taken):
    if (corpus / "UCF-101" / video).exists():
      link(corpus / "UCF-101" / video, work / "UCF-101" / video)
  return f"{len(taken)} of {len(lines)} lines of {name}"


def lay_ucf101(corpus: Path, work: Path) -> list[str]:
  """Both lists of the first split, shortened, and their videos."""
  find(corpus, "UCF-101", "ucfTrainTestlist")
  return [
    link_list(corpus, work, "trainlist01.txt", ROWS),
    link_list(corpus, work, "testlist01.txt", VALIDATION_ROWS),
  ]


def lay_k600(corpus: Path, work: Path) -> list[str]:
  """The first rows of the table; the training videos as they are; the first validation videos."""
  table, validation, _ = find(corpus, "k600/train.csv", "k600/validate", "k600/train")
  target = work / "k600"
  taken = link_class_folders(validation, target / "validate", VALIDATION_ROWS)
  with table.open("rb") as lines:
    first = list(itertools.islice(lines, 1 + ROWS))
  (target / table.name).write_bytes(b"".join(first))
  for folder in table.parent.iterdir():
    if folder.is_dir() and folder != validation:
      link(folder, target / folder.name)
  return [f"{len(first) - 1} rows of {table.name}", taken]


def lay_imagenet(corpus: Path, work: Path) -> list[str]:
  """The first images of the first classes of each split."""
  images, names = find(corpus, "ILSVRC/Data/CLS-LOC", "LOC_synset_mapping.txt")
  link(names, work / names.name)
  found = []
  for split in sorted(folder for folder in images.iterdir() if folder.is_dir()):
    target = work / "ILSVRC/Data/CLS-LOC" / split.name
    if split.name == "test":
      continue
    if any(path.is_dir() for path in itertools.islice(split.iterdir(), 1)):
      found.append(link_class_folders(split, target, ROWS))
      continue
    flat = sorted(itertools.islice((path.name for path in split.iterdir()), VALIDATION_ROWS))
    for name in flat:
      link(split / name, target / name)
    found.append(f"{len(flat)} files of {split.name}")
  # Kaggle's classes of a flat validation split, next to ILSVRC or in it.
  for solution in (
    *corpus.glob("LOC_*_solution.csv"),
    *corpus.glob("ILSVRC/**/LOC_*_solution.csv"),
  ):
    link(solution, work / solution.relative_to(corpus))
  return found


def lay_t2v(corpus: Path, work: Path) -> list[str]:
  """The first rows of both tables, the folder of their media, and the first training videos of UCF-101."""
  long_videos, table, *_ = find(
    corpus, "LONG_VIDEOS.parquet", "MANIFEST.parquet", "UCF-101", "ucfTrainTestlist"
  )
  link(corpus, work / "media")
  return [
    first_rows(long_videos, work / long_videos.name, VALIDATION_ROWS),
    # Twice as many: rows of videos and of images.
    first_rows(table, work / "BUCKET/t2v" / table.name, 2 * ROWS + VALIDATION_ROWS),
    link_list(corpus, work, "trainlist01.txt", ROWS),
  ]


def first_rows(table: Path, target: Path, count: int) -> str:
  """Writes the first rows of a table; returns what was taken."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  with pq.ParquetFile(table) as file:
    total = file.metadata.num_rows
    rows = pa.Table.from_batches([next(file.iter_batches(count))])
  target.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(rows, target)
  return f"{len(rows)} of {total} rows of {table.name}"


def random_perceptual_network(file: Path) -> None:
  """Random weights for the perceptual network of a tokenizer, in torch's order: (out, in, height, width)."""
  import numpy as np
  from safetensors.numpy import save_file

  from walt_t5x.vae.perceptual import resnet_shapes

  random = np.random.default_rng(0)
  flat = {}
  for name, shape in resnet_shapes().items():
    if len(shape) > 1:
      flat[name] = random.standard_normal(shape, np.float32) / np.float32(np.prod(shape[1:]) ** 0.5)
    else:
      # Small residuals, so that features of random weights stay in range.
      value = (
        0.2 if name.endswith("bn3.weight") else float(name.endswith((".weight", "running_var")))
      )
      flat[name] = np.full(shape, value, np.float32)
  save_file(flat, file)


def random_network(file: Path) -> None:
  """Random weights for the scoring network that the file is named after, in its real shapes."""
  import numpy as np

  from walt_t5x.metrics.networks import KINDS, save_weights

  flat = {}
  for name, shape in KINDS[file.stem].expected().items():
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith(("kernel", "fc_bias")):
      gain = (2 / np.prod(shape[:-1])) ** 0.5
      flat[name] = random.standard_normal(shape, np.float32) * np.float32(gain)
    else:
      flat[name] = np.full(shape, name.endswith(("scale", "var")), np.float32)
  save_weights(file, flat)


def random_t5(folder: Path) -> None:
  """A folder as Hugging Face has it: an encoder of one layer and T5-XL's width."""
  from walt_t5x.text.config import T5Config
  from walt_t5x.text.encoder import save_encoder
  from walt_t5x.text.init_encoder import random_weights
  from walt_t5x.text.vocabulary import train_vocabulary

  vocabulary = train_vocabulary((ROOT / "README.md").read_text("utf-8").splitlines())
  size = len(vocabulary)
  config = T5Config(vocab_size=size, d_model=2048, d_ff=64, num_heads=2, num_layers=1)
  weights = random_weights(config, seed=0)
  folder.mkdir(exist_ok=True)
  save_encoder(folder, config=config, weights=weights, vocabulary=vocabulary)


def random_statistics(file: Path) -> None:
  """A mean of 0 and a covariance of 1, under the names of ADM's file."""
  import numpy as np

  mean, covariance = np.zeros(2048), np.eye(2048)
  np.savez(file, mu=mean, sigma=covariance, mu_s=mean, sigma_s=covariance)


CORPORA: dict[str, Callable[[Path, Path], list[str]]] = {
  "ucf101": lay_ucf101,
  "k600": lay_k600,
  "imagenet": lay_imagenet,
  "t2v": lay_t2v,
}


def lay_weights(names: Sequence[str], work: Path) -> None:
  """Writes the random weights that the commands name."""
  for name in names:
    if name == "resnet50.safetensors":
      random_perceptual_network(work / name)
    elif name.endswith(".safetensors"):
      random_network(work / name)
    elif name.endswith(".npz"):
      random_statistics(work / name)
    else:
      random_t5(work / name)


def lay_gin(files: Iterable[str], work: Path) -> None:
  """Writes, for each gin file that a command names, one of the same name that includes it and small sizes."""
  for name in sorted(set(files)):
    real, target = ROOT / name, work / name
    part = "tokenizer" if name.startswith("gin/models/vae_") else "run"
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = [
      f"include {json.dumps(str(file))}\n" for file in (real, ROOT / f"gin/rehearsal/{part}.gin")
    ]
    target.write_text("".join(lines), encoding="utf-8")


def main(argv: Sequence[str]) -> int:
  """Lays all inputs of a corpus; prints what was taken of it as JSON."""
  corpus, source = argv
  work, steps = Path.cwd(), page_steps(corpus)
  folder = Path(source).resolve()
  try:
    taken = CORPORA[corpus](folder, work)
    if corpus != "imagenet":
      taken += lay_imagenet(folder / IMAGES if (folder / IMAGES).is_dir() else folder, work)
  except OSError as error:
    sys.exit(f"rehearse: --corpus: {error}")
  lay_gin(gin_files(steps), work)
  lay_weights(weights(steps), work)
  print(json.dumps({"taken": taken}))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
