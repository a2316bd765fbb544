"""T5X with our gin files: it trains, resumes runs of the built-in engine and vice versa, evaluates and samples.

Runs only if `import t5x` works (see docs/t5x.md) and takes about 10 minutes on two cores.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from flax.core import freeze
from jax.sharding import PartitionSpec as P

from tests.end_to_end_test import PIXELS, TOKENIZER
from tests.programs import ROOT
from walt_t5x.engine import checkpoints, optimizers, trainable
from walt_t5x.engine.builtin import optimizer as builtin_optimizer
from walt_t5x.files import storage

t5x_missing = None
try:
  import t5x.optimizers
  import t5x.train
except ImportError as error:
  t5x_missing = f"T5X cannot be imported ({error}); see docs/t5x.md"
pytestmark = [
  pytest.mark.skipif(t5x_missing is not None, reason=str(t5x_missing)),
  pytest.mark.timeout(1800),
  # All starts of one engine compile the same step.
]
if t5x_missing is None:
  from tests.end_to_end_test import folder  # noqa: F401 - `folder` is the fixture with a small corpus' caches

NARROW = {
  scope: [
    f"--gin.{scope}/transformer.WaltDenoiser.{name}={value}"
    for name, value in (("num_layers", 2), ("width", 32), ("num_heads", 2), ("mlp_dim", 64))
  ]
  for scope in ("base", "sr1")
}
NARROW_TOKENIZER = ["--gin.autoencoder.CausalVae.base_channels=4", *TOKENIZER, *PIXELS]
ADAFACTOR = """
from __gin__ import dynamic_registration
from walt_t5x.engine import optimizers
include 'gin/tiny/base.gin'
OPTIMIZER = @optimizers.adafactor()
optimizers.adafactor:
  learning_rate = %LEARNING_RATE
  min_dim_size_to_factor = 8
  ema_decay = 0.99
"""
ADVERSARIAL = """
from __gin__ import dynamic_registration
from walt_t5x.engine import optimizers
from walt_t5x.models import vae_model
from walt_t5x.vae import discriminator
include 'gin/tiny/vae.gin'
vae_model.VaeModel:
  optimizer_def = @optimizers.by_part()
  discriminator = @discriminator.Discriminator()
discriminator.Discriminator:
  base_channels = 4
  channel_multipliers = (2,)
optimizers.by_part.parts = {
  'vae': @vae/optimizers.adamw_chain(),
  'discriminator': @discriminator/optimizers.adamw_chain(),
}
vae/optimizers.adamw_chain.learning_rate = %LEARNING_RATE
discriminator/optimizers.adamw_chain.learning_rate = %LEARNING_RATE
"""
FILES = {"base_adafactor.gin": ADAFACTOR, "vae_adversarial.gin": ADVERSARIAL}
# The base stage is also evaluated during training; the others would only compile the same again.
UNWATCHED = ["--gin.BATCH_SIZE=2", "--gin.train.train_eval_dataset_cfg=None"]
RUNS = {
  "base": ("gin/tiny/base.gin", NARROW["base"]),
  "base_adafactor": ("base_adafactor.gin", [*NARROW["base"], *UNWATCHED]),
  "sr": ("gin/tiny/sr.gin", [*NARROW["sr1"], *UNWATCHED]),
  "vae": ("gin/tiny/vae.gin", [*NARROW_TOKENIZER, *UNWATCHED]),
  # Its discriminator's state is not trained, and evaluated too.
  "vae_adversarial": (
    "vae_adversarial.gin",
    [*NARROW_TOKENIZER, "--gin.BATCH_SIZE=2"],
  ),
}


def _run(engine, program, *arguments, **environment):
  """One program of T5X, or the built-in engine's launcher."""
  if engine == "builtin":
    command = [sys.executable, "-m", f"walt_t5x.{program}", *arguments]
  else:
    command = [sys.executable, str(Path(t5x.train.__file__).with_name(f"{program}.py")), *arguments]
  done = subprocess.run(
    command,
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "",
      "TF_CPP_MIN_LOG_LEVEL": "3",
      "WALT_T5X_ENGINE": engine,
      **environment,
      "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    },
  )
  return done.returncode, done.stdout + done.stderr


def _train(engine, run, model_dir, cache, steps, *bindings):
  gin_file, narrow = RUNS[run]
  return _run(
    engine,
    "train",
    f"--gin_file={gin_file}",
    f"--gin_search_paths=.,{model_dir.parent}",
    f'--gin.MODEL_DIR="{model_dir}"',
    f"--gin.TRAIN_STEPS={steps}",
    "--gin.SAVE_PERIOD=20",
    "--gin.STATS_PERIOD=1",
    "--gin.EVAL_PERIOD=20",
    "--gin.BATCH_SIZE=4",
    "--gin.EVAL_BATCH_SIZE=4",
    "--gin.EVAL_STEPS=2",
    "--gin.schedules.warmup_cosine.warmup_steps=5",
    "--gin.schedules.warmup_cosine.total_steps=60",
    f"--seqio_additional_cache_dirs={cache}",
    *narrow,
    *bindings,
  )


