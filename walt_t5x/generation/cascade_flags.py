"""The flags that choose a trained cascade, and the cascade that they choose: of runs, of a preset or of gin files."""

import dataclasses
from collections.abc import Mapping, Sequence
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
      "Folder of a training run; once for each stage of a cascade. Replaces --gin_file.",
    )
    flags.DEFINE_string(
      "preset",
      None,
      "A trained cascade: one of the package's, or a folder that export_preset wrote. Replaces --gin_file.",
    )
    flags.DEFINE_string(
      "vae_checkpoint",
      None,
      "With --run: the tokenizer, if it has moved since the training.",
    )
    flags.DEFINE_string(
      "text_encoder", None, "With --run: the text encoder, if it has moved since the training."
    )


def check(argv: Sequence[str], *needed: str) -> None:
  """Ends the program unless one of --run, --preset and --gin_file is given, with the flags `needed`.

  Args:
    argv: main's arguments.
    *needed: required flags as examples, such as `output=samples`.
  """
  if FLAGS.run:
    for name in ("gin_file", "preset", "gin_bindings"):
      if FLAGS[name].value:
        flag = "gin.NAME=value" if name == "gin_bindings" else name
        gin_flags.reject(
          f"--{flag} has no effect with --run, which needs no gin file: remove one of them"
        )
  for name in ("vae_checkpoint", "text_encoder"):
    if FLAGS[name].value and not FLAGS.run:
      gin_flags.reject(f"--{name} has an effect only with --run: remove it, or set it in gin")
  examples = ("gin_file=gin/tiny/generate.gin", *needed)
  replaced = "run" if FLAGS.run else "preset"
  gin_flags.check(argv, *examples, instead=replaced, scripts=("train", "generate"))


def read(chosen: Sequence[str] = ()) -> ChosenCascade:
  """The cascade of the flags.

  Args:
    chosen: names of the stages to keep, the first ones of the cascade; all if empty.

  Raises:
    ValueError, FileNotFoundError: `chosen` does not name the first stages of the cascade, or a part is missing.
  """
  from walt_t5x.generation.checks import choose_stages

  if FLAGS.run:
    from walt_t5x.generation import trained_runs

    found = trained_runs.cascade_of(
      FLAGS.run, vae_checkpoint=FLAGS.vae_checkpoint, text_encoder=FLAGS.text_encoder
    )
    cascade = ChosenCascade(config=found.config, described=found.described)
  else:
    cascade = of_gin(FLAGS.preset)
  stages = choose_stages(cascade.config.stages, chosen)
  return dataclasses.replace(cascade, config=dataclasses.replace(cascade.config, stages=stages))


def of_gin(preset_name: str | None = None) -> ChosenCascade:
  """The cascade that a preset, or by default the gin files of the flags bind to `generate_script.generate`."""
  import gin
  from walt_t5x import engine
  from walt_t5x.config import gin_config
  from walt_t5x.generation import presets
  from walt_t5x.generation.loading import CascadeConfig

  preset = presets.find(preset_name) if preset_name else None
  programs.register(train=engine.train, generate=CascadeConfig)
  if not preset:
    # On pods, the file layer reads gs:// with TensorFlow if the process has loaded it.
    with waiting("generate", "importing TensorFlow"), programs.quiet_imports():
      import seqio  # noqa: F401
      import tensorflow  # noqa: F401
  gin_flags.read([preset.gin_file] if preset else None)
  config = gin_config.bound(CascadeConfig)
  if not preset:
    return ChosenCascade(config=config, described=gin.config_str())
  return ChosenCascade(
    config=preset.placed(config), described=gin.config_str(), details={"preset": preset.identity}
  )
