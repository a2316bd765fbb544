"""A run that is killed and restarted equals an uninterrupted one."""

import errno
import json
import os
import shutil
import signal
from unittest import mock

import numpy as np
import orbax.checkpoint as ocp
import pytest
import seqio
import tensorflow as tf
from flax import traverse_util
from gcsfs.retry import HttpError

from tests import programs
from tests.engine import runs, toy
from walt_t5x import engine
from walt_t5x.engine import checkpoints, restore_transforms
from walt_t5x.engine.builtin.checkpoint_manager import CheckpointManager
from walt_t5x.engine.run_settings import RunSettings
from walt_t5x.files.damage import Damaged
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.files.store_errors import CannotWrite


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
  """An uninterrupted run to step 10."""
  folder = tmp_path_factory.mktemp("complete")
  return folder, runs.train(folder, 10)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
  """A run to step 7, off the period so that the position inside an epoch is restored too, that continues to 10."""
  folder = tmp_path_factory.mktemp("resumed")
  runs.train(folder, 7)
  return folder, runs.train(folder, 10)


def assert_same(a, b):
  a, b = runs.flat(a), runs.flat(b)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_resumed_run_equals_an_uninterrupted_one(complete, resumed):
  assert_same(resumed[1], complete[1])
  names = set(runs.flat(resumed[1]))
  assert {
    "state/step",
    "state/param_states/4/ema/kernel",
    "state/param_states/1/mu/kernel",
  } <= names


def test_a_resumed_run_reads_the_next_examples(complete, resumed):
  def seen(path):
    return [line["ids"] for line in runs.lines(path)]

  assert seen(resumed[0]) == seen(complete[0])
  assert len(set(seen(complete[0]))) > 3  # The fingerprint distinguishes batches.


def test_three_steps_are_one_epoch(tmp_path):
  runs.train(tmp_path, 3, train_dataset_cfg=runs.dataset(shuffle=False))
  every_id = np.mean(np.arange(toy.ROWS) ** 2)
  assert np.mean([line["ids"] for line in runs.lines(tmp_path)]) == pytest.approx(every_id)


def test_sigkill_at_any_moment(complete, tmp_path):
  """The launcher is killed without warning after a checkpoint; the resumed run equals an uninterrupted one."""
  _, state = complete
  training = programs.start("tests.engine.runs", tmp_path)
  programs.until(training, (tmp_path / "checkpoint_5").exists)
  training.process.kill()
  assert training.wait(60).returncode == -signal.SIGKILL
  assert checkpoints.complete_steps(tmp_path)[-1] in (0, 5)
  assert_same(runs.train(tmp_path, 10), state)


def test_incomplete_and_empty_checkpoints_are_skipped(complete, tmp_path, caplog):
  folder, state = complete
  shutil.copytree(folder, tmp_path / "run")
  run = tmp_path / "run"
  os.remove(run / "checkpoint_10" / "_CHECKPOINT_METADATA")  # Partly copied.
  (run / "checkpoint_11").mkdir()  # Created, not filled.
  (run / "checkpoint_12.orbax-checkpoint-tmp").mkdir()  # Killed while writing.
  assert checkpoints.checkpoint_step(run) == 5
  with caplog.at_level("WARNING"):
    assert_same(runs.train(run, 10), state)
  assert "checkpoint_11: it has no _CHECKPOINT_METADATA" in caplog.text
  assert checkpoints.checkpoint_step(run) == 10
  assert len(list(run.glob("incomplete_checkpoint_1*"))) == 2


def _zeroed(file):
  file.write_bytes(b"\0" * file.stat().st_size)


