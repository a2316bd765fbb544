"""The page shows what clips.jsonl and rejected.jsonl contain, and depends on nothing but the videos and the flags."""

import json
import random
import re
import shutil

import numpy as np
import pytest

from beam_jobs import curate
from beam_jobs.curation import overview, parts
from beam_jobs.curation.page import PAGE
from beam_jobs.curation.thumbnails import thumbnail
from tests.beam_jobs.curation.conftest import splice, tool
from tests.html.html_page import Page
from walt_t5x.html import curation_page
from walt_t5x.media.rules import Rule

FILTERS = ("seconds>=1.5", "black<=0.5", "motion>=0.02", "motion<0.06")
TAG = '"><script>alert(1)</script>'


def _run(manifest, output, *flags, filters=FILTERS):
  shared = ["--num_parts=3", "--decode_isolation=thread", "--score_side=32"]
  shared += [f"--filter={one}" for one in filters]
  curate.run([f"--manifest={manifest}", f"--output={output}", *shared, *flags])
  return output / PAGE


def _rows(output):
  """[(reason or "", values with seconds, uri, start)] of all segments, by the files of the job."""
  for name in (parts.CLIPS, parts.REJECTED):
    for row in map(json.loads, (output / name).read_text().splitlines()):
      seconds = round(1e6 * (row["end_seconds"] - row["start_seconds"])) / 1e6
      scores = row["scores"] | {"seconds": seconds}
      yield row.get("reason", ""), scores, row["uri"], row["start_seconds"]


def _sample(text):
  return json.loads(re.findall("const sample = (.*);", text)[0])


@pytest.fixture(scope="module")
def curated(videos, tmp_path_factory):
  output = tmp_path_factory.mktemp("page") / "out"
  _run(videos, output)
  return output


@pytest.fixture(scope="module")
def text(curated):
  return (curated / PAGE).read_text("utf-8")


def _panels(text):
  """Name of a score -> the text of its panel."""
  found = text.split('<section class="panel score')[1:]
  return {re.findall("<h3>(.*?)</h3>", panel)[0]: panel for panel in found}


def test_outcomes_are_those_of_the_files(curated, text):
  rows = list(_rows(curated))
  summary = json.loads((curated / parts.SUMMARY).read_text())
  expected = {}
  for reason, scores, *_ in rows:
    count, seconds = expected.get(reason or "clips", (0, 0))
    expected[reason or "clips"] = count + 1, seconds + scores["seconds"]
  (dead,) = map(json.loads, (curated / parts.DEAD).read_text().splitlines())
  expected[f"dead, {dead['reason']} 1"] = 1, dead["end_seconds"] - dead["start_seconds"]
  cells = Page(text.partition("<tbody>")[2].partition("</tbody>")[0]).words("td")
  lines = [
    [cell for cell in cells if cell.strip()][i : i + 4] for i in range(0, 4 * len(expected), 4)
  ]
  total = sum(seconds for _, seconds in expected.values())
  assert total == pytest.approx(summary["seconds"])
  assert {name: (number, seconds, share) for name, number, seconds, share in lines} == {
    name: (str(count), f"{seconds:.1f}", f"{100 * seconds / total:.1f}%")
    for name, (count, seconds) in expected.items()
  }
  shares = [float(x) for x in re.findall(r'<span style="width:([\d.]+)%', text)]
  assert sum(shares) == pytest.approx(100, abs=0.01)


def test_histograms_count_all_shots_and_rules_count_what_fails(curated, text):
  rows = [scores for reason, scores, *_ in _rows(curated) if reason != "transition"]
  panels = _panels(text)
  assert panels.keys() == rows[0].keys()
  for name, panel in panels.items():
    values = np.array([scores[name] for scores in rows])
    bars = re.findall(r"<title>(\S+) to (\S+): (\d+)</title>", panel)
    assert [int(count) for *_, count in bars] == [
      ((values >= float(low)) & (values < float(high))).sum() for low, high, _ in bars
    ]
    assert sum(int(count) for *_, count in bars) == len(rows)
    rules = [Rule.parse(one) for one in FILTERS if Rule.parse(one).name == name]
    shown = re.findall(r"<output>(.*?)</output>", panel)
    failing = [sum(not rule.holds(value) for value in values) for rule in rules]
    assert shown == [*(f"{count} of {len(rows)} fail" for count in failing), ""]


