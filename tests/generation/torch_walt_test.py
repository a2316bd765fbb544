"""An exported cascade in plain torch: every network agrees with ours to 1e-5 of its largest output."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests.generation import torch_walt
from walt_t5x.denoiser.transformer import Conditioning
from walt_t5x.engine.checkpoints import load_params
from walt_t5x.generation import presets
from walt_t5x.models import model_record
from walt_t5x.text.encoder import TextEncoder

pytestmark = pytest.mark.skipif(
  "shapes" not in presets.shipped(), reason="the package has no preset"
)
FOLDER = presets.SHIPPED / "shapes"
PROMPTS = ["a red square moves right", "a small blue circle moves up and turns"]


def _agree(theirs, ours):
  theirs, ours = theirs.numpy(), np.asarray(ours)
  assert theirs.shape == ours.shape and np.abs(ours).max() > 0.1
  np.testing.assert_allclose(theirs, ours, atol=1e-5 * np.abs(ours).max())


def _params(run):
  return jax.tree.map(jnp.asarray, load_params(str(run)))


def _text(rng, length=16):
  """Embeddings and mask of two captions of different lengths."""
  mask = np.arange(length) < np.array([[6], [11]])
  return rng.normal(size=(2, length, 64)).astype(np.float32), mask


@pytest.mark.parametrize("stage", ["base", "sr1"])
def test_denoisers_agree(stage):
  rng = np.random.default_rng(0)
  (run,) = [run for run in presets.find("shapes").runs if Path(run).name == stage]
  model = model_record.read(run).model
  weights, settings = torch_walt.load(FOLDER / stage)
  size = 8 if stage == "base" else 16
  z, before = rng.normal(size=(2, 2, 3, size, size, 8)).astype(np.float32)
  text, mask = _text(rng)
  steps = np.array([1000, 137])
  given = {"text": jnp.asarray(text[:, None]), "text_mask": jnp.asarray(mask[:, None])}
  low = {}
  if stage == "sr1":
    low["low"] = rng.normal(size=(2, 3, 8, 8, 8)).astype(np.float32)
    low["low_steps"] = np.array([150.0, 20.0], np.float32)
    given["low_resolution"] = jnp.asarray(low["low"])
    given["low_resolution_steps"] = jnp.asarray(low["low_steps"])
  params = _params(run)
  ours = model.module.apply(
    {"params": params},
    jnp.asarray(z),
    jnp.asarray(steps),
    jnp.asarray(before),
    Conditioning(**given),
  )
  theirs = torch_walt.denoise(
    weights,
    settings,
    torch.tensor(z),
    torch.tensor(steps),
    self_condition=torch.tensor(before),
    text=torch.tensor(text),
    text_mask=torch.tensor(mask),
    **{name: torch.tensor(value) for name, value in low.items()},
  )
  _agree(theirs, ours)


def test_tokenizers_agree():
  video = np.random.default_rng(1).random((1, 9, 16, 24, 3), np.float32)
  weights, settings = torch_walt.load(FOLDER / "vae")
  vae = model_record.read(FOLDER / "vae").model
  params = _params(FOLDER / "vae")
  variables = {"params": params["vae"]}
  encode, decode = (jax.jit(functools.partial(vae.apply, method=m)) for m in ("encode", "decode"))
  latents = encode(variables, jnp.asarray(video)).mean
  _agree(torch_walt.encode(weights, settings, torch.tensor(video)), latents)
  decoded = decode(variables, latents)
  _agree(torch_walt.decode(weights, settings, torch.tensor(np.asarray(latents))), decoded)


def test_text_encoders_agree():
  ours = TextEncoder.load(FOLDER / "text")
  theirs = transformers.T5EncoderModel.from_pretrained(FOLDER / "text", dtype=torch.float32).eval()
  for ids, embedding in zip(tokens := ours.tokenize(PROMPTS, 16), ours.encode(tokens), strict=True):
    with torch.no_grad():
      _agree(theirs(torch.tensor(ids)[None].long()).last_hidden_state[0], embedding)