def _metric(model_dir, name):
  """Step -> value; a run reports each step once."""
  lines = map(json.loads, (model_dir / "metrics.jsonl").read_text().splitlines())
  found = [(line["step"], line[name]) for line in lines if name in line]
  assert len(dict(found)) == len(found), f"a step of {name} is reported twice: {found}"
  return dict(found)


def _fine(result):
  code, text = result
  assert code == 0, text[-6000:]


@pytest.fixture(scope="module")
def trained(folder):
  """Folders of a run with three starts of two engines, and of uninterrupted runs of each engine."""
  made = {}
  for name, text in FILES.items():
    (folder / name).write_text(text)

  def of(run):
    if run not in made:
      mixed, alone = folder / f"mixed_{run}", {e: folder / f"{e}_{run}" for e in ("t5x", "builtin")}
      for engine, steps in (("t5x", 20), ("builtin", 40), ("t5x", 60)):
        _fine(_train(engine, run, mixed, folder / "cache", steps))
      for engine, model_dir in alone.items():
        _fine(_train(engine, run, model_dir, folder / "cache", 60))
      made[run] = mixed, alone
    return made[run]

  return of


@pytest.mark.parametrize("run", RUNS)
def test_each_engine_continues_the_others_run(run, trained):
  mixed, alone = trained(run)
  ours = _metric(mixed, "loss")
  assert sorted(ours) == list(range(1, 61))
  state = checkpoints.load_state_dict(mixed / "checkpoint_60")
  for engine, model_dir in alone.items():
    theirs = _metric(model_dir, "loss")
    assert sorted(theirs) == sorted(ours)
    worst = max(abs(ours[n] / theirs[n] - 1) for n in ours)
    print(f"{run}: largest relative difference of the loss from {engine} alone: {worst:.1e}")
    assert worst <= 1e-4, f"{run}, {engine} alone"
    # Parameters, moments, average, counts: equal losses do not imply an equal state.
    undisturbed = checkpoints.load_state_dict(model_dir / "checkpoint_60")
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), state, undisturbed
    )


