"""Inception-v3 of 2015 compared with torch: a network written here from the graph, and torch-fidelity's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.metrics.network_parity import nested, public_module, random_weights
from walt_t5x.files.fingerprint import weights_fingerprint
from walt_t5x.metrics import import_weights, inception
from walt_t5x.metrics.networks import KINDS, FeatureNetwork


@functools.cache
def _expected():
  return KINDS["inception"].expected()


@pytest.fixture(scope="module")
def flat():
  return random_weights(_expected(), seed=0)


def _state_dict(flat):
  """torch-fidelity's names and layout."""
  state = {}
  for name, tensor in flat.items():
    _, *path, leaf = name.split("/")
    if name == "params/fc_bias":
      key = "fc.bias"
    elif path == ["fc"]:
      key, tensor = "fc.weight", tensor.T
    elif leaf == "kernel":
      key, tensor = ".".join((*path, "weight")), tensor.transpose(3, 2, 0, 1)
    else:
      leaf = {"scale": "weight", "mean": "running_mean", "var": "running_var"}.get(leaf, leaf)
      key = ".".join((*path, leaf))
    state[key] = torch.from_numpy(np.ascontiguousarray(tensor))
  return state


def _torch_inception(state, x):
  """pool_3 and logits without bias of [B, 3, H, W]."""

  def conv(x, name, stride=1, pad=True):
    weight = state[f"{name}.conv.weight"]
    padding = [k // 2 if pad else 0 for k in weight.shape[2:]]
    x = F.conv2d(x, weight, stride=stride, padding=padding)
    bn = [state[f"{name}.bn.{s}"] for s in ("running_mean", "running_var", "weight", "bias")]
    return F.relu(F.batch_norm(x, *bn, eps=1e-3))

  def chain(x, block, *names, last_stride=1):
    for name in names:
      down = last_stride if name == names[-1] else 1
      x = conv(x, f"{block}.{name}", down, pad=down == 1)
    return x

  def average(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

  def down(x):
    return F.max_pool2d(x, 3, 2)

  x = conv(x, "Conv2d_1a_3x3", 2, pad=False)
  x = conv(conv(x, "Conv2d_2a_3x3", pad=False), "Conv2d_2b_3x3")
  x = conv(conv(down(x), "Conv2d_3b_1x1", pad=False), "Conv2d_4a_3x3", pad=False)
  x = down(x)
  triple = ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
  for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
    parts = [chain(x, b, "branch1x1"), chain(x, b, "branch5x5_1", "branch5x5_2")]
    x = torch.cat([*parts, chain(x, b, *triple), chain(average(x), b, "branch_pool")], 1)
  b = "Mixed_6a"
  parts = [chain(x, b, "branch3x3", last_stride=2), chain(x, b, *triple, last_stride=2)]
  x = torch.cat([*parts, down(x)], 1)
  for b in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
    parts = [
      chain(x, b, "branch1x1"),
      chain(x, b, *(f"branch7x7_{i}" for i in range(1, 4))),
      chain(x, b, *(f"branch7x7dbl_{i}" for i in range(1, 6))),
      chain(average(x), b, "branch_pool"),
    ]
    x = torch.cat(parts, 1)
  b = "Mixed_7a"
  parts = [
    chain(x, b, "branch3x3_1", "branch3x3_2", last_stride=2),
    chain(x, b, *(f"branch7x7x3_{i}" for i in range(1, 5)), last_stride=2),
    down(x),
  ]
  x = torch.cat(parts, 1)
  for b in ("Mixed_7b", "Mixed_7c"):
    y, z = chain(x, b, "branch3x3_1"), chain(x, b, "branch3x3dbl_1", "branch3x3dbl_2")
    pooled = average(x) if b == "Mixed_7b" else F.max_pool2d(x, 3, 1, 1)
    parts = [
      chain(x, b, "branch1x1"),
      chain(y, b, "branch3x3_2a"),
      chain(y, b, "branch3x3_2b"),
      chain(z, b, "branch3x3dbl_3a"),
      chain(z, b, "branch3x3dbl_3b"),
      chain(pooled, b, "branch_pool"),
    ]
    x = torch.cat(parts, 1)
  pool_3 = x.mean((2, 3))
  return pool_3.numpy(), (pool_3 @ state["fc.weight"].T).numpy()


def test_parameter_count():
  params = sum(int(np.prod(s)) for name, s in _expected().items() if name.startswith("params/"))
  # torchvision's Inception-v3 without its auxiliary head has 25,112,264 - 3,326,696 for a classifier
  # of 1,000 classes; eight more classes have 2,049 each.
  assert params == 23_850_960


def test_equals_torch_on_random_weights(flat):
  x = np.random.default_rng(1).uniform(-1, 1, size=(2, 77, 93, 3)).astype(np.float32)
  with torch.no_grad():
    pool_3, unbiased = _torch_inception(_state_dict(flat), torch.from_numpy(x).permute(0, 3, 1, 2))
  got = jax.jit(inception.InceptionV3().apply)(nested(flat), jnp.asarray(x))
  assert pool_3.std() > 0.05
  np.testing.assert_allclose(got["pool_3"], pool_3, atol=1e-4)
  np.testing.assert_allclose(got["logits_unbiased"], unbiased, atol=1e-4)
  bias = np.asarray(got["logits"] - got["logits_unbiased"])
  np.testing.assert_allclose(bias, np.tile(flat["params/fc_bias"], (2, 1)), atol=1e-5)


def test_equals_torch_fidelity(flat, tmp_path):
  module = public_module("torch_fidelity", "feature_extractor_inceptionv3")
  state = _state_dict(flat)
  for key in list(state):
    if key.endswith("running_mean"):
      state[key.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
  torch.save(state, tmp_path / "weights.pth")
  layers = ["2048", "logits_unbiased", "logits"]
  network = module.FeatureExtractorInceptionV3(
    "inception", layers, feature_extractor_weights_path=str(tmp_path / "weights.pth")
  )
  images = np.random.default_rng(2).integers(0, 256, size=(2, 40, 50, 3)).astype(np.uint8)
  with torch.no_grad():
    expected = network(torch.from_numpy(images).permute(0, 3, 1, 2))
  flat_again = import_weights.read_inception(tmp_path / "weights.pth")
  got = inception.features(nested(flat_again), jnp.asarray(images)[:, None])
  for ours, theirs in zip(("pool_3", "logits_unbiased", "logits"), expected):
    np.testing.assert_allclose(got[ours], theirs.numpy(), atol=1e-4)


def test_import_of_a_state_dict_restores_every_tensor(flat):
  state = {name: tensor.numpy() for name, tensor in _state_dict(flat).items()}
  state["Mixed_5b.branch1x1.bn.num_batches_tracked"] = np.array(7)
  assert weights_fingerprint(import_weights.from_torch_inception(state)) == weights_fingerprint(
    flat
  )
  with pytest.raises(ValueError, match="Unknown tensor"):
    import_weights.from_torch_inception({"Mixed_5b.branch1x1.bn.other": state["fc.bias"]})


def test_the_error_for_missing_weights_says_where_to_get_them():
  with pytest.raises(FileNotFoundError, match=r"(?s)sha256 6726825d.*weights-inception-2015-12-05"):
    FeatureNetwork.load("inception", None)
