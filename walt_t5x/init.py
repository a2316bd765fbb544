"""Writes a small project for a corpus: what to preprocess, what to train, and the next commands.

  python -m walt_t5x.init videos.csv --from=runs/quickstart/base --output=project
  python -m walt_t5x.init videos.csv --like=tiny --output=project

Looks at a folder or manifest as `beam_jobs.preflight` does and prints what it finds. With --from, the project
fine-tunes a run, whose records say which sizes, tokenizer and text encoder the data needs. With --like, it trains a
published model, or the toy one of the quickstart, from nothing: first the tokenizer.

  project/pixels.toml   with --like: the flags of `beam_jobs.preprocess` for the tokenizer, each with a comment
  project/vae.gin       with --like: the training of the tokenizer
  project/data.toml     the flags for latents and text
  project/base.gin      the training of the base stage
  project/README.md     the next commands

A project that exists is left alone. See docs/your-data.md.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from walt_t5x.config import programs, usage
from walt_t5x.files import local_folders, storage
from walt_t5x.planning.projects.recipes import RECIPES

_IMPORT = "python -m walt_t5x.text.import_encoder --source=t5-v1_1-xl --output=FOLDER"
_OF_LIKE = ("text_encoder", "perceptual_weights", "fps")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the flags."""
  parser = programs.parser("walt_t5x.init", __doc__, allow_abbrev=False)
  add = parser.add_argument
  add("data", help="a folder of videos or images, or a manifest (CSV, JSONL, Parquet, webdataset)")
  start = parser.add_mutually_exclusive_group(required=True)
  start.add_argument(
    "--from", dest="run", metavar="RUN", help="what to fine-tune: a training run, or a preset"
  )
  start.add_argument(
    "--like", choices=tuple(RECIPES), metavar="NAME", help=f"what to train: {', '.join(RECIPES)}"
  )
  add(
    "--output",
    required=True,
    type=usage.local_path,
    help="the project's folder, which must be new or empty",
  )
  add("--media_root", help="base of relative paths in the manifest (its folder)")
  add(
    "--column",
    action="append",
    default=[],
    metavar="FIELD=COLUMN",
    help="column of a field, such as uri=file or caption=text; may be repeated",
  )
  add("--class_names", help="file with one class name per line, in the order of the labels")
  add("--allow_upscale", action="store_true", help="accept media smaller than the resolution")
  add(
    "--train_steps",
    type=int,
    help="steps of each training (with --from: 400; with --like: those of its gin files)",
  )
  add("--text_encoder", help="with --like: T5 folder: config.json, model.safetensors, spiece.model")
  add("--perceptual_weights", help="with --like: ResNet-50 for the tokenizer's loss (docs/vae.md)")
  add("--fps", type=float, help="with --like: frame rate of a clip (that of the model)")
  args = parser.parse_args(argv)
  for name in ("train_steps", "fps"):
    value = getattr(args, name)
    if value is not None and value <= 0:
      parser.error(f"--{name}={value:g}: expected more than 0")
  given = [name for name in _OF_LIKE if getattr(args, name) is not None]
  if args.run and given:
    parser.error(f"--{given[0]} has an effect only with --like: the run of --from has its own")
  encoder = RECIPES[args.like].text_encoder if args.like else None
  if args.like and args.text_encoder and not encoder:
    parser.error(f"--text_encoder has no effect with --like={args.like}, which reads no text")
  if encoder == "xl" and not args.text_encoder:
    parser.error(
      f"--like={args.like} reads text with T5 v1.1 XL: set --text_encoder to its folder. From a download of "
      f"google/t5-v1_1-xl, it is made by\n  {_IMPORT}"
    )
  return args


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Looks at the data and writes the project; returns what it found.

  Raises:
    FileNotFoundError: the data, the text encoder, or a record of the run does not exist.
    ValueError: the project is not empty, the run is not that of a denoiser, or the data do not fit it or the model.
  """
  from walt_t5x.planning.projects import project_files

  output = args.output.absolute()
  if output.is_dir() and any(not entry.name.startswith(".") for entry in output.iterdir()):
    raise ValueError(f"--output: {output} is not empty; set another folder, or remove it")
  kind = _kind(args)
  data = kind.fitted(_look(args, kind, output))
  files = kind.files(data, output)
  with local_folders.new_folder(output) as folder:
    for name, text in files.items():
      storage.write(folder / name, text)
    storage.write(folder / "README.md", project_files.readme(kind, data, output))
  commands = (f"  {command}" for command in kind.commands(data, output))
  print(f"wrote {args.output}. Next:", *commands, *kind.notes(output), sep="\n")
  return {"project": str(output), "rows": data.found["rows"]["count"], "modalities": data.kinds}


def _kind(args: argparse.Namespace) -> Any:
  """What the project does with the data: a `finetuning.Finetuning` or a `training.Training`."""
  from walt_t5x.generation import presets
  from walt_t5x.planning.projects import finetuning, training

  if args.like:
    weights = args.perceptual_weights
    return training.Training(
      name=args.like,
      steps=args.train_steps,
      fps=args.fps,
      text_encoder=args.text_encoder and storage.absolute(args.text_encoder),
      perceptual_weights=weights and storage.absolute(weights),
    )
  run = f"{args.run}/base" if args.run in presets.shipped() else args.run
  return finetuning.Finetuning.of_run(
    presets.place(run), steps=args.train_steps, name_of=presets.named
  )


def _look(args: argparse.Namespace, kind: Any, output: Path) -> Any:
  """Prints what is found in the data; returns it as `project_data.ProjectData`."""
  from beam_jobs import preflight
  from beam_jobs.sources import folders
  from walt_t5x.planning.projects.project_data import ProjectData

  source: dict[str, Any] = {"manifest": storage.absolute(args.data)}
  for name in ("media_root", "class_names"):
    if value := getattr(args, name):
      source[name] = storage.absolute(value)
  source |= {"column": args.column} if args.column else {}
  source |= {"allow_upscale": True} if args.allow_upscale else {}
  settings = source | kind.settings(output)
  # The tokenizer, and an encoder that the project makes, are not there yet.
  settings.pop("vae_checkpoint")
  if not storage.exists(settings.get("text_encoder", "")):
    settings.pop("text_encoder", None)
  captions: dict[str, None] = {}

  def collect(row: Any) -> None:
    if kind.makes_encoder or not captions:
      captions.update(dict.fromkeys(row.captions))

  found = preflight.look([*_flags(settings)], on_row=collect)
  named = found["source"] == "folder" and not args.class_names
  names = folders.class_names(source["manifest"]) if named else []
  return ProjectData(source=source, found=found, class_names=names, captions=[*captions])


def _flags(settings: Mapping[str, Any]) -> Iterator[str]:
  for name, value in settings.items():
    for one in value if isinstance(value, list) else [value]:
      yield f"--{name}" if one is True else f"--{name}={one}"


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the project; returns the exit code."""
  with programs.user_errors("init"):
    run(parse_arguments(argv))
  return 0


if __name__ == "__main__":
  sys.exit(main())
