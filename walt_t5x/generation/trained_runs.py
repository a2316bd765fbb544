"""The cascade of training runs, as they describe themselves: no gin file, sizes or encoders to repeat."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from data.provenance import read_provenance
from walt_t5x.engine import run_record
from walt_t5x.engine.checkpoints import find_checkpoint, has_average
from walt_t5x.files import storage
from walt_t5x.generation.loading import CascadeConfig
from walt_t5x.generation.stage import StageConfig
from walt_t5x.models import model_record
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.model_record import ModelRecord
from walt_t5x.vae.autoencoder import CausalVae


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunCascade:
  """The cascade, and the text that tells it from others in the record of samples."""

  config: CascadeConfig
  described: str


def cascade_of(
  runs: Sequence[str], *, vae_checkpoint: str | None = None, text_encoder: str | None = None
) -> RunCascade:
  """The cascade of these runs, in the order in which one takes what another makes.

  Args:
    runs: the folders of one run for each stage, or checkpoints in them.
    vae_checkpoint, text_encoder: where tokenizer and text encoder are now; by default where they were when the
      training data was made.

  Raises:
    FileNotFoundError: a run does not describe itself, or its tokenizer or text encoder has moved.
    ValueError: the runs are not those of one cascade; names what is missing.
  """
  records = {run: model_record.read(run) for run in runs}
  stages = []
  for name, run in zip(_names(len(runs)), _ordered(records)):
    checkpoint, record = find_checkpoint(run), records[run]
    assert isinstance(record.model, DenoiserModel) and record.latents
    stages.append(
      StageConfig(
        name=name,
        model=record.model,
        checkpoint=checkpoint,
        latents=record.latents,
        low_resolution=record.low_resolution,
        ema=has_average(checkpoint),
      )
    )
  base = stages[0].checkpoint
  provenance = read_provenance(storage.parent(base))
  lengths = {record.text_length for record in records.values()} - {0}
  if len(lengths) > 1:
    raise ValueError(
      f"the runs read captions of {sorted(lengths)} tokens: train the stages with one RowFormat.text_length"
    )
  config = CascadeConfig(
    stages=stages,
    vae=CausalVae(**_fields(provenance.vae["config"])),
    vae_checkpoint=_place(
      vae_checkpoint,
      run_record.encoder_place(base, provenance.vae["checkpoint"]),
      what="tokenizer",
      flag="--vae_checkpoint",
    ),
    vae_ema=None,
    text_encoder=_place(
      text_encoder,
      run_record.encoder_place(base, provenance.text_encoder["folder"]),
      what="text encoder",
      flag="--text_encoder",
    )
    if lengths
    else None,
    text_length=max(lengths, default=0),
  )
  described = {stage.name: run_record.read_model(stage.checkpoint) for stage in stages}
  return RunCascade(config=config, described=json.dumps(described, sort_keys=True))


def _names(count: int) -> list[str]:
  return ["base", *(f"sr{number}" for number in range(1, count))]


def _ordered(records: dict[str, ModelRecord]) -> list[str]:
  """The runs, base stage first, each followed by the one that upsamples its latents."""
  for run, record in records.items():
    if not isinstance(record.model, DenoiserModel):
      raise ValueError(
        f"--run={run} trained a tokenizer: name the runs of the denoisers, which know their tokenizer"
      )
  ordered: list[str] = []
  made: str | None = None
  while len(ordered) < len(records):
    following = [run for run, record in records.items() if record.low_resolution == made]
    if len(following) != 1:
      raise ValueError(_gap(records, following, made))
    ordered += following
    made = records[following[0]].latents
  return ordered


def _gap(records: dict[str, ModelRecord], following: Sequence[str], made: str | None) -> str:
  stages = "; ".join(
    f"{run} makes {record.latents} from {record.low_resolution or 'text or class'}"
    for run, record in records.items()
  )
  wanted = f"the stage that takes {made}" if made else "a base stage"
  found = f"{' and '.join(following)} both are" if following else "none is"
  return f"expected one --run for {wanted}, and {found}: {stages}"


def _place(given: str | None, recorded: str, *, what: str, flag: str) -> str:
  place = given or recorded
  if not storage.exists(place):
    where = "" if given else " that made the training data"
    raise FileNotFoundError(f"the {what}{where} is not in {place}: set {flag} to its folder")
  return place


def _fields(config: dict[str, Any]) -> dict[str, Any]:
  return {
    name: tuple(value) if isinstance(value, list) else value for name, value in config.items()
  }
