"""The surrogate network compared with torch, its training, and the description of its scores."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.metrics.network_parity import nested, random_weights
from walt_t5x import evaluate, train_surrogate
from walt_t5x.media import reading, writing
from walt_t5x.metrics import network_input, networks, shapes_network
from walt_t5x.metrics.feature_statistics import FeatureStatistics
from walt_t5x.metrics.frechet import frechet_between
from walt_t5x.metrics.networks import KINDS, FeatureNetwork


def _torch_features(flat, x):
  """[B, T, H, W, 3] in [-1, 1] to features, with TensorFlow's SAME padding."""
  x = torch.from_numpy(np.array(x)).permute(0, 4, 1, 2, 3)
  for number, stride in enumerate(shapes_network.STRIDES):
    padding = []
    for size in reversed(x.shape[2:]):
      total = max((-(-size // stride) - 1) * stride + 3 - size, 0)
      padding += [total // 2, total - total // 2]
    kernel = torch.from_numpy(flat[f"params/conv{number}/kernel"]).permute(4, 3, 0, 1, 2)
    bias = torch.from_numpy(flat[f"params/bias{number}"])
    x = F.relu(F.conv3d(F.pad(x, padding), kernel, bias, stride=stride))
  return torch.cat([x.mean((2, 3, 4)), x.amax((2, 3, 4))], 1).numpy()


@pytest.mark.parametrize("frames, size", [(9, 64), (17, 32)])
def test_equals_torch_on_random_weights(frames, size):
  flat = random_weights(KINDS["shapes"].expected(), seed=0)
  assert sum(tensor.size for tensor in flat.values()) == 120_302
  videos = np.random.default_rng(1).integers(0, 256, size=(2, frames, size, size, 3))
  x = shapes_network.preprocess(jnp.asarray(videos, jnp.uint8))
  assert x.shape == (2, frames, 64, 64, 3)
  (got,) = shapes_network.features(nested(flat), jnp.asarray(videos, jnp.uint8)).values()
  expected = _torch_features(flat, x)
  assert expected.shape == (2, 2 * shapes_network.WIDTHS[-1]) and expected.std() > 0.05
  np.testing.assert_allclose(got, expected, atol=1e-4)


def test_invalid_inputs_raise():
  flat = nested(random_weights(KINDS["shapes"].expected(), seed=0))
  with pytest.raises(ValueError, match="at least 5 frames, got 4"):
    shapes_network.features(flat, jnp.zeros((1, 4, 64, 64, 3), jnp.uint8))
  with pytest.raises(ValueError, match=r"uint8 RGB clips .* got uint16"):
    network_input.require_bytes(jnp.zeros((1, 9, 8, 8, 3), jnp.uint16), network="It", axes="BTHW")


def test_its_scores_are_described_as_those_of_a_surrogate(tmp_path, capsys):
  variables, right = train_surrogate.train(
    seed=0, steps=2, batch_size=8, learning_rate=3e-3, clips=24
  )
  assert set(right) == set(shapes_network.HEADS)
  leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
  flat = {"/".join(k.key for k in path): np.asarray(leaf) for path, leaf in leaves}
  digest = networks.save_weights(tmp_path / "a.safetensors", flat)

  network = FeatureNetwork.load("shapes", tmp_path / "a.safetensors")
  assert network.fingerprint == digest and network.is_public is False
  videos = np.random.default_rng(2).integers(0, 256, size=(4, 9, 32, 32, 3)).astype(np.uint8)
  for folder, clips in (("fake", videos), ("real", videos[::-1] // 2)):
    for i, clip in enumerate(clips):
      writing.write_video(tmp_path / folder / f"{i}.mp4", clip, fps=8)
  flags = ["--protocol=shapes_fvd", f"--samples={tmp_path / 'fake'}"]
  flags += [
    f"--shapes_weights={tmp_path / 'a.safetensors'}",
    f"--output={tmp_path / 'scores.json'}",
  ]
  evaluate.run([*flags, f"--reference={tmp_path / 'real'}"])
  printed = capsys.readouterr().out
  assert "surrogate network, trained on shapes" in printed
  score = json.loads(printed.splitlines()[-1])["scores"]["shapes_fvd"]
  assert score["network_description"] == "surrogate network, trained on shapes"

  def features(folder):
    clips = [reading.read_video(tmp_path / folder / f"{i}.mp4").frames for i in range(4)]
    return FeatureStatistics.from_model_output(network(np.stack(clips))["features"])

  expected = frechet_between(features("fake"), features("real"))
  assert score["score"] == pytest.approx(expected, rel=1e-6) and expected > 0
  with pytest.raises(SystemExit, match=r"(?s)surrogate.*train_surrogate --output"):
    evaluate.run([*flags[:2], f"--reference={tmp_path / 'real'}"])


def test_clips_match_their_labels():
  from data.samples import shapes

  videos, labels = train_surrogate.draw(3, 30)
  np.testing.assert_array_equal(videos, train_surrogate.draw(3, 30)[0])
  names = list(shapes.DIRECTIONS)
  for video, (colour, _, direction) in zip(videos, labels):
    mask = video.max(-1) > 120
    centre = np.array([np.argwhere(m).mean(0)[::-1] for m in mask])  # (x, y) of each frame
    moved = centre[-1] - centre[0]
    if direction == 4:
      assert np.abs(moved).max() < 1
    else:
      assert np.argmax(moved @ np.array([shapes.DIRECTIONS[n] for n in names]).T) == direction
    seen = video[mask].mean(0)
    distance = [np.abs(seen - np.array(c)).sum() for c in shapes.COLORS.values()]
    assert np.argmin(distance) == colour
