"""The report: the page shows the contents of the folders, and makes no requests."""

import base64
import dataclasses
import json
import re
import sys

import numpy as np
import pytest

from tests import tiny_denoiser
from tests.html.html_page import Page
from walt_t5x import report
from walt_t5x.denoiser.transformer import WaltDenoiser
from walt_t5x.engine import goodput
from walt_t5x.files import storage
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.html import curve_chart
from walt_t5x.html.report_inputs import RunFolder, ScoreRow, read_curves, read_scores
from walt_t5x.html.report_page import write_report
from walt_t5x.media import reading
from walt_t5x.models import model_record
from walt_t5x.models.denoiser_model import DenoiserModel

FVD = {
  "protocol": "fvd",
  "protocol_hash": "66d1dbe3133b",
  "samples": "samples",
  "scores": {
    "FVD": {
      "score": 609.125,
      "std": 2.5,
      "values": 4,
      "samples": 40,
      "references": 50,
      "network": "i3d",
      "network_fingerprint": "410a247dc4ca77",
      "public_weights": True,
    }
  },
}
CAPTION_ACCURACY = {
  "protocol": "caption_accuracy",
  "protocol_hash": "0123456789ab",
  "scores": {
    "base": {
      f"caption_accuracy/{kind}_{name}": value
      for kind in ("color", "shape", "direction")
      for name, value in (("right", 3), ("total", 4), ("accuracy", 0.75))
    }
  },
}


def _write(path, *, curves=None, samples=(), name="base"):
  """The text of a page about one run without a folder, and the samples."""
  run = RunFolder(
    name=name, path=path, curves=curves or {}, checkpoints={}, provenance={}, config=name
  )
  options = {"title": name, "runs": [run], "plans": {name: name}, "scores": ()}
  return write_report(path / "page.html", samples=samples, **options).read_text("utf-8")


@pytest.fixture
def run(tmp_path):
  folder = tmp_path / "base"
  (folder / "checkpoint_4").mkdir(parents=True)  # Empty, so incomplete.
  lines = [
    {"step": 2, "loss": 0.5, "odd": "NaN"},
    {"step": 4, "loss": 0.75},
    {"step": 4, "training_eval/shapes/loss": 0.25},
    {"step": 4, "loss": 0.375},  # After a restart from step 2.
  ]
  text = "\n".join(map(json.dumps, lines))
  (folder / "metrics.jsonl").write_text(text + '\n{"step": 5, "lo')
  latents = {"latents/3x4x4": {"channels": 8, "mean": [0.0] * 8, "std": [1.0] * 8}}
  provenance = {"vae": {"fingerprint": "a<b"}, "latents": latents}
  (folder / "provenance.json").write_text(json.dumps(provenance))
  (folder / "config.gin").write_text("BATCH_SIZE = 4\n")
  for began in (0.0, 15.0):  # A restart after 5 s that lost nothing.
    seconds = dict.fromkeys(goodput.PHASES, 0.0) | {"step": 6.0, "compile": 4.0}
    one = goodput.Start(
      began=began,
      written=began + 10,
      first_step=int(began),
      step=15,
      finished=False,
      seconds=seconds,
      saved=[],
    )
    storage.write_json(folder / goodput.FOLDER / f"{began:.0f}.json", dataclasses.asdict(one))
  return folder


def test_the_later_line_of_a_step_counts_and_an_incomplete_line_is_counted(run):
  curves, unreadable = read_curves(run / "metrics.jsonl")
  assert curves == {
    "loss": [(2, 0.5), (4, 0.375)],
    "training_eval/shapes/loss": [(4, 0.25)],
  }
  assert unreadable == 1


@pytest.mark.parametrize("low, high", [(0, 1), (-3, 7), (0.013, 0.0131), (1e6, 3e7), (-1e-3, 0)])
def test_ticks_are_few_round_evenly_spaced_and_inside(low, high):
  ticks = np.array(curve_chart.ticks(low, high))
  assert 3 <= len(ticks) <= 9
  spacing = np.diff(ticks)
  np.testing.assert_allclose(spacing, spacing[0], rtol=1e-6)
  assert round(spacing[0] / 10 ** np.floor(np.log10(spacing[0] * 1.0000001))) in (1, 2, 5)
  slack = 1e-6 * (high - low)
  assert low - slack <= ticks[0] and ticks[-1] <= high + slack


def test_a_curve_is_drawn_to_scale(tmp_path):
  points = [(0, 1.0), (10, 3.0), (40, 2.0)]
  drawn = re.search(r'<polyline[^>]* points="([^"]*)"', _write(tmp_path, curves={"loss": points}))
  xy = np.array([[float(n) for n in pair.split(",")] for pair in drawn[1].split()])
  for axis in range(2):
    # Affine in step and in value: equal ratios of differences (y grows downwards).
    want = np.diff([p[axis] for p in points])
    np.testing.assert_allclose(
      np.diff(xy[:, axis]) / want, np.diff(xy[:, axis])[0] / want[0], rtol=0.01
    )
  assert xy[1, 1] < xy[2, 1] < xy[0, 1]