CHAINS = {
  "adamw": lambda: optimizers.adamw(1e-3, ema_decay=0.9, weight_decay=0.1),
  "decayed by name": lambda: optimizers.adamw(
    1e-3, weight_decay=0.1, weight_decay_names=("kernel",)
  ),
  "adafactor": lambda: optimizers.adafactor(1e-3, ema_decay=0.9, momentum=0.9, num_microbatches=2),
  "by part": lambda: optimizers.by_part(
    parts={
      "vae": optimizers.adafactor_chain(1e-3, ema_decay=0.9),
      "discriminator": optimizers.adamw_chain(1e-3),
    }
  ),
  "of a part": lambda: trainable.trained_alone(
    optimizers.adamw(1e-3, ema_decay=0.9), ("discriminator/kernel",)
  ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_t5x_partitions_the_optimizers_as_the_built_in_engine_does(chain):
  kernel, bias = P("embed", "mlp"), P("mlp")
  shapes = {"vae": ((96, 128), kernel), "discriminator": ((128, 70), P("mlp", "embed"))}
  params = {part: {"kernel": jnp.zeros(shape)} for part, (shape, _) in shapes.items()}
  axes = {part: {"kernel": names} for part, (_, names) in shapes.items()}
  params["vae"]["bias"], axes["vae"]["bias"] = jnp.zeros((128,)), bias
  params, axes = freeze(params), freeze(axes)
  chain = CHAINS[chain]()
  assert type(chain).__module__ == "t5x.optimizers"
  state = jax.eval_shape(chain.init_state, params)
  theirs = t5x.optimizers.OptaxStatePartitionRules.derive_optax_logical_axes(
    state.param_states, axes
  )
  ours = builtin_optimizer.OptaxWrapper(chain.optax_optimizer).derive_logical_axes(state, axes)

  def names(tree):  # None and the empty PartitionSpec both mean replicated.
    leaves, _ = jax.tree_util.tree_flatten_with_path(
      tree, is_leaf=lambda x: x is None or isinstance(x, P)
    )
    return {jax.tree_util.keystr(path): tuple(spec or ()) for path, spec in leaves}

  assert names(theirs) == names(ours.param_states)


def test_t5x_rejects_data_of_another_tokenizer_and_names_it(trained, folder, tmp_path):
  mixed, _ = trained("base")
  other = tmp_path / "run"
  shutil.copytree(mixed, other)
  recorded = storage.read_json(other / "provenance.json")
  recorded["vae"]["fingerprint"] = "of another"
  (other / "provenance.json").write_text(json.dumps(recorded))
  code, text = _train("t5x", "base", other, folder / "cache", 80)
  assert code != 0
  assert "vae.fingerprint = 'of another'" in text and recorded["schema_version"]
  assert not (other / "checkpoint_80").exists()


def test_both_engines_train_the_same_adapters_of_a_trained_run(trained, folder, tmp_path):
  mixed, _ = trained("base")
  states = []
  files = [f"--gin_file=gin/runs/{name}.gin" for name in ("adapters", "finetune")]
  bindings = [*files, f'--gin.FINETUNED_RUN="{mixed}"', "--gin.ADAPTER_RANK=2"]
  code, text = _train("t5x", "base", tmp_path / "t5x", folder / "cache", 20, *bindings)
  assert code and "--gin.train_script.train.total_steps=0" in text
  for engine in ("t5x", "builtin"):
    tuned = tmp_path / engine
    start = [*bindings, "--gin.train_script.train.total_steps=0"]
    _fine(_train("builtin", "base", tuned, folder / "cache", 20, *start))
    _fine(_train(engine, "base", tuned, folder / "cache", 20, *bindings))
    states.append(checkpoints.load_state_dict(tuned / "checkpoint_20"))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *states)
  before = traverse_util.flatten_dict(checkpoints.load_params(mixed, ema=True), sep="/")
  after = traverse_util.flatten_dict(states[0]["target"], sep="/")
  new = {name for name in after if "adapter_" in name}
  assert new == after.keys() - before.keys() != set()
  for name, array in before.items():
    np.testing.assert_array_equal(after[name], array)
  assert all(np.any(after[name]) for name in new)


def test_t5x_evaluates_as_the_built_in_engine_does(trained, folder, tmp_path):
  mixed, alone = trained("base")
  _fine(
    _run(
      "t5x",
      "eval",
      "--gin_file=gin/tiny/eval_base.gin",
      f'--gin.CHECKPOINT="{mixed}"',
      f'--gin.OUTPUT_DIR="{tmp_path}"',
      f"--gin.CACHE_DIRS=['{folder / 'cache'}']",
      "--gin.BATCH_SIZE=4",
      "--gin.EVAL_STEPS=2",
      "--gin.SAMPLED_ROWS=8",
      "--gin.base/sampling.SamplerConfig.num_steps=2",
      *NARROW["base"],
      # USE_HARDWARE_RNG = True trains with this generator; the fixed draws of an evaluation use it too.
      JAX_DEFAULT_PRNG_IMPL="unsafe_rbg",
    )
  )
  for task in ("shapes_images", "shapes_videos"):
    name = f"training_eval/{task}/loss"
    loss = _metric(tmp_path, name)[60]
    np.testing.assert_allclose(loss, _metric(alone["builtin"], name)[60], rtol=1e-4)
  # The same eight examples in the same batches, through `score_batch` instead of `eval_fn`.
  scores = _metric(tmp_path / "inference_eval", "shapes_videos/score")
  np.testing.assert_allclose(scores[60], -loss, rtol=1e-4)
  # The task's SeqIO metric for the same samples: at least the squared distance of the means of the 8 channels, whose
  # root mean square is `mean_error`.
  inference = tmp_path / "inference_eval"
  frechet = _metric(inference, "shapes_videos/latent_frechet")[60]
  assert 8 * _metric(inference, "shapes_videos/mean_error")[60] ** 2 <= frechet * (1 + 1e-5)
  assert np.isfinite(frechet)


def test_t5x_samples_latents_of_every_example(trained, folder, tmp_path):
  mixed, _ = trained("base")
  arguments = (
    "--gin_file=gin/tiny/infer_base.gin",
    f'--gin.CHECKPOINT="{mixed / "checkpoint_60"}"',
    f"--gin.CACHE_DIRS=['{folder / 'cache'}']",
    "--gin.base/sampling.SamplerConfig.num_steps=2",
    *NARROW["base"],
  )
  samples = []
  # Examples are drawn in chunks; regardless of their size, each example occurs once.
  for batch, batches in ((4, 8), (4, 1)):
    output = tmp_path / f"{batch}x{batches}"
    sizes = (f"--gin.BATCH_SIZE={batch}", f"--gin.BATCHES_PER_CHUNK={batches}")
    _fine(_run("t5x", "infer", *arguments, *sizes, f'--gin.OUTPUT_DIR="{output}"'))
    with np.load(output / "shapes_videos-predict.npz-00000-of-00001") as file:
      samples.append(file["predict"])
      assert file["step"] == 60 and not file["is_image"].any()
  rows = json.loads((folder / "cache" / "shapes_videos" / "stats.validation.json").read_text())
  for drawn in samples:
    assert drawn.shape == (rows["examples"], 3, 8, 8, 8) and np.isfinite(drawn).all()
    assert 0.3 < drawn.std() < 3.0
    assert len(np.unique(drawn[:, 0, 0, 0, 0])) == len(drawn), "examples differ"
