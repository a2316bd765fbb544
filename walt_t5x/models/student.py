"""A student of a trained run, for gin files; the run describes its network, so no setting is repeated."""

import functools
import math
from collections.abc import Callable
from typing import Any

from flax import traverse_util

from data.corpus import CorpusConstants
from walt_t5x.diffusion.samplers.grids import EvenAngle, Path
from walt_t5x.engine.checkpoints import find_checkpoint, has_average, load_params
from walt_t5x.files.fingerprint import weights_fingerprint
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.models import model_record
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.distilled_model import DistilledModel
from walt_t5x.models.sampling import SamplerConfig


def student_of(
  *,
  teacher: str,
  calls: int,
  optimizer_def: Any,
  teacher_calls: int | None = None,
  guidance_range: tuple[float, float] | None = None,
  grid_share: float = 0.5,
  grid: Path = EvenAngle(),  # noqa: B008 - frozen
  corpus: Callable[[], CorpusConstants] | None = None,
) -> DistilledModel:
  """The student of a run: its network and settings, and a sampler of fewer calls.

  Args:
    teacher: the run's folder, or a checkpoint in it; it may be a student itself.
    calls: network calls of the student.
    optimizer_def: an engine optimizer.
    teacher_calls: calls of the teacher that the student replaces; None for those of the run's sampler.
    guidance_range: lowest and highest scale of guidance, an input of the student then; that of the teacher if it has
      one. None for the scale of the run's sampler, as it is.
    grid_share: as in `DistilledModel`.
    grid: where the student calls its network.
    corpus: as in `DenoiserModel`.

  Raises:
    FileNotFoundError: the run has no record of its model.
    Mismatch: it is the run of a tokenizer, or makes fewer calls already.
  """
  trained = model_record.read(teacher).model
  if not isinstance(trained, DenoiserModel):
    raise Mismatch(f"TEACHER={teacher} trained a tokenizer: expected the run of a denoiser")
  before = teacher_calls or trained.sampler.num_steps
  if not 1 <= calls < before:
    raise Mismatch(
      f"TEACHER={teacher} makes {before} calls, CALLS={calls}: expected fewer, such as {math.ceil(before / 2)}"
    )
  guidance_range = trained.module.guidance_range or guidance_range
  if trained.sampler.guidance is None:
    guidance_range = None
  settings = {name: getattr(trained, name) for name in model_record.settings_of(DenoiserModel)}
  # Its own guidance is in its weights, or an input.
  guidance = trained.sampler.guidance if guidance_range is not None else None
  return DistilledModel(
    teacher=trained,
    substeps=math.ceil(before / calls),
    grid_share=grid_share,
    teacher_identity=functools.partial(identity_of, teacher),
    optimizer_def=optimizer_def,
    corpus=corpus,
    **settings
    | {
      "module": trained.module.clone(guidance_range=guidance_range),
      "drop_probability": 0.0,
      "sampler": SamplerConfig(num_steps=calls, guidance=guidance, grid=grid),
    },
  )


def identity_of(run: str) -> dict[str, str]:
  """The checkpoint of a run, and the sha256 of the weights that samples are made with: the average, if there is one."""
  checkpoint = find_checkpoint(run)
  weights = load_params(checkpoint, ema=has_average(checkpoint))
  return {
    "checkpoint": checkpoint,
    "weights": weights_fingerprint(traverse_util.flatten_dict(weights, sep="/")),
  }
