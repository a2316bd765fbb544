"""Generates videos from prompts: mp4 files, a JSON sidecar each, and an HTML gallery that opens from disk.

  python -m walt_t5x.generate --gin_file=gin/tiny/generate.gin --prompt="a red square moves right" \\
    --gin.BASE_CHECKPOINT=\\"runs/base\\" --output=samples
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

_REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

FLAGS = flags.FLAGS


def define_flags() -> None:
  """The flags of the program."""
  flags.DEFINE_multi_string("gin_file", None, "gin files; later ones override earlier ones.")
  flags.DEFINE_multi_string(
    "gin_bindings", [], "Single bindings; `--gin.NAME=value` is short for one."
  )
  flags.DEFINE_list("gin_search_paths", ["."], "Folders to look for gin files in.")
  flags.DEFINE_multi_string("prompt", [], "A prompt; may be repeated.")
  flags.DEFINE_string("prompts_file", None, "Text file, one prompt a line.")
  flags.DEFINE_string("output", None, "Folder of the samples.", required=False)
  flags.DEFINE_integer("seed", 0, "Seed; the same seed and prompts give the same videos.")
  flags.DEFINE_integer("batch_size", 32, "Prompts sampled at a time.", lower_bound=1)
  flags.DEFINE_float("fps", 8.0, "Frame rate of the files.", lower_bound=0.1)


def read_prompts(prompts: Sequence[str], prompts_file: str | None) -> list[str]:
  """The prompts of both flags.

  Raises:
    ValueError: if there is none, or a file holds none.
  """
  found = [p.strip() for p in prompts]
  if prompts_file:
    lines = Path(prompts_file).read_text(encoding="utf-8").splitlines()
    from_file = [line.strip() for line in lines if line.strip()]
    if not from_file:
      raise ValueError(f"--prompts_file={prompts_file} holds no prompt: expected one a line")
    found += from_file
  if not found or not all(found):
    raise ValueError("nothing to generate: give --prompt or --prompts_file, none of them empty")
  return found


def generate(
  *,
  stages: Sequence,
  vae,
  vae_checkpoint: str,
  text_encoder: str,
  text_length: int,
  prompts: Sequence[str],
  output: str,
  seed: int = 0,
  batch_size: int = 32,
  fps: float = 8.0,
  vae_ema: bool = True,
) -> Path:
  """Samples every prompt through the cascade and writes the folder; returns the gallery's path.

  Args:
    stages: `StageConfig`s, base first.
    vae: the tokenizer, a `CausalVae`.
    vae_checkpoint: its checkpoint.
    text_encoder: folder of the T5 encoder.
    text_length: L of the stages.
    prompts: what to show.
    output: folder of the samples.
    seed: of the noise.
    batch_size: prompts at a time; at most all of them.
    fps: frame rate of the files.
    vae_ema: decode with the tokenizer's averaged weights.
  """
  from flax.traverse_util import flatten_dict
  from tqdm import tqdm

  from walt_t5x.engine.checkpoints import load_params
  from walt_t5x.generation.cascade import Cascade
  from walt_t5x.generation.sample_folder import SampleFolder
  from walt_t5x.generation.stage import Stage
  from walt_t5x.text.encoder import TextEncoder
  from walt_t5x.text.fingerprint import weights_fingerprint

  vae_params = load_params(vae_checkpoint, ema=vae_ema)["vae"]
  cascade = Cascade(
    stages=[Stage.load(config) for config in stages],
    text_encoder=TextEncoder.load(text_encoder),
    vae=vae,
    vae_params=vae_params,
    vae_fingerprint=weights_fingerprint(flatten_dict(vae_params, sep="/")),
    text_length=text_length,
  )
  folder = SampleFolder(output)
  started = time.monotonic()
  with tqdm(total=len(prompts), unit="video", desc="generate", file=sys.stderr) as progress:
    for batch in cascade.generate(prompts, seed=seed, batch_size=min(batch_size, len(prompts))):
      for sample in batch:
        folder.write(
          sample.index,
          prompt=sample.prompt,
          videos=sample.videos,
          fps=fps,
          seed=seed,
          steps={stage.config.name: stage.step for stage in cascade.stages},
          fingerprints={"vae": cascade.stages[0].provenance.vae["fingerprint"]},
        )
      progress.update(len(batch))
  gallery = folder.write_gallery()
  print(
    json.dumps(
      {
        "videos": len(prompts),
        "seconds": round(time.monotonic() - started, 1),
        "gallery": str(gallery),
      }
    )
  )
  return gallery


def main(argv: Sequence[str]) -> None:
  """Reads flags and gin, and generates."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {list(argv[1:])}; bindings are --gin.NAME=value.")
  if not FLAGS.gin_file or not FLAGS.output:
    raise app.UsageError(
      "--gin_file and --output are needed; try --gin_file=gin/tiny/generate.gin."
    )
  try:
    prompts = read_prompts(FLAGS.prompt, FLAGS.prompts_file)
  except (ValueError, OSError) as error:
    sys.exit(str(error))
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

  import gin
  from walt_t5x.engine import gin_config

  run = gin.configurable(generate)
  try:
    gin_config.parse(FLAGS.gin_file, FLAGS.gin_bindings, [*FLAGS.gin_search_paths, _REPOSITORY])
  except gin_config.GinError as error:
    sys.exit(f"The gin configuration cannot be used.\n{error}")
  try:
    run(
      prompts=prompts,
      output=FLAGS.output,
      seed=FLAGS.seed,
      batch_size=FLAGS.batch_size,
      fps=FLAGS.fps,
    )
  except (ValueError, FileNotFoundError) as error:
    sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
  define_flags()
  from walt_t5x.engine.gin_config import rewrite_gin_args

  app.run(main, flags_parser=lambda args: app.parse_flags_with_usage(rewrite_gin_args(args)))
