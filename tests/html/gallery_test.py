"""The gallery: one page without external requests, whose media decode to the clips."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from tests.html.html_page import Page
from walt_t5x.html import gallery
from walt_t5x.media import geometry, pixels, reading


def _clip(num_frames=9, size=32, shade=0.8):
  video = np.full((num_frames, size, size, 3), 0.1, np.float32)
  for index in range(num_frames):
    video[index, 8:16, index : index + 8] = (shade, 0.2, 0.2)
  return video


def _item(prompt="a red square moves right", **fields):
  stages = fields.pop("stages", [gallery.ShownClip(name="base", frames=_clip())])
  return gallery.GalleryItem(prompt=prompt, stages=stages, **fields)


def _write(path, items, **options):
  return Page(gallery.write_gallery(path, items, **options).read_text(encoding="utf-8"))


def _content(uri):
  head, _, body = uri.partition(",")
  assert head.startswith("data:") and head.endswith(";base64")
  return base64.b64decode(body, validate=True)


def test_the_page_requests_nothing_external(tmp_path):
  path = tmp_path / "sub" / "page.html"
  page = _write(path, [_item(), _item(stages=[gallery.ShownClip(name="x", frames=_clip(1))])])
  for _, attrs in page.tags:
    for name in ("src", "href", "poster", "srcset", "action"):
      assert attrs.get(name, "data:").startswith("data:")
  text = path.read_text(encoding="utf-8")
  assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttp", text)
  policy = next(a["content"] for a in page.of("meta") if "http-equiv" in a)
  assert policy.startswith("default-src 'none'")
  assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_videos_contain_the_clips_enlarged_by_an_integer_factor(tmp_path):
  page = _write(tmp_path / "page.html", [_item()])
  (video,) = page.of("video")
  assert {"autoplay", "loop", "muted", "playsinline"} <= set(video)
  frames, fps = reading.read_video(_content(video["src"]))
  assert frames.shape == (9, 192, 192, 3) and fps == pytest.approx(8)
  small = frames[:, 3::6, 3::6].astype(float) / 255
  assert np.abs(small - _clip()).mean() < 0.03
  poster = np.asarray(Image.open(io.BytesIO(_content(video["poster"]))))
  np.testing.assert_array_equal(poster, geometry.upscale(pixels.clip_to_uint8(_clip())[:1], 6)[0])


def test_webp_pages_contain_animations(tmp_path):
  page = _write(tmp_path / "page.html", [_item()], media="webp")
  assert not page.of("video")
  (image,) = page.of("img")
  with Image.open(io.BytesIO(_content(image["src"]))) as animation:
    assert animation.format == "WEBP" and animation.n_frames == 9
    assert animation.info["loop"] == 0


def test_a_single_frame_is_a_lossless_image(tmp_path):
  item = _item(stages=[gallery.ShownClip(name="base", frames=_clip(1, size=200))])
  (image,) = _write(tmp_path / "page.html", [item]).of("img")
  got = np.asarray(Image.open(io.BytesIO(_content(image["src"]))))
  np.testing.assert_array_equal(got, pixels.clip_to_uint8(_clip(1, size=200))[0])


def test_stages_are_in_order_with_their_sizes(tmp_path):
  stages = [
    gallery.ShownClip(name="base", frames=_clip()),
    gallery.ShownClip(name="SR 1", frames=_clip(17, 64), fps=16.0),
  ]
  page = _write(tmp_path / "page.html", [_item(stages=stages, seed=7, step=2000)])
  assert page.words("b") == ["base", "SR 1"]
  assert page.words("figcaption") == [" 9×32×32, 8\u00a0fps", " 17×64×64, 16\u00a0fps"]
  assert "seed 7 · step 2000" in page.words("span")


def test_verdicts_are_shown_counted_and_filterable(tmp_path):
  both = [gallery.ShownClip(name=name, frames=_clip()) for name in ("base", "sr1")]
  items = [
    _item(verdict={"base": {"color": True, "shape": True}}),
    _item(
      stages=both,
      verdict={"base": {"color": np.bool_(True)}, "sr1": {"shape": np.bool_(False), "color": True}},
    ),
    _item(verdict={"base": {"color": False}}),
    _item(verdict={"base": {}}),
    _item(),
  ]
  page = _write(tmp_path / "page.html", items)
  states = [attrs["data-verdict"] for attrs in page.of("article")]
  assert states == ["right", "wrong", "wrong", "none", "none"]
  badges = [text for text in page.words("span") if text[:1] in "✓✗"]
  assert badges == ["✓ color", "✓ shape", "✓ color", "✗ shape", "✓ color", "✗ color"]
  (script,) = page.words("script")
  assert 'const shares = ["base: color 2/3, shape 1/1", "sr1: shape 0/1, color 1/1"];' in script


def test_a_card_has_the_number_of_its_sample_and_the_names_of_its_files(tmp_path):
  stages = [
    gallery.ShownClip(name=name, frames=_clip(), file=f"00000_{name}.mp4") for name in ("a", "b")
  ]
  page = _write(tmp_path / "page.html", [_item("first", stages=stages, number=0), _item("second")])
  names = [attrs["data-name"] for attrs in page.of("button") if "data-name" in attrs]
  assert names == ["00000_a.mp4", "00000_b.mp4"]
  assert [f"{name} ↓" for name in names] == [t for t in page.words("button") if "." in t]
  numbers = [attrs for attrs in page.of("span") if attrs.get("class") == "number"]
  assert len(numbers) == 1 and "#0" in page.words("span")
  # Clips of one card are kept in step by frames of this length.
  assert [attrs["data-fps"] for attrs in page.of("video")] == ["8", "8", "8"]


def test_a_playable_file_is_embedded_unchanged_and_others_are_saved_under_the_name_of_their_encoding(
  tmp_path,
):
  # Any bytes: the file is not decoded.
  (tmp_path / "0_a.webm").write_bytes(b"webm")
  stages = [
    gallery.ShownClip(name="a", frames=_clip(), file="0_a_frames", playable=tmp_path / "0_a.webm"),
    gallery.ShownClip(name="b", frames=_clip(), file="0_b.gif"),
    gallery.ShownClip(name="c", frames=_clip(1), file="0_c_frames"),
  ]
  page = _write(tmp_path / "page.html", [_item(stages=stages)])
  first, second = page.of("video")
  assert first["src"].startswith("data:video/webm;") and _content(first["src"]) == b"webm"
  assert reading.read_video(_content(second["src"])).frames.shape == (9, 192, 192, 3)
  names = [attrs["data-name"] for attrs in page.of("button") if "data-name" in attrs]
  assert names == ["0_a.webm", "0_b.mp4", "0_c_frames.png"]


def test_every_card_takes_the_focus_and_copies_its_prompt(tmp_path):
  page = _write(tmp_path / "page.html", [_item("A  red\nsquare"), _item("b")])
  assert [attrs["tabindex"] for attrs in page.of("article")] == ["0", "0"]
  assert not page.missing_elements()
  actions = [
    (a["data-action"], a.get("data-text")) for a in page.of("button") if "data-action" in a
  ]
  assert actions == [
    ("copy", "A  red\nsquare"),
    ("enlarge", None),
    ("copy", "b"),
    ("enlarge", None),
  ]


def test_remarks_are_above_the_cards(tmp_path):
  page = _write(tmp_path / "page.html", [_item()], remarks={"Only <here>": ["<one>", "two"]})
  assert page.words("summary") == ["Only <here>"] and page.words("li") == ["<one>", "two"]
  names = [tag for tag, _ in page.tags]
  assert names.index("details") < names.index("article")


def test_prompts_cannot_inject(tmp_path):
  evil = '"><script>alert(1)</script><img src=http://x> & "quotes"'
  item = _item(evil, verdict={"base": {"</script><u>": True}}, details={"<i>": "<u>"})
  page = _write(tmp_path / "page.html", [item], title="<i>title</i>")
  assert page.words("h2") == [evil] and page.words("h1") == ["<i>title</i>"]
  assert page.of("article")[0]["data-text"] == evil.lower()
  assert len(page.of("script")) == 1
  assert not page.of("i") and not page.of("u") and not page.of("img")


def test_items_are_consumed_one_at_a_time_and_a_failure_keeps_the_old_page(tmp_path):
  path = tmp_path / "page.html"
  _write(path, [_item("first")])
  before = path.read_bytes()

  def broken():
    yield _item("second")
    raise RuntimeError("the model stopped")

  with pytest.raises(RuntimeError, match="stopped"):
    gallery.write_gallery(path, broken())
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_wrong_arguments_are_named(tmp_path):
  with pytest.raises(ValueError, match="at least one item"):
    gallery.write_gallery(tmp_path / "a.html", [])
  with pytest.raises(ValueError, match="no stages"):
    gallery.write_gallery(tmp_path / "a.html", [_item(stages=[])])
  with pytest.raises(ValueError, match="'mp4' or 'webp'"):
    gallery.write_gallery(tmp_path / "a.html", [_item()], media="ogg")
  with pytest.raises(ValueError, match=r"\.html"):
    gallery.write_gallery(tmp_path / "a.txt", [_item()])
  assert not list(tmp_path.iterdir())