def test_clips_next_to_a_threshold_are_the_closest(curated, text):
  rows = list(_rows(curated))
  found = re.findall(r"<h4>(.*?)</h4>(.*?)</div></div>", _panels(text)["motion"], re.DOTALL)
  assert [head for head, _ in found] == [
    *("below 0.02: fail", "from 0.02: pass"),
    *("below 0.06: pass", "from 0.06: fail"),
  ]
  for (_, group), threshold, above in zip(found, (0.02, 0.02, 0.06, 0.06), (0, 1, 0, 1)):
    values = [s["motion"] for _, s, *_ in rows if (s["motion"] >= threshold) == above]
    closest = sorted(values, key=lambda value: abs(value - threshold))[:3]
    assert [float(x) for x in re.findall("<b>motion (.*?)</b>", group)] == pytest.approx(closest)


def test_the_sample_has_the_scores_of_the_files(curated, text):
  sample = _sample(text)
  rows = [scores for *_, scores in [(r[0], r[1]) for r in _rows(curated)]]
  assert sorted(sample["rows"]) == sorted([s[name] for name in sample["names"]] for s in rows)
  assert sample["candidates"] == len(rows) and sample["flags"] == ["--refilter"]


def test_the_page_depends_only_on_videos_and_flags(curated, videos, tmp_path, text):
  shutil.copytree(curated, tmp_path / "copy")
  assert _run("nothing", tmp_path / "copy", "--refilter").read_text("utf-8") == text
  flags = ("--num_parts=1", "--decode_isolation=process")
  assert _run(videos, tmp_path / "fresh", *flags).read_text("utf-8") == text
  assert _run("nothing", tmp_path / "fresh", "--refilter", filters=()).read_text("utf-8") != text


def test_the_flags_on_the_page_make_the_same_clips(curated, tmp_path):
  shutil.copytree(curated, tmp_path / "out")
  flags = ("--refilter", "--duplicates=near", "--near_duplicate_bits=20", "--keep=motion")
  page = _run("nothing", tmp_path / "out", *flags, filters=()).read_text("utf-8")
  sample, segments = _sample(page), list(_rows(tmp_path / "out"))
  assert "near_duplicate" in {reason for reason, *_ in segments}
  assert len(sample["rows"]) == sum(reason == "" for reason, *_ in segments) < len(segments)
  again = _run("nothing", tmp_path / "out", *sample["flags"], filters=())
  assert again.read_text("utf-8") == page


def _places_and_hashes(output):
  """(uri, start as the page shows it) -> hashes as a number."""
  found = {}
  for path in (output / "parts").glob("part-*"):
    for video in json.loads(path.read_text())["videos"]:
      for start, _, _, _, hashes, *_ in video["segments"]:
        found[video["uri"], f"{start / 1e6:.2f}"] = int(hashes or "0", 16)
  return found


