"""The code behind the demo's page: checked requests, stored clips, reported progress. For a browser test see

benchmarks/browser.py.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.generation import cascades
from tests.generation.sampling_run_test import _Cascade
from tests.generation.serving.videos_api_test import PlainCascade
from walt_t5x.demo import Studio, describe
from walt_t5x.files import storage
from walt_t5x.generation.sample_folder import SampleFolder

CONFIG = cascades.config(Path("/nowhere"))


class _Asked(_Cascade):
  """Records its arguments."""

  def run(self, batches, *, stages, progress):
    self.last = {"stages": stages}
    ((sample,),) = super().run(batches, progress=progress)
    names = ["base", "sr1"][:stages]
    yield [
      sample.__class__(**vars(sample) | {"videos": {name: sample.videos[name] for name in names}})
    ]


@pytest.fixture
def studio(tmp_path):
  return Studio(_Asked(), CONFIG, SampleFolder(tmp_path), fps=8.0)


def test_a_clip_is_stored_with_its_sidecar_and_progress_is_reported(studio):
  told = []
  first = studio.make("a", seed=5, stage="sr1", progress=lambda *seen: told.append(seen))
  assert first["seed"] == 5 and list(first["stages"]) == ["base", "sr1"]
  assert [done for done, _, _ in told] == [0, 1, 2] and told[-1][2] == "sr1"
  second = studio.make("a", seed=5, stage="base")
  assert second["index"] == 1 and list(second["stages"]) == ["base"]
  assert second["steps"] == {"base": 7}
  assert studio.cascade.last["stages"] == 1
  # The same prompt and seed give the same clip.
  clips = [studio.folder.read(s, "base") for s in studio.folder.samples()]
  np.testing.assert_array_equal(*clips)


def test_a_clip_is_judged_if_its_prompt_names_a_color_and_a_shape(studio):
  first = studio.make("a dog moves left", seed=0, stage="base")
  assert first["verdict"] == {}
  assert describe(first) == "**Sample 0**  \nbase: `00000_base.mp4`"
  second = studio.make("a red square", seed=0, stage="sr1")
  # The clips of this cascade have no shape.
  wrong = {"color": False, "shape": False}
  assert second["verdict"] == {"base": wrong, "sr1": wrong}
  assert describe(second).splitlines()[1:] == [
    "base: `00001_base.mp4` · ✗ color · ✗ shape  ",
    "sr1: `00001_sr1.mp4` · ✗ color · ✗ shape",
  ]
  assert "verdict" not in storage.read_json(studio.folder.sidecar(1))


def test_requests_of_several_users_form_batches(tmp_path):
  released = threading.Event()

  class Held(PlainCascade):
    """Clips of a batch once all users have sent their requests."""

    def run(self, batches, **options):
      assert released.wait(20)
      yield from super().run(batches, **options)

  studio = Studio(Held(), CONFIG, SampleFolder(tmp_path), fps=8.0, batch_size=4)
  with ThreadPoolExecutor(9) as users:
    asked = [users.submit(studio.make, f"a {n}", seed=n, stage="sr1") for n in range(9)]
    while len(list((tmp_path / "jobs").glob("*.json"))) < 9:
      time.sleep(0.01)
    released.set()
    sidecars = [one.result() for one in asked]
  assert [(s["prompt"], s["seed"]) for s in sidecars] == [(f"a {n}", n) for n in range(9)]
  assert sorted(s["index"] for s in sidecars) == list(range(9))
  # The first batch may have begun before the others came.
  assert sum(1 / s["batch_size"] for s in sidecars) == pytest.approx(3, abs=1e-6)


def test_unsupported_requests_are_rejected(studio, tmp_path):
  with pytest.raises(ValueError, match="no prompt"):
    studio.make("  ", seed=0, stage="base")
  alone = cascades.config(tmp_path, stages=("base",), base=cascades.model(frame_prediction=False))
  without = Studio(_Asked(), alone, studio.folder, fps=8.0)
  assert studio.takes_frames and not without.takes_frames
  with pytest.raises(ValueError, match="--extensions=1 gives past frames"):
    without.make("a", seed=0, stage="base", extensions=1)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("seed", 1e30),
    ("seed", -1),
    ("seed", 0.5),
    ("seed", float("nan")),
    ("seed", None),
    ("extensions", 8),
    ("extensions", 1e9),
    ("prompt", "a" * 2001),
    ("stage", "sr9"),
  ],
)
def test_a_field_out_of_its_range_is_rejected_by_name(studio, field, value):
  fields = {"prompt": "a", "seed": 2**32 - 1, "stage": "base"}
  with pytest.raises(ValueError, match=f"^{field}: got "):
    studio.make(**fields | {field: value})
  assert not list(studio.folder.path.iterdir())
  # A browser's numbers are floats.
  assert studio.make(**fields | {"seed": 5.0})["seed"] == 5
