"""Properties of streamed statistics, the Frechet distance, the inception score and the TF1 resize rules."""

import jaxtyping
import numpy as np
import pytest
from scipy import linalg, stats

from walt_t5x.metrics.feature_statistics import (
  FeatureStatistics,
  load_statistics,
  save_statistics,
)
from walt_t5x.metrics.frechet import (
  FoldScore,
  frechet_between,
  frechet_distance,
  frechet_over_folds,
)
from walt_t5x.metrics.inception_score import (
  InceptionScoreStatistics,
  score_splits,
  split_of,
)
from walt_t5x.metrics.network_input import ResizeRule, resize_bilinear

of = FeatureStatistics.from_model_output


def _features(rng, n, f, *, offset=0.0, rank=None):
  x = rng.normal(size=(n, rank or f)) @ rng.normal(size=(rank or f, f))
  return x + offset


def _covariance(rng, f, condition):
  q = stats.ortho_group.rvs(f, random_state=rng)
  return (q * np.geomspace(1, 1 / condition, f)) @ q.T


@pytest.mark.parametrize("cuts", [[], [1], [5, 6], [3, 50, 51, 120]])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_merged_parts_equal_numpy_on_all_features(cuts, offset):
  rng = np.random.default_rng(len(cuts))
  x = _features(rng, 130, 7, offset=offset)
  total = FeatureStatistics.empty()
  for part in np.split(x, cuts):
    total = total.merge(of(part))
  assert total.count == 130
  np.testing.assert_allclose(total.mean, x.mean(0), rtol=1e-13)
  scale = np.abs(np.cov(x.T)).max()
  np.testing.assert_allclose(total.covariance, np.cov(x.T), rtol=0, atol=1e-9 * scale)


def test_merge_does_not_depend_on_order_or_grouping():
  rng = np.random.default_rng(1)
  a, b, c = (of(_features(rng, n, 5)) for n in (1, 9, 30))
  for other in (
    a.merge(b.merge(c)),
    c.merge(a).merge(b),
    FeatureStatistics.empty().merge(a.merge(c)).merge(b),
  ):
    complete = a.merge(b).merge(c)
    np.testing.assert_allclose(other.mean, complete.mean, rtol=1e-12)
    np.testing.assert_allclose(other.scatter, complete.scatter, rtol=1e-11, atol=1e-11)


def test_saved_statistics_are_identical_when_loaded(tmp_path):
  kept = of(_features(np.random.default_rng(2), 20, 6))
  save_statistics(tmp_path / "reference.npz", kept)
  np.testing.assert_equal(vars(load_statistics(tmp_path / "reference.npz")), vars(kept))
  np.savez(tmp_path / "other.npz", mu=kept.mean)
  with pytest.raises(ValueError, match="expected count, mean and scatter"):
    load_statistics(tmp_path / "other.npz")


@pytest.mark.parametrize("condition", [10.0, 1e4, 1e8])
def test_distance_equals_scipy_sqrtm(condition):
  rng = np.random.default_rng(3)
  s1, s2 = _covariance(rng, 24, condition), 3 * _covariance(rng, 24, condition)
  m1, m2 = rng.normal(size=(2, 24))
  root = linalg.sqrtm(s1 @ s2).real
  expected = np.square(m1 - m2).sum() + np.trace(s1 + s2 - 2 * root)
  assert frechet_distance(m1, s1, m2, s2) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("condition", [10.0, 1e4, 1e8, 1e12])
