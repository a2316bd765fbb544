"""Writes a small project for a corpus: what to preprocess, what to train, and the next commands.

  python -m walt_t5x.init videos.csv --from=runs/quickstart/base --output=project

Looks at a folder or manifest as `beam_jobs.preflight` does and prints what it finds. The project fine-tunes the run of
`--from`, whose records say which sizes, tokenizer and text encoder the data needs:

  project/data.toml   the flags of `beam_jobs.preprocess`, each with a comment
  project/base.gin    the training: the network of the run, a schedule, the cache of data.toml
  project/README.md   the next commands

Nothing else is written, and a project that exists is left alone. See docs/your-data.md.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from walt_t5x.config import programs

TASK = "corpus"
# Below this number of rows, a larger share is held out: a twentieth of few rows is often none.
_FEW_ROWS, _FEW_PERCENT, _PERCENT = 200, 20, 5
_STEPS, _PEAK = 400, 2e-4
_ROWS_PER_SHARD = 1000


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the flags."""
  parser = programs.parser("walt_t5x.init", __doc__, allow_abbrev=False)
  add = parser.add_argument
  add("data", help="a folder of videos or images, or a manifest (CSV, JSONL, Parquet, webdataset)")
  add(
    "--from",
    dest="run",
    required=True,
    metavar="RUN",
    help="what to fine-tune: a training run, or a preset",
  )
  add("--output", required=True, help="the project's folder, which must be new or empty")
  add("--media_root", help="base of relative paths in the manifest (its folder)")
  add(
    "--column",
    action="append",
    default=[],
    metavar="FIELD=COLUMN",
    help="column of a field, such as uri=file or caption=text; may be repeated",
  )
  add("--train_steps", type=int, default=_STEPS, help=f"steps of the training ({_STEPS})")
  return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Looks at the data and writes the project; returns what it found.

  Raises:
    FileNotFoundError: the data, or a record of the run, does not exist.
    ValueError: the project is not empty, the run is not that of a denoiser, or no row of the data can be used.
  """
  from beam_jobs import preflight
  from data.provenance import read_provenance
  from walt_t5x.engine import run_record
  from walt_t5x.files import storage
  from walt_t5x.generation import presets
  from walt_t5x.models import model_gin, model_record

  if args.run in presets.shipped():
    args.run = str(presets.SHIPPED / args.run / "base")
  output = Path(args.output).absolute()
  if output.is_dir() and any(not entry.name.startswith(".") for entry in output.iterdir()):
    raise ValueError(f"--output: {output} is not empty; set another folder, or remove it")
  record = model_record.read(args.run)
  if record.latents is None:
    raise ValueError(f"--from={args.run} trained a tokenizer: set it to the run of a base stage")
  provenance = read_provenance(storage.run_folder(args.run))
  settings = _data_settings(args, record, provenance)
  found = preflight.look(
    [f"--{name}={value}" for name, value in settings.items() if name in _LOOKED_AT]
    + [f"--column={column}" for column in args.column]
  )
  kinds = [kind for kind in ("image", "video") if found["modalities"].get(kind)]
  if not found["expected"]["written"]:
    raise ValueError(
      "none of the rows above can be used: see the faults, and set --media_root or --column"
    )
  rows = found["rows"]["count"]
  held_out = found["splits"].get("validation", 0)
  if not held_out:
    settings["validation_percent"] = _FEW_PERCENT if rows < _FEW_ROWS else _PERCENT
  settings["num_shards"] = max(1, min(1024, rows // _ROWS_PER_SHARD))
  imports, blocks, model = model_gin.bindings(run_record.read_model(args.run)["model"])
  settings = {"output": str(output / "cache"), "task": TASK} | settings
  gin = _gin(args, record, imports=imports, blocks=blocks, model=model, kinds=kinds, output=output)
  commands = _commands(Path(args.output), _stages_above(args.run, record.latents))
  with storage.new_folder(output) as folder:
    storage.write(folder / "data.toml", _toml(settings, args))
    storage.write(folder / "base.gin", gin)
    storage.write(folder / "README.md", _readme(args, commands))
  print(f"wrote {args.output}. Next:", *(f"  {command}" for command in commands), sep="\n")
  return {"project": str(output), "rows": rows, "modalities": kinds}


_LOOKED_AT = (
  "manifest",
  "media_root",
  "resolutions",
  "num_frames",
  "fps",
  "text_encoder",
  "max_text_length",
)
_COMMENTS = {
  "output": "The cache that training reads.",
  "task": "Its name there.",
  "manifest": "The data: a folder, or a manifest (docs/sources.md).",
  "media_root": "Base of relative paths.",
  "column": "Columns of fields.",
  "vae_checkpoint": "The tokenizer of the run that is fine-tuned. Another one does not fit it.",
  "text_encoder": "Its text encoder, likewise.",
  "no_text": "The run reads no text.",
  "max_text_length": "Tokens of a caption; longer ones are cut.",
  "resolutions": "HEIGHTxWIDTH, of each stage of the cascade. Larger media are scaled and cropped at the center.",
  "num_frames": "Frames of a clip.",
  "fps": "Frames per second of a clip; slower videos are rejected.",
  "clip_position": "Which part of a longer video: centre, beginning or random.",
  "validation_percent": "Percentage of the rows that are held out, for the evaluation during training.",
  "num_shards": "Files of the training split.",
}


def _data_settings(args: argparse.Namespace, record: Any, provenance: Any) -> dict[str, Any]:
  """Flag of preprocessing -> value, from the run's records."""
  from data import schema
  from walt_t5x.engine import run_record

  factor = 2 ** (len(provenance.vae["config"]["channel_multipliers"]) - 1)
  sizes = sorted({schema.latents_shape(field)[1:] for field in provenance.latents})
  resolutions = ",".join(f"{height * factor}x{width * factor}" for height, width in sizes)
  text = provenance.text_encoder if record.text_length else {}

  def place(recorded: str) -> str:
    return _absolute(run_record.encoder_place(args.run, recorded))

  return {
    "manifest": _absolute(args.data),
    **({"media_root": _absolute(args.media_root)} if args.media_root else {}),
    "vae_checkpoint": place(provenance.vae["checkpoint"]),
    **({"text_encoder": place(text["folder"])} if text else {"no_text": True}),
    **({"max_text_length": record.text_length} if text else {}),
    "resolutions": resolutions,
    "num_frames": provenance.num_frames,
    "fps": provenance.fps,
  }