def _truncated(file):
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
  "damage, files",
  [(_zeroed, "d/*"), (_truncated, "d/*"), (os.remove, "d/*"), (_truncated, "_METADATA")],
)
def test_an_unreadable_checkpoint_falls_back_to_the_previous_one(
  complete, tmp_path, caplog, damage, files
):
  folder, state = complete
  run = tmp_path / "run"
  shutil.copytree(folder, run)
  for file in (run / "checkpoint_10" / "state").rglob(files):
    damage(file)
  with caplog.at_level("WARNING"):
    assert_same(runs.train(run, 10), state)
  assert "cannot be read" in caplog.text
  saved_again = checkpoints.load_params(run / "checkpoint_10")
  np.testing.assert_array_equal(saved_again["kernel"], runs.flat(state)["target/kernel"])


def test_a_changed_array_falls_back_to_the_previous_checkpoint(complete, tmp_path, caplog):
  folder, state = complete
  run = tmp_path / "run"
  shutil.copytree(folder, run)
  saved = checkpoints._recorded(run / "checkpoint_10")
  commit = run / "checkpoint_10" / "_CHECKPOINT_METADATA"
  commit.write_text(commit.read_text().replace(str(saved["target/kernel"]), "1"))
  with pytest.raises(Damaged, match=r"checkpoint_10 is damaged: 1 of 3 arrays .*: target/kernel\."):
    checkpoints.load_params(run)
  with caplog.at_level("WARNING"):
    assert_same(runs.train(run, 10), state)
  assert "target/kernel" in caplog.text and list(run.glob("incomplete_checkpoint_10_*"))


def test_a_flipped_bit_changes_no_array_that_is_read(tmp_path):
  # Of this width, arrays are in files of TensorStore's that have no checksum.
  optimizer = runs.optimizers.adamw(0.1, weight_decay=0.01, ema_decay=0.9)
  runs.train(tmp_path, 1, model=toy.ToyModel(optimizer, width=512))
  folder = tmp_path / "checkpoint_1"
  expected = traverse_util.flatten_dict(checkpoints.load_state_dict(folder))
  files = [f for f in folder.rglob("*") if f.is_file() and "dataset" not in f.parts]
  random, found = np.random.default_rng(0), 0
  for file in sorted(files) * 3:
    content = bytearray(intact := file.read_bytes())
    content[random.integers(len(content))] ^= 1 << random.integers(8)
    file.write_bytes(content)
    try:
      read = traverse_util.flatten_dict(checkpoints.load_state_dict(folder))
      for name in expected:
        np.testing.assert_array_equal(read[name], expected[name], err_msg=f"{file} {name}")
    except (Damaged, FileNotFoundError) as error:
      assert "checkpoint_1 " in str(error)
      found += 1
    file.write_bytes(intact)
  assert found >= 10


@pytest.mark.parametrize(
  "error",
  [
    TimeoutError("slow"),
    OSError(errno.EIO, "disk"),
    ValueError("UNAVAILABLE: store"),
    HttpError({"code": 503, "message": "busy"}),
  ],
  ids=["time", "disk", "TensorStore", "gcsfs"],
)
def test_a_failure_that_may_pass_sets_no_checkpoint_aside(complete, tmp_path, monkeypatch, error):
  run = tmp_path / "run"
  shutil.copytree(complete[0], run)

  def fail(*_, **__):
    raise error

  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", fail)
  with pytest.raises(type(error), match=str(error.args[-1])):
    runs.train(run, 10)
  assert checkpoints.complete_steps(run) == [0, 5, 10]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_state_has_its_digests(complete, tmp_path, dtype):
  """Also if parameters are rounded, and without digests, as T5X saves."""
  save = engine.SaveCheckpointConfig(period=5, dtype=dtype)
  runs.train(tmp_path, 5, checkpoint_cfg=engine.CheckpointConfig(save))
  kernel = checkpoints.load_params(tmp_path)["kernel"]
  assert kernel.dtype.name == dtype
  restore = engine.RestoreCheckpointConfig(path=str(tmp_path))
  config = engine.CheckpointConfig(save, restore)
  runs.train(tmp_path / "next", 5, relative_steps=0, checkpoint_cfg=config)
  commit = tmp_path / "checkpoint_5" / "_CHECKPOINT_METADATA"
  content = json.loads(commit.read_text())
  assert content["custom_metadata"].pop(checkpoints.DIGESTS)
  commit.write_text(json.dumps(content))
  np.testing.assert_array_equal(checkpoints.load_params(tmp_path)["kernel"], kernel)