def test_duplicates_are_shown_next_to_the_clips_that_are_kept(videos, tmp_path):
  folder, output = tmp_path / "videos", tmp_path / "out"
  folder.mkdir()
  for name in ("a.mp4", "c.mp4"):
    shutil.copy(videos / name, folder)
  shutil.copy(videos / "a.mp4", folder / "e.mp4")
  splice(folder / "f.avi", ("fractal", 3), ("test", 2), video="mjpeg")
  flags = ("--duplicates=near", "--near_duplicate_bits=30", "--keep=motion")
  page = _run(folder, output, *flags, filters=()).read_text("utf-8")
  rows = [r for r in map(json.loads, (output / parts.REJECTED).open()) if "duplicate_of" in r]
  expected = {}
  for row in rows:
    kept, better = row["duplicate_of"], (row["uri"], f"{row['start_seconds']:.2f}")
    key = better, (kept["uri"], f"{kept['start_seconds']:.2f}")
    expected[key] = row["reason"], f"motion {row['scores']['motion']:.6g}"
  hashes, shown = _places_and_hashes(output), {}
  section = page.partition("<h2>Duplicates</h2>")[2].partition("<h2>")[0]
  assert f"{len(expected)} of {len(expected)}, " in section
  bits = []
  for panel in section.split('<section class="panel pair">')[1:]:
    (head,) = re.findall(r"<h4>([\d.]+) of 128 bits differ</h4>", panel)
    clips = re.findall(
      r"<figcaption><b>(.*?)</b><br>(.*?)<br>([\d.]+)–.*?</i>(.*?)</span>", panel, re.DOTALL
    )
    (motion, *copy, reason), (kept_motion, *kept, outcome) = clips
    assert outcome == "clip" and float(kept_motion[7:]) >= float(motion[7:])
    shown[tuple(copy), tuple(kept)] = reason, motion
    differing = (hashes[tuple(copy)] ^ hashes[tuple(kept)]).bit_count() / 3
    assert float(head) == pytest.approx(differing, abs=0.051)
    bits.append((reason, -differing))
    assert panel.count("data:image/jpeg") == 2
  assert shown == expected and {reason for reason, _ in bits} >= {"exact_duplicate"}
  # Those that differ most come first, and as many as are asked for.
  near = [one for reason, one in bits if reason == "near_duplicate"]
  assert near == sorted(near) and len(set(near)) > 1
  few = _run("nothing", output, "--refilter", *flags, "--page_clips=4", filters=())
  assert few.read_text("utf-8").count('<section class="panel pair">') == 2
  without = _run("nothing", output, "--refilter", filters=()).read_text("utf-8")
  assert "Duplicates" not in without


def test_a_video_that_is_gone_has_a_box_with_the_reason(videos, tmp_path, text):
  folder = tmp_path / "videos"
  shutil.copytree(videos, folder)
  _run(folder, tmp_path / "out")
  (folder / "a.mp4").unlink()
  (folder / "b.mkv").write_bytes(b"no video")
  page = _run("nothing", tmp_path / "out", "--refilter").read_text("utf-8")
  boxes = re.findall('<div class="missing" title=".*?">(.*?)</div>', page)
  assert {box.partition(":")[0] for box in boxes} == {"missing", "not_media"}
  gone = [row for row in _rows(tmp_path / "out") if row[2] in ("a.mp4", "b.mkv")]
  assert len(boxes) >= len(gone) and not re.search('class="missing"', text)
  assert len(boxes) + page.count("data:image/jpeg") == text.count("data:image/jpeg")


def test_the_number_of_pictures_is_limited(curated, tmp_path):
  shutil.copytree(curated, tmp_path / "out")
  page = _run("nothing", tmp_path / "out", "--refilter", "--page_clips=1").read_text("utf-8")
  of_videos = page.partition("<h2>Shots of")[2]
  assert (
    of_videos.count('<figure class="thumb"') == of_videos.count('<section class="panel video"') > 1
  )
  assert page.count('<figure class="thumb"') - of_videos.count("<figure") <= 2 * len(FILTERS)
  assert not _run("nothing", tmp_path / "out", "--refilter", "--page_clips=0").exists()


def test_text_of_rows_is_escaped(tmp_path):
  clip = curation_page.ShownSegment(
    uri=TAG, start=0.0, end=1.0, reason=TAG, scores={TAG: 0.5}, picture=TAG
  )
  line = curation_page.Timeline(uri=TAG, segments=[clip], first=0, count=1, dead=(1.0, 2.0, TAG))
  rule = Rule(TAG, ">=", 0.5)
  page = curation_page.write_curation(
    str(tmp_path / "page.html"),
    totals={
      "videos": 1,
      "seconds": 2.0,
      "seconds_in_clips": 0.0,
      "seconds_rejected": {TAG: 1.0},
      "seconds_dead": 1.0,
      "dead_videos": {TAG: 1},
    },
    segments={TAG: 1},
    histograms={
      TAG: curation_page.Histogram(bins=[(0.5, 1.0, 1)], axis=(0.5, 1.0), low=0.5, high=0.5)
    },
    thresholds=[curation_page.Threshold(rule=rule, failing=0, below=(), above=[clip])],
    candidates=1,
    sample=[{TAG: 0.5}],
    flags=[TAG],
    pairs=[curation_page.DuplicatePair(clips=[clip, clip], score=TAG, bits=1.0, cosine=None)],
    videos=[line],
  )
  parsed = Page(page.read_text("utf-8"))
  assert len(parsed.of("script")) == 1
  assert TAG in parsed.words("h3") and TAG in parsed.words("div")
  assert any(TAG in attrs["title"] for attrs in parsed.of("figure"))