def _absolute(path: str) -> str:
  """Commands then work from any folder."""
  return path if "://" in path else str(Path(path).absolute())


def _toml(settings: Mapping[str, Any], args: argparse.Namespace) -> str:
  lines = [
    "# What to preprocess: the flags of `python -m beam_jobs.preprocess --config=data.toml`. Flags of",
    "# the command line override these; --help lists all of them.",
  ]
  for name, value in (dict(settings) | ({"column": args.column} if args.column else {})).items():
    lines += ["", f"# {_COMMENTS[name]}", f"{name} = {_toml_value(value)}"]
  return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, list):
    return f"[{', '.join(map(_toml_value, value))}]"
  if isinstance(value, str):
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
  return str(value)


def _gin(
  args: argparse.Namespace,
  record: Any,
  *,
  imports: Sequence[str],
  blocks: Sequence[str],
  model: str,
  kinds: Sequence[str],
  output: Path,
) -> str:
  """The gin file of the training."""
  task = "image_video_mixture" if len(kinds) == 2 else f"{kinds[0]}_task"
  row = [f"tasks.RowFormat.text_length = {record.text_length}"]
  if kinds == ["image"]:
    frames = record.latents.partition("/")[2].partition("x")[0]
    row.append(f"tasks.RowFormat.text_slots = {frames}")
  if record.model.module.num_classes:
    row.append("tasks.RowFormat.label = True")
  low = [f"  low_resolution = {record.low_resolution!r}"] if record.low_resolution else []
  lines = [
    f"# Fine-tunes {_absolute(args.run)} on the cache of data.toml.",
    "#",
    f"#   python -m walt_t5x.train --gin_file={output / 'base.gin'}",
    "from __gin__ import dynamic_registration",
    "",
    "import __main__ as train_script",
    "from data import cache_folders",
    "from data import tasks",
    *imports,
    "from walt_t5x.engine import optimizers",
    "from walt_t5x.engine import schedules",
    "",
    "include 'gin/runs/train.gin'",
    "include 'gin/runs/finetune.gin'",
    "",
    "# Where the run goes, and the run that it starts from.",
    f"MODEL_DIR = {str(output / 'base')!r}",
    f"FINETUNED_RUN = {_absolute(args.run)!r}",
    "",
    "# How long, and at what rate: the first things to change.",
    f"TRAIN_STEPS = {args.train_steps}",
    "BATCH_SIZE = 8",
    "LEARNING_RATE = @schedules.warmup_cosine()",
    "schedules.warmup_cosine:",
    f"  peak = {_PEAK}",
    f"  warmup_steps = {max(1, args.train_steps // 20)}",
    "  total_steps = %TRAIN_STEPS",
    "STATS_PERIOD = 20",
    f"SAVE_PERIOD = {max(1, args.train_steps // 4)}",
    f"EVAL_PERIOD = {max(1, args.train_steps // 2)}",
    "EVAL_STEPS = 1",
    "",
    "# The data.",
    "MIXTURE_OR_TASK_NAME = @cache_folders.cached_in()",
    "cache_folders.cached_in:",
    f"  task = @tasks.{task}()",
    f"  folders = [{str(output / 'cache')!r}]",
    f"tasks.{task}:",
    f"  task = {TASK!r}",
    f"  latents = {record.latents!r}",
    *low,
    "  row = @tasks.RowFormat()",
    *row,
    "",
    "# The optimizer; the average of the weights is what samples are made with.",
    "OPTIMIZER = @optimizers.adamw()",
    "optimizers.adamw:",
    "  learning_rate = %LEARNING_RATE",
    "  ema_decay = 0.99",
    "  ema_ramp = True",
    "",
    "# The model, as its run records it.",
    f"MODEL = {model}",
    *blocks,
    "denoiser_model.DenoiserModel.optimizer_def = %OPTIMIZER",
  ]
  return "\n".join(lines) + "\n"


