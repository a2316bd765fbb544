"""Caption accuracy of a folder of samples, and of some of its captions apart."""

import json

import numpy as np
import pytest

from data.samples import shapes
from walt_t5x import evaluate
from walt_t5x.evaluation.prompt_scores import caption_accuracy
from walt_t5x.evaluation.reconstruction import HeldOutClip, ReconstructionFolder
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.html.report_inputs import read_scores

# What is in the clip, and its prompt.
_SAMPLES = [
  (("red", "square", "right"), "a red square moves right"),
  (("blue", "circle", "up"), "a blue triangle moves up"),
  (("cyan", "triangle", "left"), "a cyan triangle moves left"),
  (("green", "square", "down"), "a yellow square moves up"),
]


def _scene(color, shape, direction):
  place = {"extent": 0.4, "start": (0.5, 0.5), "travel": 0.25, "background": 0.05}
  return shapes.Scene(color=color, shape=shape, direction=direction, **place)


def _clip(*content):
  return shapes.render(_scene(*content), num_frames=3, size=32)


def _folder(path, samples):
  folder = SampleFolder(path)
  for index, (content, prompt) in enumerate(samples):
    folder.write(
      index,
      prompt=prompt,
      videos={"base": _clip(*content), "sr1": _clip("red", *content[1:])},
      fps=8.0,
      seed=0,
      steps={"base": 1},
      fingerprints={},
    )
  return folder


def _counts(scores, stage="base"):
  return {
    element: tuple(scores[stage][f"caption_accuracy/{element}_{n}"] for n in ("right", "total"))
    for element in ("color", "shape", "direction", "all")
  }


def test_captions_apart_are_scored_like_a_folder_of_their_own(tmp_path, capsys):
  folder = _folder(tmp_path / "samples", _SAMPLES)
  chosen = tmp_path / "apart.txt"
  chosen.write_text("\n a blue triangle moves up \na yellow square moves up\nnobody asked\n")
  result = evaluate.run(
    [
      "--protocol=caption_accuracy",
      f"--samples={folder.path}",
      f"--captions_apart={chosen}",
    ]
  )
  printed = capsys.readouterr().out.splitlines()
  assert json.loads(printed[-1]) == result and f"sr1, {chosen}: caption accuracy" in str(printed)
  assert _counts(result["scores"]) == {
    "color": (3, 4), "shape": (3, 4), "direction": (3, 4), "all": (2, 4)
  }  # fmt: skip
  assert _counts(result["scores_apart"]) == {
    "color": (1, 2), "shape": (1, 2), "direction": (1, 2), "all": (0, 2)
  }  # fmt: skip
  others = _folder(tmp_path / "alone", [_SAMPLES[1], _SAMPLES[3]])
  assert result["scores_apart"] == caption_accuracy(others)["scores"]
  stored = json.loads((folder.path / "scores.json").read_text())
  assert stored["scores_apart"] == result["scores_apart"]
  assert stored["verdicts"]["1"]["base"] == {"color": True, "shape": False, "direction": True}
  assert stored["verdicts"]["1"]["sr1"]["color"] is False
  # The report lists both.
  values = {row.name: row.value for row in read_scores(folder.path / "scores.json")}
  assert values["base: shape"] == "75% (3 of 4)" and values["base, apart: shape"] == "50% (1 of 2)"
  # The same folder without the flag has no such part.
  assert "scores_apart" not in caption_accuracy(folder)


def test_captions_apart_that_no_sample_has_are_named(tmp_path):
  folder = _folder(tmp_path / "samples", _SAMPLES[:1])
  chosen = tmp_path / "apart.txt"
  flags = [f"--samples={folder.path}", f"--captions_apart={chosen}"]
  for text, said in (
    ("a dog\n", r"no sample of .* has one of these captions as its prompt, such as 'a dog'"),
    ("\n", "apart.txt has no prompt"),
  ):
    chosen.write_text(text)
    with pytest.raises(SystemExit, match=said):
      evaluate.run(["--protocol=caption_accuracy", *flags])
  chosen.unlink()
  with pytest.raises(SystemExit, match=r"--captions_apart=.* cannot be read"):
    evaluate.run(["--protocol=caption_accuracy", *flags])
  with pytest.raises(SystemExit):
    evaluate.run(["--protocol=motion", *flags])


def test_reconstructions_of_captioned_clips_are_scored_next_to_their_inputs(tmp_path):
  clips = [_clip(*content) for content, _ in _SAMPLES]
  blurred = np.repeat(clips[1].mean(axis=(1, 2), keepdims=True), 32, 1).repeat(32, 2)
  made = [clips[0], np.rint(blurred).astype(np.uint8), clips[2], clips[0]]
  for name, captions in (
    ("captioned", [_scene(*content).caption for content, _ in _SAMPLES]),
    ("others", ["a dog moves right", *(prompt for _, prompt in _SAMPLES[1:])]),
  ):
    folder = ReconstructionFolder(tmp_path / name)
    held_out = [
      HeldOutClip(name=str(i), uri=str(i), fps=8.0, frames=list, caption=caption)
      for i, caption in enumerate(captions)
    ]
    folder.write(
      held_out, [(np.stack(clips)[:, i : i + 1], np.stack(made)[:, i : i + 1]) for i in range(3)]
    )
    found = folder.caption_accuracy([clip.name for clip in held_out])
    if name == "others":
      assert found == {}
      continue
    assert {e: (c.right, c.total) for e, c in found["inputs"].counts.items()} == dict.fromkeys(
      ("color", "shape", "direction", "all"), (4, 4)
    )
    right = {e: c.right for e, c in found["reconstructions"].counts.items()}
    assert right == {"color": 2, "shape": 3, "direction": 2, "all": 2}
