"""Local checkpoints: a run that crashes resumes from the newest complete one."""

import contextlib
import re
import shutil

import numpy as np
import pytest

from tests.engine import runs
from tests.engine.parallel_test import some_devices
from walt_t5x.engine.run_settings import RunSettings


def crashed(folder, local, *, after=None, **changes):
  """A run to step 10, with checkpoints every 5 steps and local ones every 2, that crashes after a step, if given."""
  settings = RunSettings(local_checkpoints=str(local), local_period=2)
  actions = {"TRAIN": [runs.Crash(after)]}
  with pytest.raises(runs.Crashed) if after else contextlib.nullcontext():
    return runs.train(
      folder, 10, settings=settings, actions=actions, concurrent_metrics=False, **changes
    )


def resumed_from(caplog):
  return [
    int(m[1]) for m in map(re.compile(r"Resuming from step (\d+)").match, caplog.messages) if m
  ]


def local_files(folder):
  return sorted(folder.rglob("*.safetensors"), key=lambda file: int(file.name.partition("_")[0]))


@pytest.mark.parametrize("mesh", [None, (8, 2)])
def test_a_crashed_run_resumes_from_its_newest_local_checkpoint(mesh, tmp_path, caplog):
  changes = {} if mesh is None else {"partitioner": some_devices(*mesh)}
  peace = runs.train(tmp_path / "peace", 10, **changes)
  run, local = tmp_path / "run", tmp_path / "local"
  with caplog.at_level("INFO"):
    for after in (7, 9, None):
      state = crashed(run, local, after=after, **changes)
  assert resumed_from(caplog) == [6, 8]
  expected, found = runs.flat(peace), runs.flat(state)
  assert expected.keys() == found.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)
  ids = [{line["step"]: line["ids"] for line in runs.lines(f)} for f in (run, tmp_path / "peace")]
  assert ids[0] == ids[1]
  assert not local_files(local)  # The run has ended; they would only take space.


def test_local_checkpoints_that_do_not_fit_are_not_used(tmp_path, caplog):
  run, local = tmp_path / "run", tmp_path / "local"
  crashed(run, local, after=9)
  flipped, cut = local_files(local)[-1], local_files(local)[-2]
  content = bytearray(flipped.read_bytes())
  content[-1] ^= 1
  flipped.write_bytes(content)
  cut.write_bytes(cut.read_bytes()[:100])
  with caplog.at_level("INFO"):
    crashed(run, local, after=7)
    assert resumed_from(caplog) == [5]  # The newest of MODEL_DIR, as steps 8 and 6 are damaged.
    assert caplog.text.count("A local checkpoint is not used") == 2
    caplog.clear()
    # Of another mesh.
    crashed(run, local, after=7, partitioner=some_devices(8, 2))
    assert resumed_from(caplog) == [5]
    assert "of another model or mesh" in caplog.text
    caplog.clear()
    # Of an earlier run in the same folder.
    shutil.rmtree(run)
    crashed(run, local, after=3, partitioner=some_devices(8, 2))
    assert not resumed_from(caplog)
  assert [int(file.name.partition("_")[0]) for file in local_files(local)] == [2]
