"""A project that fine-tunes a run, whose records say which sizes, tokenizer and text encoder the data needs."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from data import schema
from data.provenance import Provenance, read_provenance
from walt_t5x.engine import run_record
from walt_t5x.files import storage
from walt_t5x.models import model_gin, model_record
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.model_record import ModelRecord
from walt_t5x.planning.projects import project_files
from walt_t5x.planning.projects.project_data import TASK, ProjectData

_STEPS, _PEAK = 400, 2e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetuning:
  """The project of `--from`.

  Attributes:
    run: the run, with its complete path.
    steps: steps of the training; None for the default.
    name_of: path of a run -> how commands name it.
  """

  run: str
  steps: int | None
  record: ModelRecord
  provenance: Provenance
  name_of: Callable[[str], str] = str
  makes_encoder: ClassVar[bool] = False

  @classmethod
  def of_run(
    cls, run: str, *, steps: int | None, name_of: Callable[[str], str] = str
  ) -> "Finetuning":
    """The project that starts from a run.

    Raises:
      FileNotFoundError: the run has no record.
      ValueError: the run is not that of a denoiser.
    """
    record = model_record.read(run)
    if record.latents is None:
      raise ValueError(f"--from={run} trained a tokenizer: set it to the run of a base stage")
    provenance = read_provenance(storage.run_folder(run))
    return cls(
      run=storage.absolute(run),
      steps=steps,
      record=record,
      provenance=provenance,
      name_of=name_of,
    )

  def settings(self, output: Path) -> dict[str, Any]:
    """The flags of preprocessing that the run determines."""
    made, text = self.provenance, self.record.text_length
    factor = 2 ** (len(made.vae["config"]["channel_multipliers"]) - 1)
    sizes = sorted({schema.latents_shape(field)[1:] for field in made.latents})
    encoder = {"text_encoder": self._place(made.text_encoder["folder"])} if text else {}
    return {
      "vae_checkpoint": self._place(made.vae["checkpoint"]),
      **(encoder | {"max_text_length": text} if text else {"no_text": True}),
      "resolutions": ",".join(f"{height * factor}x{width * factor}" for height, width in sizes),
      "num_frames": made.num_frames,
      "fps": made.fps,
    }

  def _place(self, recorded: str) -> str:
    return storage.absolute(run_record.encoder_place(self.run, recorded))

  def fitted(self, data: ProjectData) -> ProjectData:
    """The data as the project reads them. Raises ValueError if they do not fit the run."""
    data.check()
    return data

  def files(self, data: ProjectData, output: Path) -> dict[str, str]:
    """Name -> text of the project's files but README.md."""
    settings = {
      "output": str(output / "cache"),
      "task": TASK,
      **data.rows(),
      **self.settings(output),
    }
    return {
      "data.toml": project_files.toml(settings, file=output / "data.toml"),
      "base.gin": self._gin(data, output),
    }

  def _gin(self, data: ProjectData, output: Path) -> str:
    record = self.record
    steps = _STEPS if self.steps is None else self.steps
    imports, blocks, model = model_gin.bindings(run_record.read_model(self.run)["model"])
    task = project_files.latents_task(
      data,
      output / "cache",
      latents=str(record.latents),
      low_resolution=record.low_resolution,
      text_length=record.text_length,
      label=isinstance(record.model, DenoiserModel) and record.model.module.num_classes > 0,
    )
    body = [
      "include 'gin/runs/train.gin'",
      "include 'gin/runs/finetune.gin'",
      "",
      "# Where the run goes, and the run that it starts from.",
      f"MODEL_DIR = {str(output / 'base')!r}",
      f"FINETUNED_RUN = {self.run!r}",
      "",
      "# How long, and at what rate: the first things to change.",
      f"TRAIN_STEPS = {steps}",
      "BATCH_SIZE = 8",
      "LEARNING_RATE = @schedules.warmup_cosine()",
      "schedules.warmup_cosine:",
      f"  peak = {_PEAK}",
      f"  warmup_steps = {project_files.warmup_steps(steps)}",
      "  total_steps = %TRAIN_STEPS",
      *project_files.periods(steps),
      "EVAL_STEPS = 1",
      "",
      "# The data.",
      *task,
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
    return project_files.gin(
      f"Fine-tunes {self.run} on the cache of data.toml.",
      file=output / "base.gin",
      imports=[
        *imports,
        "from walt_t5x.engine import optimizers",
        "from walt_t5x.engine import schedules",
      ],
      body=body,
    )

  def commands(self, data: ProjectData, output: Path) -> list[str]:
    """The next commands."""
    runs = [output / "base", *map(self.name_of, self._stages_above())]
    return [
      project_files.preprocess(output / "data.toml"),
      project_files.train(output / "base.gin"),
      *project_files.last_commands(
        output, runs=runs, shown=runs[:1], prompt=project_files.prompt(data)
      ),
    ]

  def title(self) -> str:
    """What the project is."""
    return f"A fine-tuning of {self.run}"

  def notes(self, output: Path) -> list[str]:
    """Further lines of README.md."""
    return []

  def _stages_above(self) -> list[str]:
    """The runs next to the run that upsample its latents, and so on: the rest of its cascade."""
    parent = storage.parent(storage.run_folder(self.run))
    runs = [storage.join(parent, name) for name in storage.folders(parent)]
    takes = {
      run_record.read_model(other).get("low_resolution"): other
      for other in runs
      if storage.exists(run_record.model_file(other))
    }
    found: list[str] = []
    made = self.record.latents
    while made in takes:
      found.append(takes[made])
      made = run_record.read_model(found[-1])["latents"]
    return found