def test_distance_equals_torchmetrics(condition):
  # pip install --no-deps --target=DIR torchmetrics==1.9.0 lightning-utilities==0.15.3, then PYTHONPATH=DIR.
  reason = "torchmetrics is not installed: the comparison with it did not run"
  fid = pytest.importorskip("torchmetrics.image.fid", reason=reason)
  import torch

  rng = np.random.default_rng(13)
  s1, s2 = _covariance(rng, 24, condition), 3 * _covariance(rng, 24, condition)
  m1, m2 = rng.normal(size=(2, 24))
  theirs = fid._compute_fid(*map(torch.from_numpy, (m1, s1, m2, s2))).item()
  assert frechet_distance(m1, s1, m2, s2) == pytest.approx(theirs, rel=1e-6)

  class Identity(torch.nn.Module):
    num_features = 24

    def forward(self, x):
      return x

  # The complete computation from features, streamed in batches: mean, unbiased covariance, distance.
  x = rng.multivariate_normal(m1, s1, size=100, method="eigh")
  y = rng.multivariate_normal(m2, s2, size=60, method="eigh")
  metric = fid.FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
  for real, rows in ((True, x), (False, y)):
    for part in np.split(rows, [7, 30]):
      metric.update(torch.from_numpy(part), real=real)
  assert frechet_between(of(x), of(y)) == pytest.approx(metric.compute().item(), rel=1e-6)


def test_distance_of_commuting_covariances_has_a_closed_form():
  rng = np.random.default_rng(4)
  q = stats.ortho_group.rvs(12, random_state=rng)
  a, b = rng.uniform(0, 5, size=(2, 12))
  m1, m2 = rng.normal(size=(2, 12))
  expected = np.square(m1 - m2).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
  got = frechet_distance(m1, (q * a) @ q.T, m2, (q * b) @ q.T)
  assert got == pytest.approx(expected, rel=1e-10)


def test_distance_of_rank_deficient_covariances():
  # Both are in one plane of 64 dimensions: the distance is that of the two-dimensional Gaussians.
  rng = np.random.default_rng(5)
  plane = stats.ortho_group.rvs(64, random_state=rng)[:, :2]
  s1, s2 = _covariance(rng, 2, 7.0), 2 * _covariance(rng, 2, 3.0)
  zero = np.zeros(64)
  small = np.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real)
  got = frechet_distance(zero, plane @ s1 @ plane.T, zero, plane @ s2 @ plane.T)
  assert got == pytest.approx(small, rel=1e-10)
  # For orthogonal planes the cross term is zero.
  other = linalg.null_space(plane.T)[:, :2]
  apart = frechet_distance(zero, plane @ s1 @ plane.T, zero, other @ s2 @ other.T)
  assert apart == pytest.approx(np.trace(s1 + s2), rel=1e-10)


@pytest.mark.parametrize("n", [5, 60, 500])
def test_distance_to_itself_is_zero(n):
  # Also with fewer samples than features, at the scale of I3D's logits.
  x = of(20 * _features(np.random.default_rng(6), n, 100, offset=3.0))
  assert 0 <= frechet_between(x, x) <= 1e-13 * np.trace(x.covariance)
  y = of(_features(np.random.default_rng(6), n, 100, offset=3.0))
  assert 0 <= frechet_between(y, y) <= 1e-6


def test_distance_is_symmetric_and_invariant_under_rotation():
  rng = np.random.default_rng(7)
  x, y = _features(rng, 40, 30), _features(rng, 25, 30, offset=0.3)
  distance = frechet_between(of(x), of(y))
  assert distance > 1
  assert frechet_between(of(y), of(x)) == pytest.approx(distance, rel=1e-9)
  q = stats.ortho_group.rvs(30, random_state=rng)
  shift = rng.normal(size=30)
  assert frechet_between(of(x @ q + shift), of(y @ q + shift)) == pytest.approx(distance, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e12])
def test_distance_scales_with_the_square_of_the_features(scale):
  rng = np.random.default_rng(9)
  m1, m2 = rng.normal(size=(2, 6))
  s1, s2 = _covariance(rng, 6, 100.0), _covariance(rng, 6, 3.0)
  distance = frechet_distance(m1, s1, m2, s2)
  scaled = frechet_distance(scale * m1, scale**2 * s1, scale * m2, scale**2 * s2)
  assert scaled == pytest.approx(scale**2 * distance, rel=1e-9)


