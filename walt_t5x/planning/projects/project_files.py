"""The text of a project's files: flags in TOML, the parts of gin files that depend on the data, README.md."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from walt_t5x.planning.projects.project_data import TASK, ProjectData

_STATS_PERIOD = 100
_COMMENTS = {
  "content": "What the cache contains.",
  "output": "The cache that training reads.",
  "task": "Its name there.",
  "manifest": "The data: a folder, or a manifest (docs/sources.md).",
  "media_root": "Base of relative paths.",
  "column": "Columns of fields.",
  "class_names": "The classes, in the order of the labels.",
  "vae_checkpoint": "The tokenizer, with which every stage is trained.",
  "text_encoder": "The text encoder, likewise.",
  "no_text": "The model reads no text.",
  "max_text_length": "Tokens of a caption; longer ones are cut.",
  "resolutions": "HEIGHTxWIDTH, of each stage of the cascade. Larger media are scaled and cropped at the center.",
  "num_frames": "Frames of a clip.",
  "fps": "Frames per second of a clip; slower videos are rejected.",
  "clip_position": "Which part of a longer video: centre, beginning or random.",
  "clips_per_video": "Different clips of each training video.",
  "allow_upscale": "Accept media that are smaller than that.",
  "validation_percent": "Percentage of the rows that are held out, for the evaluation during training.",
  "num_shards": "Files of the training split.",
}


def toml(settings: Mapping[str, Any], *, file: Path) -> str:
  """The flags of a preprocessing job, each with a comment."""
  lines = [
    f"# What to preprocess: the flags of `python -m beam_jobs.preprocess --config={file.name}`. Flags of",
    "# the command line override these; --help lists all of them.",
  ]
  for name, value in settings.items():
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


def gin(what: str, *, file: Path, imports: Sequence[str], body: Sequence[str]) -> str:
  """The gin file of a training, which begins with its command."""
  lines = [
    f"# {what}",
    "#",
    f"#   {train(file)}",
    "from __gin__ import dynamic_registration",
    "",
    "import __main__ as train_script",
    *sorted({"from data import cache_folders", "from data import tasks", *imports}),
    "",
    *body,
  ]
  return "\n".join(lines) + "\n"


def cached(task: str, cache: Path, bindings: Mapping[str, Any]) -> list[str]:
  """The bindings of a task of `data.tasks` and of the folder of its cache."""
  return [
    "MIXTURE_OR_TASK_NAME = @cache_folders.cached_in()",
    "cache_folders.cached_in:",
    f"  task = @tasks.{task}()",
    f"  folders = [{str(cache)!r}]",
    f"tasks.{task}:",
    *(f"  {name} = {value!r}" for name, value in bindings.items()),
  ]


def latents_task(
  data: ProjectData,
  cache: Path,
  *,
  latents: str,
  text_length: int,
  label: bool,
  low_resolution: str | None = None,
) -> list[str]:
  """The bindings of the task of a denoiser on images, videos or both, as the corpus has them."""
  kinds = data.kinds
  task = "image_video_mixture" if len(kinds) == 2 else f"{kinds[0]}_task"
  fields = {"task": TASK, "latents": latents}
  fields |= {"low_resolution": low_resolution} if low_resolution else {}
  row = [f"tasks.RowFormat.text_length = {text_length}"]
  if kinds == ["image"]:
    frames = latents.partition("/")[2].partition("x")[0]
    row.append(f"tasks.RowFormat.text_slots = {frames}")
  if label:
    row.append("tasks.RowFormat.label = True")
  return [*cached(task, cache, fields), "  row = @tasks.RowFormat()", *row]


def warmup_steps(steps: int) -> int:
  """Steps of the warm-up of a training."""
  return steps // 20


def periods(steps: int) -> list[str]:
  """The bindings of how often a training logs, saves and evaluates."""
  return [
    f"STATS_PERIOD = {max(1, min(_STATS_PERIOD, steps // 20))}",
    f"SAVE_PERIOD = {max(1, steps // 4)}",
    f"EVAL_PERIOD = {max(1, steps // 2)}",
  ]


def command(program: str, **flags: Any) -> str:
  """A command that works from any folder; a flag of several values is repeated, True is a flag alone."""
  words = [
    f"--{name}" if value is True else f"--{name}={shlex.quote(str(value))}"
    for name, values in flags.items()
    for value in (values if isinstance(values, list) else [values])
  ]
  return " ".join(["python -m", program, *words])


def preprocess(file: Path) -> str:
  """The command that reads a project's TOML file."""
  return command("beam_jobs.preprocess", config=file)


def train(file: Path) -> str:
  """The command that reads a project's gin file."""
  return command("walt_t5x.train", gin_file=file)


def last_commands(
  output: Path, *, runs: Sequence[Any], shown: Sequence[Any], **what: Any
) -> list[str]:
  """The commands that generate with `runs`, as `what` says, and that show the runs `shown` with the samples."""
  samples = output / "samples"
  return [
    command("walt_t5x.generate", run=[*runs], **what, output=samples),
    command("walt_t5x.report", run=[*shown], samples=samples, output=output / "report.html"),
  ]


def prompt(data: ProjectData) -> str:
  """A caption of the data."""
  return next(iter(data.captions), "...")


def readme(kind: Any, data: ProjectData, output: Path) -> str:
  """README.md of a `finetuning.Finetuning` or `training.Training`: the next commands, and what the files say."""
  lines = [
    f"# {kind.title()}",
    "",
    f"Made by `walt_t5x.init` for {data.source['manifest']}. The next commands, in order:",
    "",
    *(f"    {command}" for command in kind.commands(data, output)),
    "",
    "The `.toml` files say what is read and how; the `.gin` files say what is trained. Change them as you like.",
    "Each command resumes after an interruption.",
    *kind.notes(output),
  ]
  return "\n".join(lines) + "\n"