def test_a_checkpoint_of_another_model_is_rejected_and_kept(complete, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(complete[0], run)
  with pytest.raises(ValueError, match=r"kernel has shape \(4, 8\), expected \(4, 16\)"):
    other = toy.ToyModel(runs.optimizers.adamw(0.1, weight_decay=0.01, ema_decay=0.9), width=16)
    runs.train(run, 10, model=other)
  with pytest.raises(ValueError, match=r"lacks .* of the .* arrays"):
    runs.train(run, 10, model=toy.ToyModel(runs.optimizers.wrap(runs.SGD(0.1, momentum=0.9))))
  assert checkpoints.complete_steps(run) == [0, 5, 10]


def test_a_run_without_a_readable_checkpoint_does_not_restart_silently(complete, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(complete[0], run)
  for file in run.glob("checkpoint_*/state/**/d/*"):
    _truncated(file)
  with pytest.raises(
    RuntimeError, match=r"no checkpoint of this run can be read:(.|\n)*checkpoint_0"
  ):
    runs.train(run, 10)
  assert len(list(run.glob("incomplete_checkpoint_*"))) == 3  # Renamed, not deleted.


def test_keep_and_a_finished_run(tmp_path):
  save = engine.SaveCheckpointConfig(period=2, keep=2, checkpoint_steps=[3])
  config = engine.CheckpointConfig(save=save)
  runs.train(tmp_path, 4, checkpoint_cfg=config)
  assert checkpoints.all_steps(tmp_path) == [3, 4]
  before = (tmp_path / "metrics.jsonl").read_text()
  runs.train(tmp_path, 4, checkpoint_cfg=config)
  assert (tmp_path / "metrics.jsonl").read_text() == before
  with pytest.raises(ValueError, match="total_steps=3 is before the restored step 4"):
    runs.train(tmp_path, 3, checkpoint_cfg=config)


def test_load_params_reads_parameters_or_their_average(complete):
  folder, state = complete
  flat = runs.flat(state)
  for ema, name in ((False, "target/kernel"), (True, "state/param_states/4/ema/kernel")):
    loaded = checkpoints.load_params(folder, ema=ema)
    assert set(loaded) == {"kernel", "out_kernel", "bias"}
    np.testing.assert_array_equal(loaded["kernel"], flat[name])
  early = checkpoints.load_params(folder / "checkpoint_5")
  assert not np.array_equal(early["kernel"], flat["target/kernel"])
  with pytest.raises(FileNotFoundError, match="checkpoint_7 cannot be read: it does not exist"):
    checkpoints.load_params(folder / "checkpoint_7")


def test_starting_from_another_run(complete, tmp_path):
  """Parameters from a checkpoint, a new optimizer state, and the average initialized by the parameters."""
  folder, state = complete
  restore = engine.RestoreCheckpointConfig(
    path=str(folder),
    assignment_map=[(r"state/.*/ema/(.*)", r"target/\1"), (r"state/.*", None)],
    fallback_to_scratch=True,
  )
  save = engine.SaveCheckpointConfig(period=100)
  started = runs.flat(
    runs.train(
      tmp_path, 0, relative_steps=None, checkpoint_cfg=engine.CheckpointConfig(save, restore)
    )
  )
  flat = runs.flat(state)
  assert started["state/step"] == 0
  np.testing.assert_array_equal(started["target/kernel"], flat["target/kernel"])
  np.testing.assert_array_equal(started["state/param_states/4/ema/kernel"], flat["target/kernel"])
  assert not started["state/param_states/1/mu/kernel"].any()


def test_starting_from_the_average_of_another_run(complete, tmp_path):
  """Its average becomes the parameters and the new average, wherever the new chain keeps one."""
  folder, state = complete
  restore = engine.RestoreCheckpointConfig(
    path=str(folder),
    state_transformation_fns=[restore_transforms.average_as_parameters],
    fallback_to_scratch=True,
  )
  model = toy.ToyModel(runs.optimizers.adamw(0.1, clip_norm=None, ema_decay=0.9))
  cfg = engine.CheckpointConfig(engine.SaveCheckpointConfig(period=100), restore)
  started = runs.flat(runs.train(tmp_path, 0, model=model, checkpoint_cfg=cfg))
  average = runs.flat(state)["state/param_states/4/ema/kernel"]
  for name in ("target/kernel", "state/param_states/2/ema/kernel"):
    np.testing.assert_array_equal(started[name], average)
  assert started["state/step"] == 0 and not started["state/param_states/0/mu/kernel"].any()
  # The new run resumes from its own checkpoints, not from the other run's average again.
  moved = runs.flat(runs.train(tmp_path, 3, model=model, checkpoint_cfg=cfg))
  again = runs.flat(runs.train(tmp_path, 3, model=model, checkpoint_cfg=cfg))
  np.testing.assert_array_equal(moved["target/kernel"], again["target/kernel"])
  assert not np.array_equal(moved["target/kernel"], average)


def test_fine_tuning_starts_from_the_average_or_else_from_the_parameters(complete, tmp_path):
  folder, state = complete
  average = runs.flat(state)["state/param_states/4/ema/kernel"]

  def start(folder, into, **network):
    restore = engine.RestoreCheckpointConfig(
      path=str(folder),
      state_transformation_fns=[restore_transforms.weights_alone],
      fallback_to_scratch=True,
    )
    model = toy.ToyModel(runs.optimizers.adamw(0.1), **network)
    cfg = engine.CheckpointConfig(engine.SaveCheckpointConfig(period=100), restore)
    return runs.flat(runs.train(tmp_path / into, 0, model=model, checkpoint_cfg=cfg))

  tuned = start(folder, "tuned")
  assert tuned["state/step"] == 0
  np.testing.assert_array_equal(tuned["target/kernel"], average)
  # That run keeps no average.
  again = start(tmp_path / "tuned", "again")
  np.testing.assert_array_equal(again["target/kernel"], average)


def test_fine_tuning_another_network_names_its_arrays():
  found = {"target": {"a": np.zeros((2, 3)), "b": np.zeros(4)}, "state": {"step": 0}}
  wanted = {"target": {"a": np.zeros((2, 4)), "c": np.zeros(4)}, "state": {"step": 0}}
  with pytest.raises(Mismatch, match=r"3 of 3 arrays differ.*a: \(2, 3\), \(2, 4\)") as error:
    restore_transforms.weights_alone(found, wanted)
  assert "b: (4,), None" in str(error.value) and "c: None, (4,)" in str(error.value)
  # A run that resumes is not compared: its own checkpoint is read.
  assert restore_transforms.weights_alone(found, wanted, is_resuming=True) == found


def test_arrays_of_another_shape_are_passed_to_the_bound_function(complete, tmp_path):
  """A wider model starts from a narrower one; parameters, moments and average are all passed."""
  folder, state = complete
  seen = []

  def tile(name, array, wanted):
    seen.append(name)
    return np.tile(array, [w // s for w, s in zip(wanted, array.shape)])

  def start(fit, into):
    restore = engine.RestoreCheckpointConfig(
      path=str(folder), state_transformation_fns=[restore_transforms.FitArrays(fit)]
    )
    cfg = engine.CheckpointConfig(engine.SaveCheckpointConfig(period=100), restore)
    model = toy.ToyModel(
      runs.optimizers.adamw(runs.SCHEDULE, weight_decay=0.01, ema_decay=0.9), width=16
    )
    return runs.flat(runs.train(into, 10, model=model, checkpoint_cfg=cfg))

  started, old = start(tile, tmp_path / "a"), runs.flat(state)
  for name in (
    "target/kernel",
    "state/param_states/1/nu/kernel",
    "state/param_states/4/ema/kernel",
  ):
    assert name in seen
    np.testing.assert_array_equal(started[name], np.concatenate([old[name]] * 2, axis=1))
  np.testing.assert_array_equal(started["target/bias"], old["target/bias"])
  assert started["state/step"] == 10
  with pytest.raises(ValueError, match=r"kernel has shape \(4, 8\), expected \(4, 16\)"):
    start(lambda name, array, wanted: array, tmp_path / "b")


def test_checkpoints_at_multiples_are_never_deleted(tmp_path):
  cfg = engine.CheckpointConfig(engine.SaveCheckpointConfig(period=1, keep=1))
  runs.train(tmp_path, 6, checkpoint_cfg=cfg, settings=RunSettings(keep_every=4))
  assert checkpoints.all_steps(tmp_path) == [0, 4, 6]


def test_data_that_cannot_be_resumed_is_reordered_once(complete, tmp_path):
  """As after a change of hosts: not the examples of the first steps again, and a later restart keeps the order."""
  first = [line["ids"] for line in runs.lines(complete[0])]

  runs.train(tmp_path / "once", 5)
  shutil.rmtree(tmp_path / "once" / "checkpoint_5" / "dataset")
  shutil.copytree(tmp_path / "once", tmp_path / "twice")

  def moved(folder, *stops):
    for stop in stops:
      runs.train(folder, stop)
    return [line["ids"] for line in runs.lines(folder)]

  once, twice = moved(tmp_path / "once", 12), moved(tmp_path / "twice", 8, 12)
  assert once == twice
  assert once[:5] == first[:5] and not set(once[5:8]) & set(first[:3])


def test_a_position_among_examples_with_other_features_is_reached_by_reading(complete, tmp_path):
  """As saved by a version whose examples also carried constants: the same examples follow."""

  def task(more):
    return seqio.Task(
      "engine_toy_mapped",
      source=toy.TASK.source,
      output_features=toy.FEATURES,
      preprocessors=[lambda ds: ds.map(lambda row: row | {"y": 1.0 * row["y"]} | more)],
    )

  for stop, more in ((5, {"constant": tf.zeros(3)}), (10, {})):
    runs.train(tmp_path, stop, train_dataset_cfg=runs.dataset(mixture_or_task_name=task(more)))
  assert [line["ids"] for line in runs.lines(tmp_path)] == [
    line["ids"] for line in runs.lines(complete[0])
  ]


@pytest.mark.parametrize("model_dir", ["gs://bucket/run", "/run"])
def test_an_error_of_a_store_in_a_save_names_the_run_in_one_line(model_dir):
  with mock.patch.object(ocp, "CheckpointManager") as orbax:
    manager = CheckpointManager(model_dir, config=engine.SaveCheckpointConfig(), layout=mock.Mock())
  state = mock.Mock(**{"state_dict.return_value": {"target": {}}})
  waits, saves = orbax().wait_until_finished, orbax().save
  for method, call in ((waits, manager.wait), (saves, lambda: manager.save(5, state, mock.Mock()))):
    orbax().all_steps.return_value = []
    method.side_effect = ValueError("DATA_LOSS: Error writing [tensorstore_spec='" + "{}\n" * 500)
    with pytest.raises((CannotWrite, ValueError)) as found:
      call()
    told = f"cannot write a checkpoint to {model_dir}: ValueError: DATA_LOSS: Error writing;"
    # The errors of a local disk have other texts.
    assert str(found.value).startswith(told if "://" in model_dir else "DATA_LOSS")
    assert isinstance(found.value, CannotWrite) == ("\n" not in str(found.value))