def test_one_feature_and_one_direction_have_a_closed_form():
  one = frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[25.0]]))
  assert one == pytest.approx(4 + (5 - 2) ** 2)
  u, v = np.random.default_rng(10).normal(size=(2, 32))
  zero = np.zeros(32)
  expected = u @ u + v @ v - 2 * abs(u @ v)
  assert frechet_distance(zero, np.outer(u, u), zero, np.outer(v, v)) == pytest.approx(
    expected, rel=1e-12
  )


def test_distance_is_not_negative_after_rounding():
  for seed in range(40):
    covariance = np.cov(np.random.default_rng(seed).normal(size=(4, 6)))
    assert 0 <= frechet_distance(np.zeros(4), covariance, np.zeros(4), covariance) < 1e-12


def test_distance_between_points_is_that_of_their_means():
  m1, m2, none = np.array([1.0, 2.0]), np.array([4.0, -2.0]), np.zeros((2, 2))
  assert frechet_distance(m1, none, m2, none) == 25
  assert frechet_distance(m1, none, m2, np.diag([4.0, 9.0])) == 25 + 13


def test_folds_give_mean_and_population_standard_deviation():
  rng = np.random.default_rng(8)
  folds = [(of(_features(rng, 30, 4)), of(_features(rng, 30, 4))) for _ in range(4)]
  score = frechet_over_folds(*zip(*folds))
  values = [frechet_between(a, b) for a, b in folds]
  assert (score.mean, score.std) == pytest.approx((np.mean(values), np.std(values)))
  assert str(FoldScore((36.0, 37.0))) == "36.5 +- 0.5" and str(FoldScore((36.0,))) == "36"
  with pytest.raises(ValueError, match="at least one fold"):
    FoldScore(())
  with pytest.raises(ValueError, match="its own references"):
    frechet_over_folds([folds[0][0]], [])


@pytest.mark.parametrize("scale", [1e-17, 1.0])
def test_tolerance_for_covariances_is_relative_to_their_scale(scale):
  zero, one = np.zeros(2), scale * np.eye(2)
  skew = np.array([[0.0, 1.0], [-1.0, 0.0]])
  assert frechet_distance(zero, one + 1e-9 * scale * skew, zero, one) < 1e-9 * scale
  with pytest.raises(ValueError, match="not symmetric"):
    frechet_distance(zero, one + 1e-7 * scale * skew, zero, one)
  # Rounding may make an eigenvalue slightly negative.
  rounded, wrong = (scale * np.diag([1.0, -below]) for below in (1e-8, 1e-5))
  assert np.isfinite(frechet_distance(zero, rounded, zero, one))
  for negative in (wrong, -one):
    with pytest.raises(ValueError, match="negative eigenvalues"):
      frechet_distance(zero, negative, zero, one)


def test_invalid_gaussians_raise(monkeypatch):
  zero, one = np.zeros(3), np.eye(3)
  # As in a program, where annotations are not checked.
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
  gone = np.diag([1.0, np.nan, 1.0])
  for arguments in (
    (zero, one, np.zeros(4), one),
    (zero, np.eye(4), zero, one),
    (zero, one, zero, np.eye(4)),
  ):
    with pytest.raises(ValueError, match="of one size"):
      frechet_distance(*arguments)
  for arguments in (
    (zero + np.nan, one, zero, one),
    (zero, one, zero + np.inf, one),
    (zero, gone, zero, one),
    (zero, one, zero, gone),
  ):
    with pytest.raises(ValueError, match="not finite"):
      frechet_distance(*arguments)
  with pytest.raises(ValueError, match="not symmetric"):
    frechet_distance(zero, one + np.triu(one + 1, 1), zero, one)
  with pytest.raises(ValueError, match="negative eigenvalues"):
    frechet_distance(zero, np.diag([1.0, 1.0, -0.5]), zero, one)
  with pytest.raises(ValueError, match="at least 2 samples"):
    frechet_between(of(np.ones((1, 3))), of(np.eye(3)))
  with pytest.raises(ValueError, match="1 of 2 feature rows"):
    of(np.array([[1.0, 2.0], [np.nan, 1.0]]))
  with pytest.raises(ValueError, match="same network"):
    of(np.eye(3)).merge(of(np.eye(4)))


