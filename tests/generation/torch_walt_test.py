"""Exported cascades in plain torch: every network agrees with ours to 1e-5 of its largest output.

The cascade of the package, and one with random weights that is exported in float32.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from data import schema
from tests.generation import cascades, torch_walt
from walt_t5x.denoiser.transformer import Conditioning
from walt_t5x.engine.checkpoints import load_params
from walt_t5x.generation import presets
from walt_t5x.generation.preset_export import export
from walt_t5x.models import model_record
from walt_t5x.text.encoder import TextEncoder

PROMPTS = ["a red square moves right", "a small blue circle moves up and turns"]


@pytest.fixture(scope="module", params=["shapes", "random"])
def folder(request, tmp_path_factory):
  """The folder of a preset."""
  if request.param == "shapes":
    if "shapes" not in presets.shipped():
      pytest.skip("the package has no preset")
    return presets.find("shapes").folder
  made = cascades.written(tmp_path_factory.mktemp("trained"))
  output = tmp_path_factory.mktemp("presets") / "random"
  named = {"name": "random", "description": "", "license_name": "MIT", "trained_by": ""}
  return export(made, output=output, dtype="float32", **named).folder


def _agree(theirs, ours):
  theirs, ours = theirs.numpy(), np.asarray(ours)
  assert theirs.shape == ours.shape and np.abs(ours).max() > 0.1
  np.testing.assert_allclose(theirs, ours, atol=1e-5 * np.abs(ours).max())


def _params(run):
  return jax.tree.map(jnp.asarray, load_params(str(run)))


@pytest.mark.parametrize("stage", ["base", "sr1"])
def test_denoisers_agree(folder, stage):
  rng = np.random.default_rng(0)
  found = model_record.read(folder / stage)
  module = found.model.module
  weights, settings = torch_walt.load(folder / stage)

  def drawn(*shape):
    return rng.normal(size=(2, *shape)).astype(np.float32)

  def latents(field):
    return drawn(*schema.latents_shape(field), module.latent_channels)

  z, before = latents(found.latents), latents(found.latents)
  steps = np.array([1000, 137])
  # Captions of different lengths.
  text, length = drawn(found.text_length, module.text_dim), found.text_length
  mask = np.arange(length) < np.array([[length // 3], [length - 1]])
  more = {}
  if found.low_resolution:
    more["low"] = latents(found.low_resolution)
    more["low_steps"] = np.array([150.0, 20.0], np.float32)
  if module.frame_prediction:
    more["frames"] = latents(found.latents)
    more["frame_mask"] = (np.arange(z.shape[1]) < np.array([[2], [0]])).astype(np.float32)
  names = {"low": "low_resolution", "low_steps": "low_resolution_steps"}
  given = {names.get(name, name): jnp.asarray(value) for name, value in more.items()}
  ours = jax.jit(module.apply)(
    {"params": _params(folder / stage)},
    jnp.asarray(z),
    jnp.asarray(steps),
    jnp.asarray(before),
    Conditioning(text=jnp.asarray(text[:, None]), text_mask=jnp.asarray(mask[:, None]), **given),
  )
  theirs = torch_walt.denoise(
    weights,
    settings,
    torch.tensor(z),
    torch.tensor(steps),
    self_condition=torch.tensor(before),
    text=torch.tensor(text),
    text_mask=torch.tensor(mask),
    **{name: torch.tensor(value) for name, value in more.items()},
  )
  _agree(theirs, ours)


def test_tokenizers_agree(folder):
  video = np.random.default_rng(1).random((1, 9, 16, 24, 3), np.float32)
  weights, settings = torch_walt.load(folder / "vae")
  vae = model_record.read(folder / "vae").model
  variables = {"params": _params(folder / "vae")["vae"]}
  encode, decode = (jax.jit(functools.partial(vae.apply, method=m)) for m in ("encode", "decode"))
  latents = encode(variables, jnp.asarray(video)).mean
  _agree(torch_walt.encode(weights, settings, torch.tensor(video)), latents)
  decoded = decode(variables, latents)
  _agree(torch_walt.decode(weights, settings, torch.tensor(np.asarray(latents))), decoded)


def test_text_encoders_agree(folder):
  ours = TextEncoder.load(folder / "text")
  theirs = transformers.T5EncoderModel.from_pretrained(folder / "text", dtype=torch.float32).eval()
  for ids, embedding in zip(tokens := ours.tokenize(PROMPTS, 16), ours.encode(tokens), strict=True):
    with torch.no_grad():
      _agree(theirs(torch.tensor(ids)[None].long()).last_hidden_state[0], embedding)
