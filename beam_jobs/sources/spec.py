"""The source that a run reads, from its flags: checked before any work, and passed to the workers as plain values."""

import argparse
import contextlib
import dataclasses
import difflib
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence

from beam_jobs.sources import first_look, folders, tables
from beam_jobs.sources.columns import FIELDS, Columns, parse_class_names
from beam_jobs.sources.rows import is_media
from data.class_names import class_words
from walt_t5x.files import patterns, storage
from walt_t5x.media.containers import is_hidden

KINDS = ("jsonl", "csv", "parquet", "webdataset", "folder", "kinetics")
KINETICS_TEMPLATE = "{youtube_id}_{time_start:06d}_{time_end:06d}.mp4"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_ENDINGS = {
  ".jsonl": "jsonl",
  ".json": "jsonl",
  ".ndjson": "jsonl",
  ".csv": "csv",
  ".tsv": "csv",
  ".parquet": "parquet",
  ".tar": "webdataset",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceSpec:
  """A source.

  Args:
    kind: one of `KINDS`.
    pattern: files, with `*` or `{000..123}`; or a folder of media.
    media_root: base of relative uris.
    folder: the manifest's folder.
    columns: how its columns map to fields.
    validation_files: files of the validation split, for class folders.
    labels: classes of the files of a flat split, for class folders.
  """

  kind: str
  pattern: str
  media_root: str
  folder: str = ""
  columns: Columns = dataclasses.field(default_factory=Columns)
  validation_files: frozenset[str] = frozenset()
  labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


def add_arguments(
  parser: argparse._ActionsContainer,
  *,
  manifest: Sequence[str] = ("--manifest",),
  required: bool = True,
) -> None:
  """Adds the flags of a source; `manifest` are the names of --manifest, which is `required`."""
  add = parser.add_argument
  add(
    *manifest,
    dest="manifest",
    required=required,
    help="manifest files (JSONL, CSV, TSV, Parquet, webdataset tar; with * or {000..123}), or a folder of videos and "
    "images, in class folders or not",
  )
  add(
    "--source", default="auto", choices=("auto", *KINDS), help="kind of source (by the extension)"
  )
  add("--media_root", help="base of relative uris (the folder of --manifest)")
  add(
    "--column",
    action="append",
    default=[],
    metavar="FIELD=COLUMN",
    help=f"column of a field: {', '.join(FIELDS)}; caption=COLUMN[:WEIGHT] may be repeated",
  )
  add("--keep_column", action="append", default=[], help="column to keep in the ledgers")
  add("--uri_template", default="", help="uri made of columns, e.g. '{id}_{start:06d}.mp4'")
  add("--class_names", help="file with one class name per line, in the order of the labels")
  add("--caption_template", default="{class}", help="caption of rows with a class ('{class}')")
  add(
    "--split",
    default="train",
    choices=("train", "validation"),
    help="split of rows that do not name one",
  )
  add(
    "--split_name", action="append", default=[], metavar="THEIRS=OURS", help="e.g. val=validation"
  )
  add(
    "--validation_percent",
    type=float,
    default=0.0,
    help="percentage of rows without a split, by hash (0)",
  )
  add("--validation_list", help="file list of class folders' validation split (testlist01.txt)")
  add("--validation_labels", help="CSV of file and class of a flat val (LOC_val_solution.csv)")


def source_of(
  args: argparse.Namespace, *, scores: tuple[str, ...], look: bool = True
) -> SourceSpec:
  """The source that the flags of `add_arguments` describe.

  Args:
    args: parsed flags.
    scores: columns that filters read.
    look: whether to read the files; if False, only the flags are checked.

  Raises:
    FileNotFoundError: if a file does not exist, naming the flag.
    ValueError: if flags do not fit each other or the source.
  """
  first_look.check_name(args.manifest)
  kind = args.source if args.source != "auto" else _kind_of(args.manifest, look=look)
  if look and kind != "folder":
    _check_files(args.manifest)
  elif look and not (storage.names(args.manifest) or storage.folders(args.manifest)):
    raise FileNotFoundError(f"--manifest: no files in {args.manifest}{_similar(args.manifest)}")
  columns = _columns(args, kind, scores)
  if look or args.class_names:
    columns = dataclasses.replace(columns, class_names=_class_names(args, kind, columns))
  if dict(columns.fields).get("class") and not columns.class_names:
    raise ValueError("--column class=... needs --class_names, a file with one class name per line")
  note = ""
  if look and kind in ("csv", "kinetics", "parquet"):
    note = first_look.check_header(next(files(args.manifest)), kind, columns)
  if look and kind == "jsonl":
    note = first_look.check_json_lines(next(files(args.manifest)), columns)
  if note:
    print(f"--manifest: {note}", file=sys.stderr)
  validation_files, labels = frozenset(), {}
  for flag in ("validation_list", "validation_labels"):
    if getattr(args, flag) and kind != "folder":
      raise ValueError(f"--{flag} requires --source=folder; use --column split=... instead")
  if args.validation_list:
    validation_files = folders.parse_file_list(_text("validation_list", args.validation_list))
    if look:
      _check_list(args, validation_files)
  if args.validation_labels or (look and kind == "folder"):
    labels = _labels(args)
    if look and labels and not columns.class_names:
      raise ValueError("--validation_labels needs --class_names, as no folder is named for a class")
  root = args.manifest if kind == "folder" else _fixed_folder(args.manifest)
  return SourceSpec(
    kind=kind,
    pattern=args.manifest,
    media_root=args.media_root or root,
    folder=root,
    columns=columns,
    validation_files=validation_files,
    labels=labels,
  )


def files(pattern: str) -> Iterator[str]:
  """Files of a pattern; `{000..123}` expands to each number, padded with zeros to the same width.

  `*` matches no hidden file or folder: neither macOS's `._rows.csv` nor `.ipynb_checkpoints`.
  """
  for one in _expanded(pattern):
    shown = len(one.partition("*")[0].rpartition("/")[0])
    wanted = is_hidden(one[shown:])
    yield from (path for path in patterns.match(one) if wanted or not is_hidden(path[shown:]))


def _fixed_folder(pattern: str) -> str:
  """Folder of a pattern's files, up to the first part that matches several."""
  folder = storage.parent(pattern)
  while "*" in folder or _RANGE.search(folder):
    folder = storage.parent(folder)
  return folder


def _check_files(pattern: str) -> None:
  """Rejects a pattern without files, and a range with missing files, whose rows would be missing silently."""
  missing = [one for one in _expanded(pattern) if next(files(one), None) is None]
  if missing:
    others = f", and at {len(missing) - 1} others of {pattern}; set the range to the existing files"
    others = others if _RANGE.search(pattern) else _similar(pattern)
    raise FileNotFoundError(f"--manifest: no file at {missing[0]}{others}")


def _similar(pattern: str) -> str:
  """The file or folder that a name without one may mean."""
  folder, _, name = pattern.rstrip("/").rpartition("/")
  there = storage.names(folder or ".") + storage.folders(folder or ".")
  close = difflib.get_close_matches(name, there, n=1)
  return f"; there is {storage.join(folder, close[0])}" if close else ""


def _expanded(pattern: str) -> Iterator[str]:
  """The patterns of each number."""
  match = _RANGE.search(pattern)
  if not match:
    yield pattern
    return
  for number in range(int(match[1]), int(match[2]) + 1):
    text = str(number).zfill(len(match[1]))
    yield from _expanded(pattern[: match.start()] + text + pattern[match.end() :])


def is_manifest(name: str) -> bool:
  """Whether the extension of a file is that of a manifest."""
  return name.lower().removesuffix(".gz").endswith(tuple(_ENDINGS))


def _kind_of(pattern: str, *, look: bool) -> str:
  if is_manifest(pattern):
    (ending,) = [one for one in _ENDINGS if pattern.lower().removesuffix(".gz").endswith(one)]
    return _ENDINGS[ending]
  if not look:
    raise ValueError(
      f"--manifest: got {pattern}, whose extension is unknown; set --source to one of {KINDS}"
    )
  root = pattern.rstrip("/")
  if any(is_media(path) for below in ("/*", "/*/*", "/*/*/*") for path in files(root + below)):
    return "folder"
  for below in ("/*", "/*/*", "/*/*/*"):
    for ending in _ENDINGS:
      if next(files(root + below + ending), None):
        raise ValueError(
          f"--manifest: got the folder {pattern}; set --manifest '{root}{below}{ending}'"
        )
  if found := storage.names(root) + storage.folders(root):
    raise ValueError(
      f"--manifest: {pattern} has no image or video, also not in the folders in it, only {found[:3]}"
    )
  _check_files(pattern)
  if any(map(is_media, files(pattern))):
    raise ValueError(
      f"--manifest: {pattern} names media; set it to their folder, {storage.parent(pattern)}"
    )
  raise ValueError(
    f"--manifest: got {pattern}, expected one of {sorted(_ENDINGS)} or a folder of videos and images; "
    f"set --source to one of {KINDS}"
  )


def _columns(args: argparse.Namespace, kind: str, scores: tuple[str, ...]) -> Columns:
  fields, captions = [], []
  for text in args.column:
    field, equals, column = text.partition("=")
    if field == "caption" and column:
      name, _, weight = column.partition(":")
      captions.append((name, _weight(text, weight or "1")))
    elif equals and column and field in FIELDS:
      fields.append((field, column))
    else:
      raise ValueError(
        f"--column: got {text!r}, expected FIELD=COLUMN with a field of {('caption', *FIELDS)}"
      )
  splits = [tuple(text.partition("=")[::2]) for text in args.split_name]
  for theirs, ours in splits:
    if ours not in ("train", "validation"):
      raise ValueError(f"--split_name: got {theirs}={ours}, expected THEIRS=train or =validation")
  if not 0 <= args.validation_percent <= 100:
    raise ValueError(f"--validation_percent: got {args.validation_percent}, expected 0 to 100")
  template = args.uri_template
  if kind == "kinetics":
    fields = [("class", "label"), *fields]
    # The files are clips already; times are part of their names.
    splits = [("val", "validation"), ("validate", "validation"), *splits]
    template = template or KINETICS_TEMPLATE
  return Columns(
    fields=tuple(fields),
    captions=tuple(captions),
    keep=tuple(dict.fromkeys([*args.keep_column, *scores])),
    uri_template=template,
    caption_template=args.caption_template,
    split_names=tuple(splits),
    split=args.split,
    validation_percent=args.validation_percent,
  )


def _class_names(args: argparse.Namespace, kind: str, columns: Columns) -> tuple:
  if args.class_names:
    return parse_class_names(_text("class_names", args.class_names))
  names = set(folders.class_names(args.manifest)) if kind == "folder" else set()
  if kind == "kinetics":
    for path in files(args.manifest):
      names.update(tables.csv_values(path, columns.by_field["class"]))
  return tuple((name, class_words(name)) for name in sorted(names))


def _check_list(args: argparse.Namespace, validation_files: frozenset[str]) -> None:
  """Rejects a file list of which no file exists: all rows would be training data."""
  splits = {split for split, _ in folders.class_folders(args.manifest)}
  paths = (storage.join(args.manifest, *p) for p in itertools.product(splits, validation_files))
  if not any(map(storage.exists, paths)):
    raise ValueError(
      f"--validation_list: none of the {len(validation_files)} files of {args.validation_list} is in "
      f"{args.manifest}, first {sorted(validation_files)[:2]}; expected paths <class>/<file>"
    )


def _labels(args: argparse.Namespace) -> dict[str, str]:
  """Classes of the files of flat splits."""
  if args.validation_labels:
    return folders.parse_labels(_text("validation_labels", args.validation_labels))
  found = folders.class_folders(args.manifest)
  flat = [split for split, name in found if not name]
  if not flat or len(flat) == len(found):
    return {}
  folder = args.manifest.rstrip("/")
  for _ in range(4):
    found = storage.join(folder, "LOC_val_solution.csv")
    if storage.exists(found):
      return folders.parse_labels(_text("validation_labels", found))
    folder = storage.parent(folder)
  raise ValueError(
    f"--manifest: {storage.join(args.manifest, flat[0])} has files without class folders; set --validation_labels to "
    "a CSV of file and class (ImageNet: LOC_val_solution.csv)"
  )


def _text(flag: str, path: str) -> str:
  if not storage.exists(path):
    raise FileNotFoundError(f"--{flag}: no file at {path}")
  try:
    return storage.read(path).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"--{flag}: {path} is not UTF-8 text ({error})") from error


def _weight(text: str, number: str) -> float:
  with contextlib.suppress(ValueError):
    if 0 <= (value := float(number)) < float("inf"):
      return value
  raise ValueError(f"--column: got {text!r}, expected a weight >= 0 after the colon")
