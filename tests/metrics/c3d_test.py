"""C3D compared with torch with random weights, its input pipeline with a numpy loop, and its importer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.metrics.network_parity import nested, random_weights
from walt_t5x.files.fingerprint import weights_fingerprint
from walt_t5x.metrics import c3d, import_weights
from walt_t5x.metrics.networks import KINDS, FeatureNetwork, _shapes

_WIDTH = 64  # width of the dense layers in these tests; the published width is 4,096
_SMALL = c3d.C3D(dense_width=_WIDTH)


def _torch_c3d(flat, x):
  """Logits of [B, 3, 16, H, W], with Caffe's ceil rule in every pooling."""
  tensors = {name: torch.from_numpy(value) for name, value in flat.items()}

  def conv(x, name):
    kernel = tensors[f"params/{name}/kernel"].permute(4, 3, 0, 1, 2)
    return F.relu(F.conv3d(x, kernel, tensors[f"params/{name}/bias"], padding=1))

  def dense(x, name):
    return x @ tensors[f"params/{name}/kernel"] + tensors[f"params/{name}/bias"]

  x = F.max_pool3d(conv(x, "conv1a"), (1, 2, 2), ceil_mode=True)
  for names in (("conv2a",), ("conv3a", "conv3b"), ("conv4a", "conv4b"), ("conv5a", "conv5b")):
    for name in names:
      x = conv(x, name)
    x = F.max_pool3d(x, 2, ceil_mode=True)
  x = x.flatten(1)
  return dense(F.relu(dense(F.relu(dense(x, "fc6")), "fc7")), "fc8").numpy()


def test_parameter_count():
  params = [s for name, s in KINDS["c3d"].expected().items() if name.startswith("params/")]
  assert sum(map(lambda s: int(np.prod(s)), params)) == 78_409_573


def test_equals_torch_on_random_weights():
  # 48 x 40 becomes 3 x 2 before the last pooling: an odd size, as for 112.
  flat = random_weights(_shapes(_SMALL, (1, 16, 48, 40, 3)), seed=0)
  x = np.random.default_rng(1).normal(size=(1, 16, 48, 40, 3)).astype(np.float32)
  with torch.no_grad():
    expected = _torch_c3d(flat, torch.from_numpy(x).permute(0, 4, 1, 2, 3))
  got = np.asarray(jax.jit(_SMALL.apply)(nested(flat), jnp.asarray(x)))
  assert expected.std() > 0.05
  np.testing.assert_allclose(got, expected, atol=1e-4)


def test_input_is_bgr_with_aligned_corners_minus_the_mean():
  rng = np.random.default_rng(2)
  video = rng.integers(0, 256, size=(1, 16, 5, 7, 3)).astype(np.uint8)
  mean = rng.uniform(size=(16, 112, 112, 3)).astype(np.float32)
  got = np.asarray(c3d.preprocess(jnp.asarray(video), jnp.asarray(mean)))[0, 3] + mean[3]
  for channel in range(3):
    plane = video[0, 3, :, :, 2 - channel].astype(np.float64)
    rows = np.stack([np.interp(np.linspace(0, 6, 112), np.arange(7), row) for row in plane])
    both = np.stack([np.interp(np.linspace(0, 4, 112), np.arange(5), col) for col in rows.T]).T
    np.testing.assert_allclose(got[..., channel], both, atol=2e-3)
  with pytest.raises(ValueError, match="got 17"):
    c3d.preprocess(jnp.zeros((1, 17, 8, 8, 3), jnp.uint8), jnp.asarray(mean))


def test_import_of_chainer_arrays(tmp_path):
  flat = random_weights(_shapes(_SMALL, (1, 16, 48, 40, 3)), seed=3)
  arrays = {}
  for name, tensor in flat.items():
    layer, leaf = name.split("/")[-2:]
    axes = {5: (4, 3, 0, 1, 2), 2: (1, 0), 1: (0,)}[tensor.ndim]
    arrays[f"{layer}/{'b' if leaf == 'bias' else 'W'}"] = tensor.transpose(axes)
  mean = np.random.default_rng(4).uniform(size=(3, 16, 128, 171)).astype(np.float32)
  np.savez(tmp_path / "c3d.npz", **arrays)
  with pytest.raises(FileNotFoundError, match=r"mean2\.npz"):
    import_weights.read_c3d(tmp_path / "c3d.npz")
  np.savez(tmp_path / "mean2.npz", mean=mean)
  got = import_weights.read_c3d(tmp_path / "c3d.npz")
  np.testing.assert_array_equal(got.pop("input/mean")[5, 0, 0], mean[:, 5, 8, 8])
  assert weights_fingerprint(got) == weights_fingerprint(flat)


def test_the_error_for_missing_weights_says_where_to_get_them():
  with pytest.raises(FileNotFoundError, match=r"(?s)no published hash.*conv3d_deepnetA_ucf\.npz"):
    FeatureNetwork.load("c3d", None)
