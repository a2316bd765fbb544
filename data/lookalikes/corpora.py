"""Writes a small copy of a public corpus, with its names, layout and codecs.

  python -m data.lookalikes ucf101 /tmp/ucf101

writes dozens of files in a few seconds, to find out whether the commands of docs/reproduce.md run. CORPUS is

  ucf101    UCF-101 (XviD AVI in class folders) and ucfTrainTestlist
  k600      k600/train.csv, k600/validate.csv and MP4 of 10 seconds, some of them missing
  imagenet  ILSVRC as on Kaggle, LOC_synset_mapping.txt and LOC_val_solution.csv
  t2v       MANIFEST.parquet, LONG_VIDEOS.parquet, WebVid's CSV, tar files of img2dataset and video2dataset, UCF-101

`--faults` adds files and rows that are damaged or odd as in real copies. `faults.json` lists what is odd: its kind, the
manifest, where, and what a job must do with it: a reason in the ledger, `written`, or `no_row`. The same seed gives the
same files.
"""

from collections.abc import Sequence
from pathlib import Path

from data.lookalikes import imagenet, k600, t2v, ucf101
from data.lookalikes.corpus import Corpus, Odd
from walt_t5x.config import programs, usage
from walt_t5x.files import local_folders

CORPORA = {"ucf101": ucf101, "k600": k600, "imagenet": imagenet, "t2v": t2v}


def write_corpus(
  name: str, folder: Path, *, faults: bool = False, seed: int = 0, seconds: float | None = None
) -> list[Odd]:
  """Writes a look-alike; returns what `faults.json` lists.

  Args:
    name: a key of `CORPORA`.
    folder: created if missing; it must be empty, because other files would be rows.
    faults: whether faults are planted.
    seed: changes the scenes, not the names of the files.
    seconds: makes the clips of k600 and t2v that long, and those of UCF-101 2 s long.

  Raises:
    FileExistsError: the folder is not empty.
  """
  with local_folders.new_folder(folder) as made:
    corpus = Corpus(made, faults=faults, seed=seed, seconds=seconds)
    CORPORA[name].write(corpus)
    corpus.finish()
  return corpus.odd


def main(argv: Sequence[str] | None = None) -> None:
  """Writes the corpus and prints what is odd."""
  parser = programs.parser("data.lookalikes", __doc__)
  parser.add_argument("corpus", metavar="CORPUS", choices=CORPORA, help=", ".join(CORPORA))
  parser.add_argument("folder", metavar="FOLDER", type=usage.local_path, help="new folder")
  parser.add_argument("--faults", action="store_true", help="plant faults")
  parser.add_argument("--seed", type=int, default=0, help="of the scenes (0)")
  parser.add_argument(
    "--seconds", type=float, help="length of the clips (of k600 10, of t2v 3, of UCF-101 1.2 to 4)"
  )
  args = parser.parse_args(argv)
  with programs.user_errors("data.lookalikes"):
    odd = write_corpus(
      args.corpus, args.folder, faults=args.faults, seed=args.seed, seconds=args.seconds
    )
  for one in odd:
    print(f"{one.expect:<16} {one.kind:<26} {one.manifest}: {one.where}")
  count = sum(path.is_file() for path in args.folder.rglob("*"))
  print(f"{count} files in {args.folder}")