def inception_score(logits, *, splits=1):
  """The scores of consecutive splits of a set of samples."""
  number = np.array([split_of(i, count=len(logits), splits=splits) for i in range(len(logits))])
  return score_splits(
    InceptionScoreStatistics.from_model_output(logits[number == k]) for k in range(splits)
  )


def test_inception_score_equals_the_definition():
  logits = np.random.default_rng(9).normal(size=(60, 11)) * 3
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

  def direct(block):
    return np.exp(np.mean([stats.entropy(row, block.mean(0)) for row in block]))

  blocks = [p[i * 20 : (i + 1) * 20] for i in range(3)]
  got = inception_score(logits, splits=3)
  np.testing.assert_allclose(got.values, [direct(b) for b in blocks], rtol=1e-12)
  parts = [InceptionScoreStatistics.from_model_output(logits[a:b]) for a, b in [(0, 7), (7, 60)]]
  complete = InceptionScoreStatistics.empty().merge(parts[0]).merge(parts[1])
  assert complete.compute() == pytest.approx(direct(p), rel=1e-12)
  assert score_splits([complete]).mean == complete.compute()


def test_range_of_the_inception_score():
  assert inception_score(np.zeros((8, 5))).mean == pytest.approx(1)
  assert inception_score(np.tile(np.eye(5) * 1000, (4, 1))).mean == pytest.approx(5)
  assert inception_score(np.tile(np.eye(5)[:1] * 1000, (4, 1))).mean == pytest.approx(1)


def test_splits_are_consecutive_and_of_equal_size():
  numbers = [split_of(i, count=23, splits=4) for i in range(23)]
  assert numbers == sorted(numbers) and set(numbers) == {0, 1, 2, 3}
  assert {numbers.count(k) for k in range(4)} == {5, 6}
  with pytest.raises(ValueError, match="splits"):
    inception_score(np.zeros((2, 3)), splits=3)


@pytest.mark.parametrize("size_in", [(7, 11), (32, 32), (128, 64)])
@pytest.mark.parametrize("size_out", [(224, 224), (16, 9), (1, 1)])
def test_resize_equals_tensorflow(size_in, size_out):
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")
  images = np.random.default_rng(10).integers(0, 256, size=(2, *size_in, 3)).astype(np.float32)
  for rule, options in (
    (ResizeRule.LEGACY, {}),
    (ResizeRule.ALIGN_CORNERS, {"align_corners": True}),
    (ResizeRule.HALF_PIXEL, {"half_pixel_centers": True}),
  ):
    expected = tf.compat.v1.image.resize_bilinear(images, size_out, **options).numpy()
    got = np.asarray(resize_bilinear(images, size_out, rule=rule))
    np.testing.assert_array_equal(got, expected, err_msg=str(rule))


def test_resize_rules_differ_and_a_clip_is_resized_per_frame():
  clip = np.random.default_rng(11).uniform(size=(2, 3, 8, 8, 3)).astype(np.float32)
  by_rule = [np.asarray(resize_bilinear(clip, (20, 12), rule=rule)) for rule in ResizeRule]
  for i, first in enumerate(by_rule):
    np.testing.assert_array_equal(
      first[1, 2], resize_bilinear(clip[1, 2], (20, 12), rule=list(ResizeRule)[i])
    )
    for second in by_rule[i + 1 :]:
      assert np.abs(first - second).max() > 0.1


def test_a_flipped_bit_changes_no_statistics_that_are_read(tmp_path):
  file = tmp_path / "reference.npz"
  save_statistics(file, of(_features(np.random.default_rng(2), 20, 6)))
  kept, content = vars(load_statistics(file)), file.read_bytes()
  found = 0
  for bit in range(0, 8 * len(content), 41):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)
    try:
      np.testing.assert_equal(vars(load_statistics(file)), kept)
    except ValueError as error:
      assert str(file) in str(error)
      found += 1
  assert found > 40