def test_a_chart_names_its_axes_and_knows_the_step_and_value_of_every_point(tmp_path):
  curves = {
    "goodput/data_wait": [(0, 1.0), (1000, 0.123456)],
    "training_eval/a/goodput/data_wait": [(1000, 2.0)],
  }
  page = Page(_write(tmp_path, curves=curves))
  assert [text for text in page.words("text") if text.isalpha() or " " in text] == [
    "step",
    "data wait",
  ]
  found = [json.loads(a["data-points"]) for tag, a in page.tags if "data-points" in a]
  assert [[tuple(point[2:]) for point in points] for points in found] == [
    [(0, "1"), (1000, "0.1235")],
    [(1000, "2")],
  ]
  # The places of the values are those of the line.
  (line,) = page.of("polyline")
  assert line["points"] == " ".join(f"{x},{y}" for x, y, _, _ in found[0])


def test_training_and_evaluation_share_a_chart():
  charts = curve_chart.grouped({"loss": [(1, 1.0)], "training_eval/a/loss": [(1, 2.0)]})
  assert charts == {"loss": {"training": [(1, 1.0)], "held out, a": [(1, 2.0)]}}


def test_scores_have_protocol_hash_network_and_standard_deviation(tmp_path):
  (tmp_path / "scores_fvd.json").write_text(json.dumps(FVD))
  (row,) = read_scores(tmp_path / "scores_fvd.json")
  assert row.protocol == "fvd@66d1dbe3133b" and row.value == "609.1 ± 2.5"
  assert row.network == "i3d 410a247dc4ca (public weights)"
  (tmp_path / "scores.json").write_text(json.dumps(CAPTION_ACCURACY))
  rows = read_scores(tmp_path / "scores.json")
  assert [(r.name, r.value) for r in rows] == [
    ("base: color", "75% (3 of 4)"),
    ("base: shape", "75% (3 of 4)"),
    ("base: direction", "75% (3 of 4)"),
  ]
  assert {r.protocol for r in rows} == {"caption_accuracy@0123456789ab"}
  (tmp_path / "scores_bad.json").write_text("[]")
  with pytest.raises(ValueError, match=r"scores_bad.json has no scores.*walt_t5x.evaluate"):
    read_scores(tmp_path / "scores_bad.json")


def test_the_page_shows_everything_and_makes_no_requests(run, tmp_path, capsys):
  samples = SampleFolder(tmp_path / "samples")
  video = np.full((5, 16, 16, 3), 0.5, np.float32)
  for index, prompt in enumerate(["a red <b>square</b>", "a blue circle"]):
    samples.write(
      index,
      prompt=prompt,
      videos={"base": video},
      fps=8,
      seed=7,
      steps={"base": 4},
      fingerprints={},
    )
  scores = CAPTION_ACCURACY | {"verdicts": {"0": {"base": {"color": True, "shape": False}}}}
  (samples.path / "scores.json").write_text(json.dumps(scores))
  (samples.path / "scores_fvd.json").write_text(json.dumps(FVD))
  output = tmp_path / "report.html"
  report.main(
    [f"--run={run}", f"--samples={samples.path}", "--max_samples=1", f"--output={output}"]
  )
  assert json.loads(capsys.readouterr().out) == {
    "report": str(output),
    "runs": 1,
    "scores": 4,
    "samples": 1,
  }
  text = output.read_text("utf-8")
  page = Page(text)
  cells = page.words("td")
  assert {"609.1 ± 2.5", "a<b"} <= set(cells) and "fvd@66d1dbe3133b" in page.words("h3")
  assert cells[cells.index("checkpoint 4") + 1] == "it has no _CHECKPOINT_METADATA"
  time = cells.index("goodput")
  assert cells[time : time + 9] == [
    *("goodput", "12.0", "48.0%"),
    *("program startup", "8.0", "32.0%"),
    *("infrastructure recovery from disruption", "5.0", "20.0%"),
  ]
  assert cells[cells.index("plan") + 1].startswith("none: no model.json")
  assert cells[cells.index("normalization of latents/3x4x4") + 1] == "8 channels"
  badges = [text for text in page.words("span") if text[:1] in "✓✗"]
  assert badges == ["✓ color", "✗ shape"] and "00000_base.mp4 ↓" in page.words("button")
  assert " a red <b>square</b>" in page.words("h3") and "a blue circle" not in text
  assert len(page.of("video")) == 1 and page.of("video")[0]["src"].startswith(
    "data:video/mp4;base64,"
  )
  assert "BATCH_SIZE = 4" in "".join(page.words("pre"))
  assert not page.missing_elements()
  assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)


