"""All programs in sequence, at the smallest size: from corpus to gallery."""

import json
from pathlib import Path

import pytest

from tests import programs

NARROW = [
  f"--gin.{scope}/transformer.WaltDenoiser.{name}={value}"
  for scope in ("base", "sr1")
  for name, value in (("num_layers", 2), ("width", 16), ("num_heads", 2), ("mlp_dim", 32))
]
# It doubles the network in a training step; `tests/engine/denoiser_meshes_test.py` has it.
NARROW += [
  f"--gin.{scope}/denoiser_model.DenoiserModel.self_conditioning_probability=0.0"
  for scope in ("base", "sr1")
]

# The tokenizer of gin/tiny without ResBlocks and with half of its strides: 5 x 16 x 16 -> 3 x 8 x 8, which compiles in
# a third of the time.
TOKENIZER = [
  f"--gin.autoencoder.CausalVae.{name}={value}"
  for name, value in (
    ("channel_multipliers", "(1, 2)"),
    ("temporal_downsample", "(True,)"),
    ("num_res_blocks", 0),
  )
]
PIXELS = [
  '--gin.pixel_task.pixels="pixels/5x16x16"',
  '--gin.pixel_task.crops_of=["pixels/5x32x32"]',
]
# Evaluation during training is in `tests/engine`; it compiles the network a second time.
UNWATCHED = ["--gin.train.train_eval_dataset_cfg=None"]


def _run(*arguments):
  done = programs.run(*arguments, environment=programs.ONE_DEVICE)
  assert done.returncode == 0, f"{arguments}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
  return done.stdout


def _train(gin_file, model_dir, cache, steps, *bindings):
  return [
    "walt_t5x.train",
    f"--gin_file=gin/tiny/{gin_file}.gin",
    f'--gin.MODEL_DIR="{model_dir}"',
    f"--gin.TRAIN_STEPS={steps}",
    "--gin.SAVE_PERIOD=4",
    "--gin.STATS_PERIOD=2",
    "--gin.EVAL_PERIOD=1000",
    "--gin.BATCH_SIZE=8",
    "--gin.schedules.warmup_cosine.warmup_steps=1",
    f"--seqio_additional_cache_dirs={cache}",
    *bindings,
  ]


def _for(scope):
  return [binding for binding in NARROW if binding.startswith(f"--gin.{scope}/")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A small corpus, its text encoder, a tokenizer of two steps, and the cache made with both."""
  folder = tmp_path_factory.mktemp("end_to_end")
  corpus, cache = folder / "corpus", folder / "cache"
  _run("data.samples", f"--output={corpus}", "--num_clips=16", "--num_stills=16", "--no_real")
  manifest = corpus / "manifest.jsonl"
  _run(
    "walt_t5x.text.init_encoder",
    f"--captions={manifest}",
    f"--output={folder / 'text'}",
    "--size=tiny",
  )
  job = [
    "beam_jobs.preprocess",
    f"--manifest={manifest}",
    f"--output={cache}",
    "--num_frames=5",
    "--num_shards=2",
    "--resolutions=16x16,32x32",
  ]
  _run(*job, "--task=shapes_pixels", "--content=pixels")
  _run(*_train("vae", folder / "vae", cache, 2, *TOKENIZER, *PIXELS, *UNWATCHED))
  _run(
    *job,
    "--task=shapes",
    f"--vae_checkpoint={folder / 'vae'}",
    f"--text_encoder={folder / 'text'}",
    "--max_text_length=16",
  )
  return folder


@pytest.mark.timeout(900)
def test_the_cascade_makes_a_gallery(folder):
  cache, base = folder / "cache", folder / "base"
  # Their first checkpoints are enough: `tests/your_data_test.py` trains a base stage, and
  # `tests/engine/stage_steps_test.py` super-resolution.
  schedule = "--gin.schedules.warmup_cosine.total_steps=2"
  for gin_file, run, scope in (("base", base, "base"), ("sr", folder / "sr1", "sr1")):
    _run(*_train(gin_file, run, cache, 0, *_for(scope), schedule, *UNWATCHED))
  generate = [
    "walt_t5x.generate",
    "--gin_file=gin/tiny/generate.gin",
    f'--gin.BASE_CHECKPOINT="{base}"',
    f'--gin.SR1_CHECKPOINT="{folder / "sr1"}"',
    f'--gin.VAE_CHECKPOINT="{folder / "vae"}"',
    f'--gin.TEXT_ENCODER="{folder / "text"}"',
    "--gin.base/sampling.SamplerConfig.num_steps=2",
    "--gin.sr1/sampling.SamplerConfig.num_steps=2",
    *NARROW,
    *TOKENIZER,
    f"--output={folder / 'samples'}",
  ]
  prompts = ["--prompt=a red square moves right", "--prompt=a blue circle moves up"]
  *streamed, _ = map(json.loads, _run(*generate, *prompts, "--stream").splitlines())
  handed = [(line["stage"], line["sample"], Path(line["file"]).name) for line in streamed]
  assert handed == [(s, i, f"{i:05d}_{s}.mp4") for s in ("base", "sr1") for i in (0, 1)]
  trained = json.loads((base / "provenance.json").read_text())
  assert json.loads((folder / "samples" / "00000.json").read_text())["fps"] == trained["fps"]
  evaluate = [
    "walt_t5x.evaluate",
    "--protocol=caption_accuracy",
    f"--samples={folder / 'samples'}",
  ]
  result = json.loads(_run(*evaluate).splitlines()[-1])
  assert result["scores"]["base"]["caption_accuracy/clips"] == 2
  assert (folder / "samples" / "gallery.html").stat().st_size > 10_000
  assert len(list((folder / "samples").glob("*_sr1.mp4"))) == 2
