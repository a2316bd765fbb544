"""A difference of size or rate between samples and references is named, unless the protocol removes it."""

import numpy as np
import pytest

from walt_t5x.evaluation import alike, media_files
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.media import writing
from walt_t5x.metrics.protocols import PROTOCOLS

FVD = PROTOCOLS["fvd"]
OURS, THEIRS = ((16, 16), 8), ((24, 32), 25)


def _media(folder, size, fps, *, generated=False):
  clip = np.zeros((3, *size, 3), np.uint8)
  for index in range(2):
    if generated:
      SampleFolder(folder).write(
        index, prompt="x", videos={"base": clip / np.float32(255)}, fps=fps, seed=0, steps={"base": 1},
        fingerprints={}, formats=("png",),
      )  # fmt: skip
    else:
      writing.write_video(folder / f"{index}.mp4", clip, fps=fps)
  return media_files.find_media(folder)


@pytest.mark.parametrize("generated", [True, False])
@pytest.mark.parametrize(
  ("theirs", "changes", "flags"),
  [
    (OURS, {}, []),
    (THEIRS, {}, ["--size=16x16", "--fps=8"]),
    ((OURS[0], 25), {}, ["--fps=8"]),
    ((THEIRS[0], 8), {}, ["--size=16x16"]),
    (THEIRS, {"size": (16, 16)}, ["--fps=8"]),
    (THEIRS, {"size": (16, 16), "fps": 8.0}, []),
    (THEIRS, {"frames": 1}, ["--size=16x16"]),
  ],
)
def test_what_differs_after_the_protocol_is_named(generated, theirs, changes, flags, tmp_path):
  samples = _media(tmp_path / "samples", *OURS, generated=generated)
  found = alike.difference(samples, _media(tmp_path / "real", *theirs), FVD.replace(**changes))
  assert [word for word in found.split() if word.startswith("--")] == flags
  assert ("16x16 at 8 fps, the references 24x32 at 25 fps" in found) == (
    flags == ["--size=16x16", "--fps=8"]
  )


def test_the_rate_of_generated_samples_is_compared_with_that_of_the_protocol(tmp_path):
  samples = _media(tmp_path / "samples", *OURS, generated=True)
  references = _media(tmp_path / "real", *THEIRS)
  protocol = FVD.replace(size=(16, 16), fps=25.0)
  assert "16x16 at 8 fps, the references 16x16 at 25 fps" in alike.difference(
    samples, references, protocol
  )


def test_files_that_cannot_be_read_are_left_to_the_scoring(tmp_path):
  samples = _media(tmp_path / "samples", *OURS)
  (tmp_path / "real").mkdir()
  (tmp_path / "real" / "a.mp4").write_bytes(b"no video")
  assert alike.difference(samples, media_files.find_media(tmp_path / "real"), FVD) == ""
