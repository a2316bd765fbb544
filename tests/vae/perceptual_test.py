"""Perceptual distances compared with torch, with random weights."""

import io
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from walt_t5x.files.array_pickle import read_array_pickle
from walt_t5x.vae import import_lpips, perceptual

SIDE = 32


def _random(shapes, seed=0):
  rng = np.random.default_rng(seed)
  weights = {}
  for name, shape in shapes.items():
    if name.endswith("running_var") or name.startswith("lin"):
      weights[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    else:
      scale = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1
      weights[name] = (scale * rng.normal(size=shape)).astype(np.float32)
  return weights


@pytest.fixture(scope="module")
def lpips_weights():
  return _random(perceptual.lpips_shapes())


def _clips():
  rng = np.random.default_rng(1)
  video = rng.uniform(size=(2, 2, SIDE, SIDE, 3)).astype(np.float32)
  return video, np.clip(video + 0.2 * rng.normal(size=video.shape), 0, 1).astype(np.float32)


def _torch_frames(clips, mean, std, scale=1.0, shift=0.0):
  x = torch.from_numpy(clips.reshape(-1, SIDE, SIDE, 3)).permute(0, 3, 1, 2) * scale + shift
  return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def test_lpips_equals_torch(lpips_weights):
  named = {name: torch.from_numpy(value) for name, value in lpips_weights.items()}

  def stages(clips):
    x = _torch_frames(clips, perceptual.LPIPS_SHIFT, perceptual.LPIPS_SCALE, 2.0, -1.0)
    found = []
    for stage in range(5):
      x = torch.nn.functional.max_pool2d(x, 2) if stage else x
      for index in perceptual.VGG_CONVOLUTIONS[stage]:
        x = torch.nn.functional.conv2d(
          x, named[f"features.{index}.weight"], named[f"features.{index}.bias"], padding=1
        ).relu()
      found.append(torch.nn.functional.normalize(x, dim=1))
    return found

  video, other = _clips()
  other[1] = video[1]
  expected = 0
  for i, (a, b) in enumerate(zip(stages(video), stages(other))):
    weighted = torch.nn.functional.conv2d((a - b) ** 2, named[f"lin{i}.weight"])
    expected = expected + weighted.mean((1, 2, 3))
  # The weights are an argument: as constants they would be a part of the program.
  distance = jax.jit(perceptual.lpips_distance)
  expected = expected.reshape(2, 2).mean(1).numpy()
  got = distance(lpips_weights, video, other)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
  assert got[0] > 0.01 and abs(got[1]) < 1e-6


def test_resnet_logits_equal_transformers():
  from transformers import ResNetConfig, ResNetForImageClassification

  weights = _random(perceptual.resnet_shapes())
  model = ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval()
  names = {"conv1": "resnet.embedder.embedder.convolution"}
  names["bn1"] = "resnet.embedder.embedder.normalization"
  for stage, blocks in enumerate(perceptual.RESNET_BLOCKS):
    for block in range(blocks):
      ours, theirs = f"layer{stage + 1}.{block}", f"resnet.encoder.stages.{stage}.layers.{block}"
      for i in range(3):
        names[f"{ours}.conv{i + 1}"] = f"{theirs}.layer.{i}.convolution"
        names[f"{ours}.bn{i + 1}"] = f"{theirs}.layer.{i}.normalization"
      names[f"{ours}.downsample.0"] = f"{theirs}.shortcut.convolution"
      names[f"{ours}.downsample.1"] = f"{theirs}.shortcut.normalization"
  names["fc"] = "classifier.1"
  state = {}
  for name, value in weights.items():
    layer, part = name.rsplit(".", 1)
    state[f"{names[layer]}.{part}"] = torch.from_numpy(value)
  missing, unexpected = model.load_state_dict(state, strict=False)
  assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)

  video, other = _clips()
  norm = (perceptual.IMAGENET_MEAN, perceptual.IMAGENET_STD)
  with torch.no_grad():
    a, b = (model(_torch_frames(clips, *norm)).logits for clips in (video, other))
  expected = ((a - b) ** 2).mean(1).reshape(2, 2).mean(1).numpy()
  distance = jax.jit(perceptual.logits_distance)
  np.testing.assert_allclose(distance(weights, video, other), expected, rtol=1e-3)


def test_gradients_are_finite_if_all_features_are_zero():
  weights = {name: np.zeros(s, np.float32) for name, s in perceptual.lpips_shapes().items()}
  clip = jnp.zeros((1, 1, 16, 16, 3))
  slope = jax.jit(jax.grad(lambda x, w: perceptual.lpips_distance(w, x, clip).sum()))(clip, weights)
  assert np.isfinite(slope).all()


def test_files_are_read_and_checked(lpips_weights, tmp_path):
  assert perceptual.lpips() is None and perceptual.resnet_logits(weights=None) is None
  weights = dict(lpips_weights)
  save_file(weights, tmp_path / "lpips.safetensors")
  assert perceptual.lpips(weights=str(tmp_path / "lpips.safetensors")) is not None
  del weights["lin3.weight"]
  save_file(weights, tmp_path / "short.safetensors")
  with pytest.raises(ValueError, match=r"lin3.weight has shape None, expected \(1, 512, 1, 1\)"):
    perceptual.lpips(weights=str(tmp_path / "short.safetensors"))


def test_flax_kernels_are_renamed_and_other_pickled_objects_raise(lpips_weights):
  wanted = lpips_weights
  indices = [index for stage in perceptual.VGG_CONVOLUTIONS for index in stage]
  tree = {"VGG16_0": {}}
  for i, index in enumerate(indices):
    tree["VGG16_0"][f"Conv_{i}"] = {
      "kernel": wanted[f"features.{index}.weight"].transpose(2, 3, 1, 0),
      "bias": wanted[f"features.{index}.bias"],
    }
  for i in range(5):
    kernel = wanted[f"lin{i}.weight"].transpose(2, 3, 1, 0)
    tree[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": kernel}}
  named = import_lpips.to_torch_names(read_array_pickle(io.BytesIO(pickle.dumps(tree))))
  assert named.keys() == wanted.keys()
  for name in wanted:
    np.testing.assert_array_equal(named[name], wanted[name])
  with pytest.raises(pickle.UnpicklingError, match="only numpy arrays are read"):
    read_array_pickle(io.BytesIO(pickle.dumps(print)))
