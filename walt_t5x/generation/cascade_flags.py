"""The flags that choose a trained cascade, and the cascade that they choose: of runs, of a preset or of gin files."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from walt_t5x.config import gin_flags, programs
from walt_t5x.config.waiting import waiting

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChosenCascade:
  """A cascade.

  Attributes:
    config: its `generation.loading.CascadeConfig`.
    described: the text that tells it from others: its gin configuration, or the records of its runs.
    details: entries for the record of a sample, such as the identity of a preset.
  """

  config: Any
  described: str
  details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def define_flags() -> None:
  """Defines the flags, with those of gin files."""
  gin_flags.define()
  with gin_flags.group("configuration"):
    flags.DEFINE_multi_string(
      "run",
      [],
      "Folder of a training run, or a part of the package's preset such as shapes/base; once for each stage of a "
      "cascade. Replaces --gin_file.",
    )
    flags.DEFINE_string(
      "preset",
      None,
      "A trained cascade: one of the package's, or a folder that export wrote. Replaces --gin_file.",
    )
    flags.DEFINE_string(
      "vae_checkpoint",
      None,
      "With --run: the tokenizer, if it has moved since the training.",
    )
    flags.DEFINE_string(
      "text_encoder", None, "With --run: the text encoder, if it has moved since the training."
    )
    flags.DEFINE_enum(
      "stage_weights",
      None,
      ["auto", "sharded", "replicated"],
      "Whether several devices split the stages' weights; by default the cascade's setting, auto.",
    )
  with gin_flags.group("sampler"):
    flags.DEFINE_list(
      "num_steps", [], "Steps of all stages, or of each, such as 50,20; by default the cascade's."
    )
    flags.DEFINE_list(
      "guidance", [], "Guidance scale of all stages, or of each, such as 7.5,1; 1 is without."
    )
    flags.DEFINE_list(
      "solver",
      [],
      "Solver of all stages, or of each: ddim, dpmpp_2m, dpmpp_2s, heun or unipc, see docs/generation.md.",
    )


def check(argv: Sequence[str], *needed: str) -> None:
  """Ends the program unless one of --run, --preset and --gin_file is given, with the flags `needed`.

  Args:
    argv: main's arguments.
    *needed: required flags as examples, such as `output=samples`.
  """
  given = "run" if FLAGS.run else "preset"
  if FLAGS[given].value:
    for name in {"gin_file", "preset", "gin_bindings"} - {given}:
      if FLAGS[name].value:
        flag = "gin.NAME=value" if name == "gin_bindings" else name
        gin_flags.reject(
          f"--{flag} has no effect with --{given}, which needs no gin file: remove one of them"
        )
  for name in ("vae_checkpoint", "text_encoder"):
    if FLAGS[name].value and not FLAGS.run:
      gin_flags.reject(f"--{name} has an effect only with --run: remove it, or set it in gin")
  examples = ("gin_file=gin/tiny/generate.gin", *needed)
  gin_flags.check(argv, *examples, instead=given, scripts=("train", "generate"))


def read(chosen: Sequence[str] = ()) -> ChosenCascade:
  """The cascade of the flags.

  Args:
    chosen: names of the stages to keep, the first ones of the cascade; all if empty.

  Raises:
    ValueError, FileNotFoundError: `chosen` does not name the first stages of the cascade, the flags of the sampler do
      not fit its stages, or a part is missing.
  """
  from walt_t5x.generation.checks import choose_stages

  cascade = _of_runs() if FLAGS.run or FLAGS.preset else _of_gin()
  stages = _with_sampler(choose_stages(cascade.config.stages, chosen))
  given = [f"{name} = {FLAGS[name].value}" for name in _SAMPLER if FLAGS[name].value]
  weights = FLAGS["stage_weights"].value or cascade.config.stage_weights
  return dataclasses.replace(
    cascade,
    config=dataclasses.replace(cascade.config, stages=stages, stage_weights=weights),
    described="\n".join([cascade.described, *given]),
  )


_SAMPLER = ("num_steps", "guidance", "solver")


def _with_sampler(stages: Sequence[Any]) -> list[Any]:
  """The stages with the samplers of the flags."""
  from walt_t5x.models.sampling import SOLVERS

  def from_on(kind: type, least: float) -> Callable[[str], float | None]:
    return lambda text: number if (number := kind(text)) >= least else None

  names = [stage.name for stage in stages]
  steps = _of_each("num_steps", from_on(int, 1), "number from 1 on", names)
  scales = _of_each("guidance", from_on(float, 0), "number from 0 on", names)
  known = " or ".join(SOLVERS)
  chosen = _of_each("solver", SOLVERS.get, f"solver ({known})", names)
  return [
    stage.with_sampler(num_steps=count, guidance=scale, solver=solver)
    for stage, count, scale, solver in zip(stages, steps, scales, chosen)
  ]


def _of_each(
  name: str, parse: Callable[[str], Any], expected: str, stages: Sequence[str]
) -> list[Any]:
  """What a flag has for each stage; None without the flag."""
  texts = FLAGS[name].value or []
  if not texts:
    return [None] * len(stages)
  try:
    found = [parse(text) for text in texts] * (len(stages) if len(texts) == 1 else 1)
  except ValueError:
    found = []
  if len(found) != len(stages) or None in found:
    raise ValueError(
      f"--{name}={','.join(texts)}: expected one {expected}, or one for each of the stages {', '.join(stages)}"
    )
  return found


def _of_runs() -> ChosenCascade:
  """The cascade of --run or of --preset."""
  from walt_t5x.generation import presets, trained_runs

  details: dict[str, Any] = {}
  places = {name: FLAGS[name].value for name in ("vae_checkpoint", "text_encoder")}
  runs = [presets.place(run) for run in FLAGS.run]
  if not runs:
    preset = presets.find(FLAGS.preset)
    runs, details = preset.runs, {"preset": preset.identity}
  found = trained_runs.cascade_of(runs, **places)
  return ChosenCascade(config=found.config, described=found.described, details=details)


def _of_gin() -> ChosenCascade:
  """The cascade that the gin files of the flags bind to `generate_script.generate`."""
  import gin
  from walt_t5x import engine
  from walt_t5x.config import gin_config
  from walt_t5x.generation.loading import CascadeConfig

  programs.register(train=engine.train, generate=CascadeConfig)
  # On pods, the file layer reads gs:// with TensorFlow if the process has loaded it.
  with waiting("generate", "importing TensorFlow"), programs.quiet_imports():
    import seqio  # noqa: F401
    import tensorflow  # noqa: F401
  gin_flags.read()
  return ChosenCascade(config=gin_config.bound(CascadeConfig), described=gin.config_str())
