"""Training with its MODEL_DIR at an address: the arrays, metrics and files of the same run on a local disk."""

import os
from unittest import mock

import numpy as np
import pytest

from tests import programs  # noqa: F401 - sets what a process that is forked has imported.
from tests.stores import faults, servers

IMPORTED, START = "tests.engine.runs", "forkserver"


@pytest.fixture(scope="module")
def on_disk(process, tmp_path_factory):
  return process.submit(trained, str(tmp_path_factory.mktemp("disk") / "run")).result()


def trained(place):
  """Trains in two starts, with an incomplete checkpoint between them; (last arrays, metrics, other files)."""
  from tests.engine import runs
  from walt_t5x.engine import checkpoints
  from walt_t5x.files import storage
  from walt_t5x.files.paths import as_path

  runs.train(place, 7)
  storage.write(f"{place}/samples/00000.json", b"{}")
  storage.write(f"{place}/checkpoint_9/state/manifest.ocdbt", b"not committed")
  arrays = runs.flat(runs.train(place, 10))
  saved = checkpoints.load_params(place)
  files = [
    str(file.relative_to(as_path(place))) for file in as_path(place).rglob("*") if file.is_file()
  ]
  metrics = storage.read(f"{place}/metrics.jsonl").decode().splitlines()
  return arrays, saved, metrics, checkpoints.complete_steps(place), files


def resumed(place, single):
  """Resumes a run whose TensorStore meets a fault; (steps, folders set aside, failed requests)."""
  from tests.engine import runs
  from walt_t5x.engine import checkpoints
  from walt_t5x.files import storage

  runs.train(place, 5)
  name = {"gs": "TENSORSTORE_GCS_HTTP_URL", "s3": "AWS_ENDPOINT_URL"}[place.partition(":")[0]]
  server = servers.Server(place, os.environ[name], {name: os.environ[name]})
  found = faults.Faults(single=single)
  with faults.proxied(server, found) as proxy, mock.patch.dict(os.environ, proxy.environment):
    runs.train(place, 10)
  aside = [name for name in storage.folders(place) if name.startswith("incomplete")]
  return checkpoints.complete_steps(place), aside, found.injected()


def test_half_an_answer_sets_no_checkpoint_aside(store):
  address, call = store
  single = "shortened", "GET .*checkpoint_5.*manifest.ocdbt", 1
  assert call(resumed, f"{address}/half", single) == ([0, 5, 10], [], 1)


def test_a_run_at_an_address_is_that_on_a_disk_and_deletes_no_folder(store, on_disk):
  address, call = store
  theirs, ours = call(trained, f"{address}/run"), on_disk
  for mine, other in zip(ours[:2], theirs[:2], strict=True):
    assert mine.keys() == other.keys()
    for name, array in mine.items():
      np.testing.assert_array_equal(array, other[name], err_msg=name)
  # Losses; the other metrics are times.
  losses = [[line.partition('"loss"')[2][:12] for line in lines] for lines in (ours[2], theirs[2])]
  assert losses[0] == losses[1] and len(losses[0]) == 10
  assert ours[3] == theirs[3] == [5, 7, 10]
  # A start deletes nothing that others wrote, and sets the incomplete checkpoint aside.
  files = theirs[4]
  assert "samples/00000.json" in files
  assert len([file for file in files if file.startswith("train/events")]) == 2
  assert len([file for file in files if file.startswith("goodput/")]) == 2
  aside = [file for file in files if file.startswith("incomplete_checkpoint_9")]
  assert [os.path.basename(file) for file in aside] == ["manifest.ocdbt"]