@pytest.mark.parametrize("seconds", [1.02, 3.5, 5.6])
def test_a_thumbnail_is_the_frame_of_its_moment(videos, tmp_path, seconds):
  command = ["ffmpeg", "-v", "error", "-i", str(videos / "a.mp4"), "-ss", str(seconds - 0.02)]
  command += [
    "-frames:v",
    "1",
    "-vf",
    "scale=128:96:flags=area",
    "-f",
    "rawvideo",
    "-pix_fmt",
    "rgb24",
    "-",
  ]
  raw = tool(*command)
  expected = np.frombuffer(raw, np.uint8).reshape(96, 128, 3).astype(int)
  found = thumbnail(str(videos / "a.mp4"), round(seconds * 1e6))
  assert np.abs(found - expected).mean() < 2


def _videos(count):
  """(video of a part, reasons of its segments), with scores and reasons drawn at random."""
  rng = random.Random(0)
  for number in range(count):
    ends = sorted(rng.sample(range(1, 10**8), rng.randint(1, 9)))
    reasons = [rng.choice(("", "light>=0.25", "near_duplicate", "transition")) for _ in ends]
    segments = [
      [
        start,
        end,
        "shot",
        {
          "light": round(rng.gauss(0.3, 0.2), 6),
          "size": rng.choice((0, 1e9)),
          "odd": rng.paretovariate(1.0),
        },
        "",
      ]
      for start, end in zip([0, *ends], ends)
    ]
    video = {
      "uri": f"{number}.mp4",
      "path": "",
      "crop": None,
      "start": 0,
      "end": ends[-1],
      "segments": segments,
    }
    yield video, reasons


def _overview(found, rules):
  made = overview.Overview(rules, clips=24)
  for video, reasons in found:
    made.add(video, reasons)
  return made


def _contents(made):
  return (
    {name: histogram.bins() for name, histogram in made.histograms.items()},
    [made.sample.items(), made.videos.items()],
    [(one.failing, *(side.items() for side in one.sides)) for one in made.thresholds],
  )


def test_an_overview_is_exact_and_does_not_depend_on_the_order_of_videos(monkeypatch):
  monkeypatch.setattr(overview, "SAMPLE", 20)
  rules = [Rule.parse("light>=0.25"), Rule.parse("seconds<=10")]
  found = list(_videos(60))
  made = _overview(found, rules)
  assert _contents(made) == _contents(_overview(found[::-1], rules))
  rows = [
    ({"seconds": (end - start) / 1e6, **scores}, reason)
    for video, reasons in found
    for (start, end, _, scores, _), reason in zip(video["segments"], reasons)
  ]
  candidates = [scores for scores, reason in rows if reason in ("", "light>=0.25")]
  assert len(made.sample.items()) == 20 and len(made.videos.items()) == 6
  assert made.candidates == len(candidates)
  assert all(scores in candidates for scores in made.sample.items())
  for one in made.thresholds:
    values = [scores[one.rule.name] for scores in candidates]
    assert one.failing == sum(not one.rule.holds(value) for value in values)
  for name, histogram in made.histograms.items():
    values = [scores[name] for scores, reason in rows if reason != "transition"]
    bins, (low, high) = histogram.bins()
    assert sum(count for *_, count in bins) == len(values)
    assert [n for *_, n in bins] == [sum(a <= v < b for v in values) for a, b, _ in bins]
    widths = {b - a for a, b, _ in bins[1:-1]}
    assert (
      len(bins) <= 64 and len(widths) <= 1 and all((high - low) / width <= 64 for width in widths)
    )
    assert bins[0][1] > low and bins[-1][0] < high
    assert sum(not low <= value < high for value in values) <= 0.01 * len(values)
    marked = histogram.bins(values)
    assert (marked[0][0][0], marked[0][-1][1]) == marked[1]
    assert (histogram.low, histogram.high) == (min(values), max(values))
