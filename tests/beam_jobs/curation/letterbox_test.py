"""Bars are cut and dark scenes are not; every program reads the clips that are cropped."""

import io
import json
import os
import types

import numpy as np
import pytest
from PIL import Image, ImageDraw

from beam_jobs import curate, preprocess, replay, verify
from beam_jobs.curation import captions, clip_frames, letterbox, page, parts, scanning, thumbnails
from beam_jobs.curation.letterbox import Letterbox
from beam_jobs.shards.loading import DecodeSettings
from beam_jobs.sources.rows import parse_line
from data import schema, tfrecord
from tests.media.awkward_media_test import LOSSLESS, encode
from walt_t5x.html import inspection
from walt_t5x.media.clips import ClipSpec
from walt_t5x.media.decoding import decode
from walt_t5x.media.geometry import EVERYTHING, pixels_of

pytest.importorskip("scenedetect")
HEIGHT, WIDTH = 96, 128
# Of the picture in the film of the corpus.
BOX = (20, 76, 0, 128)


def scenes(count: int, height: int, width: int, *, seed: int = 0) -> list[np.ndarray]:
  """Frames of noise in blocks, none of them black, that move."""
  blocks = np.random.default_rng(seed).integers(60, 256, (height // 8 + 9, width // 8 + 9, 3))
  large = blocks.repeat(8, 0).repeat(8, 1).astype(np.uint8)
  return [large[k : k + height, k : k + width] for k in range(count)]


def framed(shot, box, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
  """The pictures at a box of black frames."""
  top, bottom, left, right = box
  frames = np.zeros((len(shot), height, width, 3), np.uint8)
  frames[:, top:bottom, left:right] = [p[: bottom - top, : right - left] for p in shot]
  return [*frames]


@pytest.mark.parametrize("seed", range(12))
def test_bars_are_cut_without_a_line_of_them_and_with_hardly_any_of_the_picture(seed):
  random = np.random.default_rng(seed)
  height, width = (int(n) for n in 2 * random.integers(50, 200, 2))
  side = int(random.choice([64, 128]))
  bars = [int(random.choice([0, random.uniform(0.04, 0.2)]) * n) for n in (height, width)]
  box = (bars[0], height - bars[0], bars[1], width - bars[1])
  shot = framed(scenes(4, height, width, seed=seed), box, height, width)
  content = encode(shot, codec="libx264", pix_fmt="yuv420p", container="mp4")
  (chunk,) = scanning.scan(content, scanning.ScanSpec(side=side))
  found = pixels_of(letterbox.look(chunk.frames).picture, (height, width), steps=(2, 2))
  lost = np.multiply(np.subtract(found, box), (1, -1, 1, -1))
  line = min(height, width) / side
  assert all(0 <= one <= (0 if not bars[i // 2] else 2 * line + 2) for i, one in enumerate(lost))


def lamp(frame, k):
  frame.ellipse((20, 10, 108, 86), fill="white")


def sky(frame, k):
  frame.rectangle((0, 40, 127, 95), fill="gray")


def harbor(frame, k):
  frame.rectangle((0, 30, 127, 85), fill="gray")


def window(frame, k):
  frame.rectangle((40, 30, 88, 66), fill="white")


def credits(frame, k):
  for row in range(8):
    indent = (0, 14, 3, 22, 8, 0, 30, 5)[row]
    frame.rectangle((24 + indent, 14 * row - k, 104 - indent, 14 * row - k + 5), fill="white")


def thin(frame, k):
  frame.rectangle((1, 0, 126, 95), fill="white")


def subtitles(frame, k):
  frame.rectangle((0, 20, 127, 75), fill="gray")
  frame.rectangle((30, 80, 90, 88), fill="white")


def nothing(frame, k):
  pass


def firefly(frame, k):
  frame.point((64, 48), fill="white")


@pytest.mark.parametrize(
  "draw",
  [lamp, sky, harbor, window, credits, thin, subtitles, nothing, firefly],
  ids=lambda d: d.__name__,
)
def test_what_may_be_a_dark_scene_is_not_cut(draw):
  frames = []
  for k in range(0, 80, 2):
    picture = Image.new("RGB", (128, 96))
    draw(ImageDraw.Draw(picture), k)
    frames.append(np.asarray(picture))
  found = letterbox.look(np.stack(frames))
  assert found.picture == EVERYTHING
  # What shows nothing is not in the bars of a film.
  assert (found == Letterbox()) == (draw in (nothing, firefly))


def test_an_edge_is_as_long_as_the_picture():
  frames = np.stack(framed(scenes(5, 58, 78), (19, 77, 25, 103)))
  # Two thirds of each edge are lit: less than half of a line of the frame.
  frames[:, :40, :52] = frames[:, 56:, 76:] = 0
  found = letterbox.look(frames).picture
  assert found == pytest.approx((20 / 96, 76 / 96, 26 / 128, 102 / 128), abs=1e-6)
  frames[:, :40, :70] = 0
  assert letterbox.look(frames).picture[:2] == EVERYTHING[:2]


@pytest.mark.parametrize("spilled", [0, 3, 4])
def test_what_coding_spills_into_bars_is_cut_with_them(spilled):
  frames = np.stack(framed(scenes(5, 56, 128), BOX))
  frames[:, 20 - spilled : 20, 30:60] = frames[:, 76 : 76 + spilled, 50:80] = 40
  found = letterbox.look(frames).picture
  line = max(1, spilled)  # Its first line may show the edge of a bar.
  cut = (round((20 - spilled + line) / 96, 6), round((76 + spilled - line) / 96, 6), 0.0, 1.0)
  assert found == (EVERYTHING if spilled > 3 else cut)


def _segments(*seen):
  return [types.SimpleNamespace(start=s, end=e, seen=json.loads(json.dumps(l))) for s, e, l in seen]


def test_a_dark_shot_has_the_crop_of_its_film_if_nothing_lit_is_outside():
  film, lit = (0.2, 0.8, 0.0, 1.0), (0.3, 0.6, 0.4, 0.5)
  other = (0.1, 0.9, 0.0, 1.0)
  seen = [(0, 60, Letterbox(film, film)), (60, 80, Letterbox(other, other))]
  seen += [(80, 90, Letterbox((0.19, 0.6, 0.4, 0.5))), (90, 99, Letterbox(lit))]
  seen += [(99, 120, Letterbox((0.3, 0.83, 0.4, 0.5)))]
  seen += [(120, 130, Letterbox())]
  crops = letterbox.crops_of(_segments(*seen), None, keep_bars=False)
  assert crops == [film, other, film, film, None, None]
  assert letterbox.crops_of(_segments(*seen[2:]), None, keep_bars=False) == [None] * 4
  assert letterbox.crops_of(_segments(*seen), None, keep_bars=True) == [None] * 6
  half = (0.0, 1.0, 0.5, 1.0)
  inside = letterbox.crops_of(_segments(*seen), half, keep_bars=False)
  film, other = (0.2, 0.8, 0.5, 1.0), (0.1, 0.9, 0.5, 1.0)
  assert inside == [film, other, film, film, half, half]


# --- all programs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
  """A film with bars and one without, curated: (folder of the media, output, pictures of the film)."""
  folder = tmp_path_factory.mktemp("letterbox")
  output, shot = folder / "out", scenes(30, 56, 128)
  (folder / "film.mp4").write_bytes(encode(framed(shot, BOX), **LOSSLESS))
  (folder / "plain.mp4").write_bytes(encode(scenes(30, HEIGHT, WIDTH, seed=1), **LOSSLESS))
  lines = [{"uri": f"{name}.mp4", "caption": name} for name in ("film", "plain")]
  (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  _curate(folder / "rows.jsonl", output)
  return folder, output, shot


def _curate(manifest, output, *flags):
  shared = ["--num_parts=1", "--decode_isolation=thread", "--score_side=96", "--page_clips=2"]
  return curate.run([f"--manifest={manifest}", f"--output={output}", *shared, *flags])


def _clips(output):
  lines = (output / parts.CLIPS).read_text().splitlines()
  return {row["uri"]: row for row in map(json.loads, lines)}


def test_clips_with_bars_have_a_crop_unless_they_are_kept(curated, tmp_path):
  folder, output, _ = curated
  clips = _clips(output)
  # A line of the sampled frames, which have the size of the video, is cut with each bar.
  assert clips["film.mp4"]["crop"] == [round(21 / 96, 6), round(75 / 96, 6), 0.0, 1.0]
  assert clips["plain.mp4"]["crop"] is None
  assert json.loads((output / parts.SUMMARY).read_text())["clips_cropped"] == 1
  kept = _curate(folder / "rows.jsonl", tmp_path / "kept", "--keep_bars")
  assert kept["clips_cropped"] == 0
  assert {row["crop"] for row in _clips(tmp_path / "kept").values()} == {None}
  curate.run([f"--output={tmp_path}/kept", "--refilter", "--page_clips=0"])
  assert _clips(tmp_path / "kept") == clips


def test_clips_can_be_curated_again_and_keep_their_crops(curated, tmp_path, monkeypatch):
  folder, output, _ = curated
  shown, thumbnail = {}, page.thumbnail

  def see(path, at, crop):
    shown[os.path.basename(path)] = crop
    return thumbnail(path, at, crop)

  monkeypatch.setattr(page, "thumbnail", see)
  flags = (f"--media_root={folder}", "--duplicates=exact", "--keep=seconds")
  _curate(output / parts.CLIPS, tmp_path / "again", *flags)
  again, before = _clips(tmp_path / "again"), _clips(output)
  crops = {uri: row["crop"] for uri, row in before.items()}
  assert {uri: row["crop"] for uri, row in again.items()} == crops
  # The page has the pictures that scores see.
  assert shown == {uri: crop and tuple(crop) for uri, crop in crops.items()}
  assert again["film.mp4"]["scores"]["bars"] == 0 < before["film.mp4"]["scores"]["bars"]


def test_crops_of_one_moment_are_not_mistaken_for_each_other(curated, tmp_path):
  folder, _, _ = curated
  (tmp_path / "copy.mp4").write_bytes((folder / "film.mp4").read_bytes())
  (tmp_path / "film.mp4").write_bytes((folder / "film.mp4").read_bytes())
  left, right = [0.25, 0.75, 0.0, 0.5], [0.25, 0.75, 0.5, 1.0]
  rows = [("copy.mp4", left), ("film.mp4", left), ("film.mp4", right)]
  lines = [json.dumps({"uri": uri, "crop": crop}) for uri, crop in rows]
  (tmp_path / "rows.jsonl").write_text("\n".join(lines))
  _curate(tmp_path / "rows.jsonl", tmp_path / "out", "--duplicates=exact", "--keep=seconds")
  found = map(json.loads, (tmp_path / "out" / parts.CLIPS).read_text().splitlines())
  assert sorted((row["uri"], row["crop"]) for row in found) == [rows[0], rows[2]]


def test_preprocessing_verification_pages_and_replays_read_cropped_rows(curated, tmp_path):
  folder, output, shot = curated
  rows = [{**row, "captions": [uri]} for uri, row in _clips(output).items()]
  film = next(row for row in rows if row["uri"] == "film.mp4")
  rows += [film | {"crop": [0.3, 0.7, 0.25, 0.75]}, film | {"uri": "late.mp4"}, film]
  rows += [film | {"crop": [0, 720, 0, 1280]}]
  manifest, out = tmp_path / "rows.jsonl", tmp_path / "out"
  manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
  shared = [f"--output={out}", "--task=t", f"--media_root={folder}", "--decode_isolation=thread"]
  flags = ["--content=pixels", "--resolutions=32x32", "--num_frames=5", "--fps=6", "--num_shards=1"]
  done = preprocess.run([f"--manifest={manifest}", *shared, *flags])
  assert done["written"] == 3 and done["rejected_by_reason"] == {"duplicate": 1}
  assert done["dead_by_reason"] == {"bad_crop": 1, "missing": 1}
  (folder / "late.mp4").write_bytes((folder / "film.mp4").read_bytes())
  replay.run([*shared, "--all"])
  assert verify.main([str(out / "t_videos")]) == 0
  found = [
    schema.decode(payload)
    for path in sorted((out / "t_videos").glob("*.tfrecord-*-of-?????"))
    for payload in tfrecord.read_records(io.BytesIO(path.read_bytes()))
  ]
  # The late file is a copy.
  assert len(found) == 4 and len({record.id for record in found}) == 3
  spec = ClipSpec(resolutions=((32, 32),), num_frames=5, fps=6.0)
  boxes = {tuple(film["crop"]): (22, 74, 0, 128), (0.3, 0.7, 0.25, 0.75): (30, 66, 32, 96)}
  pictures, origin = framed(shot, BOX), types.SimpleNamespace(num_frames=5, fps=6.0)
  for record in found:
    (frames,) = record.pixels.values()
    if record.manifest_crop is not None:
      top, bottom, left, right = boxes[record.manifest_crop]
      alone = encode([picture[top:bottom, left:right] for picture in pictures], **LOSSLESS)
      window = {"start_seconds": film["start_seconds"], "end_seconds": film["end_seconds"]}
      np.testing.assert_array_equal(frames, decode(alone, "video", spec, **window).frames[32, 32])
    again = inspection.source_clip(record, [(32, 32)], str(folder), origin)
    np.testing.assert_array_equal(frames, again[32, 32])
  assert sorted(record.uri for record in found) == ["film.mp4"] * 2 + ["late.mp4", "plain.mp4"]


def _shown_to_a_model(row, *, count, side):
  job = captions.CaptionJob(
    output="",
    media_root="",
    allowed=(),
    model="",
    prompts=(),
    frames=count,
    side=side,
    parameters={},
    checks=captions.Checks(),
    attempts=1,
    decoding=DecodeSettings(isolation="thread"),
  )
  captioner = captions.Captioner(job, None)
  frames = captioner._frames(row)
  captioner.close()
  return frames


def test_models_and_pages_see_the_crop(curated):
  folder, _, shot = curated
  film = (folder / "film.mp4").read_bytes()
  alone = encode([picture[2:54, 16:112] for picture in shot], **LOSSLESS)
  crop = (22 / 96, 74 / 96, 0.125, 0.875)
  options = {"count": 3, "side": 64}
  seen = clip_frames.jpegs(film, "video", crop=crop, **options)
  assert seen == clip_frames.jpegs(alone, "video", **options)
  line = json.dumps({"uri": "film.mp4", "crop": crop})
  assert _shown_to_a_model(parse_line(line, str(folder)), **options) == seen
  small = thumbnails.thumbnail(film, 500_000, crop)
  np.testing.assert_array_equal(small, thumbnails.thumbnail(alone, 500_000))
  stream, part = io.BytesIO(), io.BytesIO()
  Image.fromarray(shot[0]).save(stream, "PNG")
  Image.fromarray(shot[0]).crop((16, 7, 112, 49)).save(part, "PNG")
  edges = (7 / 56, 49 / 56, 0.125, 0.875)
  seen = clip_frames.jpegs(stream.getvalue(), "image", crop=edges, **options)
  assert seen == clip_frames.jpegs(part.getvalue(), "image", **options)