def _stages_above(run: str, latents: str) -> list[str]:
  """The runs next to `run` that upsample its latents, and so on: the rest of its cascade."""
  from walt_t5x.engine import run_record
  from walt_t5x.files import storage

  parent = storage.parent(_absolute(storage.run_folder(run)))
  runs = [storage.join(parent, name) for name in storage.folders(parent)]
  takes = {
    run_record.read_model(other).get("low_resolution"): other
    for other in runs
    if storage.exists(run_record.model_file(other))
  }
  found: list[str] = []
  made: str | None = latents
  while made in takes:
    found.append(takes[made])
    made = run_record.read_model(found[-1])["latents"]
  return found


def _commands(output: Path, stages_above: Sequence[str]) -> list[str]:
  """The next commands."""
  runs = " ".join(f"--run={run}" for run in (output / "base", *stages_above))
  return [
    f"python -m beam_jobs.preprocess --config={output / 'data.toml'}",
    f"python -m walt_t5x.train --gin_file={output / 'base.gin'}",
    f'python -m walt_t5x.generate {runs} --prompt="..." --output={output / "samples"}',
    f"python -m walt_t5x.report --run={output / 'base'} --samples={output / 'samples'} "
    f"--output={output / 'report.html'}",
  ]


def _readme(args: argparse.Namespace, commands: Sequence[str]) -> str:
  lines = [
    f"# A fine-tuning of {_absolute(args.run)}",
    "",
    f"Made by `walt_t5x.init` for {_absolute(args.data)}. Preprocess, train, generate, report:",
    "",
    *(f"    {command}" for command in commands),
    "",
    "`data.toml` says what is read and how; `base.gin` says what is trained. Change both as you like.",
    "Each command resumes after an interruption.",
  ]
  return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the project; returns the exit code."""
  with programs.user_errors("init"):
    run(parse_arguments(argv))
  return 0


if __name__ == "__main__":
  sys.exit(main())
