"""SeqIO `metric_fns`: SeqIO's own evaluator, ours under T5X, and a manual computation agree."""

import types

import numpy as np
import seqio
import tensorflow as tf

from tests.metrics.network_parity import random_weights
from walt_t5x.metrics import networks, sample_metrics
from walt_t5x.metrics.feature_statistics import FeatureStatistics
from walt_t5x.metrics.frechet import frechet_between, frechet_distance
from walt_t5x.metrics.networks import KINDS, FeatureNetwork
from walt_t5x.models.sample_evaluator import SampleEvaluator

_VIDEO = seqio.ContinuousFeature(dtype=tf.uint8, rank=4, add_eos=False)


class _Converter(seqio.FeatureConverter):
  """Examples unchanged."""

  TASK_FEATURES = MODEL_FEATURES = types.MappingProxyType(
    {"targets": seqio.FeatureConverter.FeatureSpec(dtype=tf.uint8, rank=4)}
  )

  def __call__(self, ds, task_feature_lengths):
    return ds.map(lambda row: {"targets": row["targets"], "video": row["targets"]})

  def _convert_features(self, ds, task_feature_lengths):
    return ds

  def get_model_feature_lengths(self, task_feature_lengths):
    return task_feature_lengths


def test_evaluators_report_the_distance(tmp_path):
  rng = np.random.default_rng(0)
  rows, made = rng.integers(0, 256, size=(2, 5, 5, 16, 16, 3)).astype(np.uint8)
  file = tmp_path / "shapes.safetensors"
  networks.save_weights(file, random_weights(KINDS["shapes"].expected(), seed=0))
  metric = sample_metrics.VideoFrechet(protocol="shapes_fvd", weights=str(file), batch_size=3)
  task = seqio.TaskRegistry.add(
    "sample_metrics",
    source=seqio.FunctionDataSource(
      lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices({"targets": rows}),
      splits=["validation"],
    ),
    preprocessors=[],
    output_features={"targets": _VIDEO},
    metric_fns=[metric],
  )

  def predict(dataset):
    # In another order: evaluators sort by index.
    return [(int(i), made[int(i)]) for i, _ in list(dataset.as_numpy_iterator())[::-1]]

  def score(dataset):
    return [(int(i), 1.5) for i, _ in dataset.as_numpy_iterator()]

  of = FeatureStatistics.from_model_output
  network = FeatureNetwork.load("shapes", file)
  expected = frechet_between(*(of(network(x)["features"]) for x in (made, rows)))
  theirs = seqio.Evaluator(
    task.name, _Converter(pack=False), use_cached=False, async_compute_metrics=False
  )
  found, _ = theirs.evaluate(compute_metrics=True, predict_fn=predict, score_fn=score)
  (name,) = found.result()["sample_metrics"]
  assert name.startswith("shapes_fvd/shapes_fvd@")
  ours = SampleEvaluator(
    mixture_or_task_name=task,
    feature_converter=_Converter(pack=False),
    eval_split="validation",
    use_cached=False,
    sequence_length={"targets": 5},
  )
  reported, _ = ours.evaluate(compute_metrics=True, step=3, predict_fn=predict, score_fn=score)
  reported = reported.result()["sample_metrics"]
  assert reported["score"] == 1.5
  for value in (found.result()["sample_metrics"][name], reported[name]):
    np.testing.assert_allclose(value, expected, rtol=1e-6)
  # Pixels in [0, 1] are the same clips.
  scaled = metric(targets=list(rows / 255), predictions=list(made / 255))
  np.testing.assert_allclose(scaled[name], expected, rtol=1e-6)


def test_latents_are_compared_by_their_channels():
  rng = np.random.default_rng(1)
  rows, made = rng.normal(size=(2, 6, 3, 4, 4, 5))
  got = sample_metrics.latent_frechet(targets=list(rows), predictions=list(2 * made + 1))
  flat = [(2 * made + 1).reshape(-1, 5), rows.reshape(-1, 5)]
  gaussians = [part for x in flat for part in (x.mean(0), np.cov(x.T))]
  np.testing.assert_allclose(got["latent_frechet"], frechet_distance(*gaussians), rtol=1e-9)
  assert sample_metrics.latent_frechet(list(rows), list(rows))["latent_frechet"] < 1e-9