def test_scores_of_a_protocol_and_network_are_one_table_with_a_line_per_stage(tmp_path):
  def row(name, value, *, network="", counts="4 samples"):
    return ScoreRow(
      protocol="p@1", name=name, value=value, counts=counts, samples="s", network=network
    )

  scores = [
    row("base: color", "75% (3 of 4)"),
    row("base: shape", "a"),
    row("sr1: color", "b"),
    row("FVD", "9", network="n", counts="2"),
  ]
  page = Page(
    write_report(
      tmp_path / "page.html", title="t", runs=[], plans={}, scores=scores, samples=[]
    ).read_text("utf-8")
  )
  assert page.words("th") == ["stage", "color", "shape", "counts", "FVD", "counts"]
  # A number stays on one line.
  first = ["base", "75% (3\u00a0of\u00a04)", "a", "4 samples"]
  assert page.words("td") == [*first, "sr1", "b", "4 samples", "9", "2"]


def test_no_text_can_inject(tmp_path):
  evil = '"><script>alert(1)</script><img src=http://x> & "quotes"'
  folder = SampleFolder(tmp_path / "samples")
  video = np.full((3, 16, 16, 3), 0.5, np.float32)
  options = {"fps": 8, "seed": 0, "steps": {"base": 1}, "fingerprints": {}}
  folder.write(0, prompt=evil, videos={"base": video}, **options)
  curves = {"loss": [(1, 1.0)], f"training_eval/{evil[2:10]}/loss": [(1, 2.0)], evil: [(1, 2.0)]}
  text = _write(tmp_path, curves=curves, samples=folder.gallery_items(), name=evil)
  page = Page(text)
  for tag in ("title", "h1", "h2", "h3", "td", "pre", "b"):
    assert evil in map(str.strip, page.words(tag)), tag
  assert evil in [attrs.get("aria-label") for attrs in page.of("svg")]
  assert len(page.of("script")) == text.count("<script") == 1 and not page.of("img")


@pytest.mark.parametrize(
  "formats, kind, shown",
  [
    (("png", "mp4"), "video/mp4", "00000_base.mp4"),
    (("gif", "webm"), "video/webm", "00000_base.webm"),
    (("gif",), "video/mp4", None),
    (("png",), "video/mp4", None),
  ],
)
def test_a_sample_of_any_format_is_played(formats, kind, shown, tmp_path):
  folder = SampleFolder(tmp_path)
  shades = np.array([0.3, 0.5, 0.7], np.float32)
  folder.write(
    0,
    prompt="a",
    videos={"base": np.broadcast_to(shades[:, None, None, None], (3, 16, 16, 3))},
    fps=8,
    seed=0,
    steps={"base": 1},
    fingerprints={},
    formats=formats,
  )
  page = Page(_write(tmp_path, samples=folder.gallery_items()))
  (medium,) = page.of("video")
  content = base64.b64decode(medium["src"].removeprefix(f"data:{kind};base64,"), validate=True)
  if shown:
    assert content == (tmp_path / shown).read_bytes()
  else:
    frames = reading.read_video(content).frames
    np.testing.assert_allclose(frames.mean((1, 2, 3)) / 255, shades, atol=0.02)


def test_nothing_that_a_run_recorded_is_executed(tmp_path, run, monkeypatch):
  (tmp_path / "code_of_a_run.py").write_text("raise SystemExit('executed')")
  monkeypatch.syspath_prepend(str(tmp_path))
  config = "import code_of_a_run\nBATCH_SIZE = 4\nTRAIN_STEPS = 10\nMODEL = @code_of_a_run.f()\n"
  (run / "config.gin").write_text(config)
  model = DenoiserModel(module=WaltDenoiser(**tiny_denoiser.FIELDS), optimizer_def=None)
  record = model_record.described(model, latents="latents/3x4x4", text_length=5)
  storage.write_json(run / "model.json", record)
  report.main([f"--run={run}", f"--output={tmp_path / 'report.html'}"])
  cells = Page((tmp_path / "report.html").read_text("utf-8")).words("td")
  assert "code_of_a_run" not in sys.modules
  assert cells[cells.index("batch size") + 1] == "4" and any("in 10 steps" in c for c in cells)


def test_missing_inputs_are_named(tmp_path, run):
  output = f"--output={tmp_path / 'report.html'}"
  with pytest.raises(SystemExit, match=r"nowhere/metrics.jsonl does not exist.*MODEL_DIR"):
    report.main([f"--run={tmp_path / 'nowhere'}", output])
  with pytest.raises(SystemExit, match=r"expected an \.html file"):
    report.main([f"--run={run}", f"--output={tmp_path / 'report.pdf'}"])
