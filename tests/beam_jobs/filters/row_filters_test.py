"""Rules on constructed rows, duplicates against brute force, and the counters of a complete job."""

import io
import json
import operator

import numpy as np
import pytest
from PIL import Image

from beam_jobs import preprocess
from beam_jobs.filters import duplicates, row_filters
from beam_jobs.sources.rows import parse_line
from tests.beam_jobs import media
from tests.beam_jobs.conftest import write_manifest
from walt_t5x.media.clips import ClipSpec
from walt_t5x.media.decoding import decode
from walt_t5x.media.rules import Rejected, Rule

OPERATORS = {
  "<": operator.lt,
  "<=": operator.le,
  ">": operator.gt,
  ">=": operator.ge,
  "==": operator.eq,
  "!=": operator.ne,
}


def row(**fields):
  return parse_line(json.dumps({"uri": "a.mp4", "caption": "one two three"} | fields), "")


@pytest.mark.parametrize("op", OPERATORS)
def test_a_rule_is_its_operator(op):
  rule = Rule.parse(f" score {op} -1.5e0")
  for value in (-2, -1.5, 0, float("nan")):
    assert rule.holds(value) == OPERATORS[op](value, -1.5)
  assert rule.reason == f"score{op}-1.5"


@pytest.mark.parametrize(
  "text", ["", "a>", ">5", "a=5", "a>>5", "a>five", "a>nan", "a b>5", "a>5>6"]
)
def test_a_text_that_is_not_a_rule_is_rejected(text):
  with pytest.raises(ValueError, match="expected NAME OP NUMBER"):
    Rule.parse(text)


@pytest.mark.parametrize(
  ("fields", "rule", "reason"),
  [
    ({"aesthetic": 5}, "aesthetic>=5", None),
    ({"aesthetic": 4.9}, "aesthetic>=5", "aesthetic>=5"),
    ({"aesthetic": "5.5"}, "aesthetic>=5", None),
    ({"scores": {"aesthetic": 4}}, "aesthetic>=5", "aesthetic>=5"),
    ({"scores": {"aesthetic": 6}}, "aesthetic>=5", None),
    ({}, "aesthetic>=5", "no_aesthetic"),
    ({"aesthetic": None}, "aesthetic<5", "no_aesthetic"),
    ({"aesthetic": "high"}, "aesthetic<5", "no_aesthetic"),
    ({"aesthetic": True}, "aesthetic<5", "no_aesthetic"),
    ({}, "caption_words>=3", None),
    ({}, "caption_words>3", "caption_words>3"),
    ({}, "caption_chars<=13", None),
    ({}, "caption_chars<13", "caption_chars<13"),
    ({"caption": None, "label": 3}, "caption_words>=3", None),
    ({}, "height>=9999", None),
    ({}, "motion>=1", None),
  ],
)
def test_rules_on_the_manifest(fields, rule, reason):
  found = None
  try:
    row_filters.check_row(row(**fields), [Rule.parse(rule)])
  except Rejected as rejection:
    found = rejection.reason
  assert found == reason


def test_a_short_caption_is_dropped_and_the_others_keep_their_weights():
  several = row(caption=None, captions=["a", "b c d", "e f g h"], caption_weights=[1, 2, 0])
  kept = row_filters.check_row(several, [Rule.parse("caption_words>=3")])
  assert (kept.captions, kept.caption_weights) == (("b c d", "e f g h"), (2.0, 0.0))
  with pytest.raises(Rejected, match=r"\[3, 4\]"):
    # The remaining captions have no weight.
    row_filters.check_row(kept, [Rule.parse("caption_words>=4")])


def test_header_rules_come_before_decoding(monkeypatch):
  import av

  spec = ClipSpec(resolutions=((16, 16),), num_frames=5, fps=6.0)
  content = media.video(height=48, width=96)
  facts = {"height": 48, "width": 96, "short_side": 48, "aspect": 2, "seconds": 2, "source_fps": 12}
  for name, value in facts.items():
    decode(content, "video", spec, rules=[Rule(name, "==", value)])
    with pytest.raises(Rejected) as error:
      decode(content, "video", spec, rules=[Rule(name, "!=", value)])
    assert error.value.reason == f"{name}!={value}"
  decoded = []
  convert = av.VideoFrame.to_ndarray
  monkeypatch.setattr(
    "walt_t5x.media.decoding._Resizer.__call__",
    lambda self, frame: decoded.append(convert(frame)),
  )
  with pytest.raises(Rejected):
    decode(content, "video", spec, rules=[Rule("aspect", "<", 2)])
  assert not decoded


def test_rules_of_videos_pass_images_and_shape_rules_do_not():
  spec = ClipSpec(resolutions=((16, 16),), num_frames=5, fps=6.0)
  picture = media.image(height=48, width=96)
  decode(picture, "image", spec, rules=[Rule("seconds", ">", 99), Rule("source_fps", ">", 99)])
  for rule in ("aspect<=1.9", "height>48", "pixels<4608", "short_side!=48"):
    with pytest.raises(Rejected) as error:
      decode(picture, "image", spec, rules=[Rule.parse(rule)])
    assert error.value.reason == rule


# --- duplicates -----------------------------------------------------------------------------------


def photo(seed: int, size: int = 64) -> np.ndarray:
  """A smooth image of random colors."""
  coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3)).astype(np.uint8)
  return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def test_the_hash_is_the_sign_of_adjacent_cell_means():
  picture = photo(0, 72)
  luma = np.asarray(Image.fromarray(picture).convert("L"), float)
  across = luma.reshape(8, 9, 9, 8).mean(axis=(1, 3))
  down = luma.reshape(9, 8, 8, 9).mean(axis=(1, 3))
  gaps = np.concatenate([np.diff(across, axis=1).ravel(), np.diff(down, axis=0).ravel()])
  bits = np.unpackbits(duplicates.difference_hash(picture).view(np.uint8))
  clear = np.abs(gaps) > 1  # Pillow rounds the means.
  assert clear.sum() > 100
  np.testing.assert_array_equal(bits[clear], gaps[clear] > 0)


def test_other_compression_size_and_light_are_near_and_other_pictures_far():
  pictures = [photo(seed) for seed in range(40)]
  squeezed = []
  for picture in pictures:
    stream = io.BytesIO()
    Image.fromarray(picture).resize((48, 48)).save(stream, "JPEG", quality=40)
    squeezed.append(np.asarray(Image.open(stream)) // 4 * 3 + 20)
  first = [duplicates.perceptual_hash(picture[None]) for picture in pictures]
  second = [duplicates.perceptual_hash(picture[None]) for picture in squeezed]
  bits = np.stack([np.unpackbits(hashes.view(np.uint8), axis=-1) for hashes in first + second])
  between = (bits[:, None] != bits[None]).sum(axis=-1).max(axis=-1)
  same = between[range(40), range(40, 80)]
  assert same.max() <= 12
  other = between[:40, :40][~np.eye(40, dtype=bool)]
  assert other.min() > 24


def test_near_duplicates_are_those_of_brute_force():
  random = np.random.default_rng(1)
  clips = []
  for k in range(150):
    base = (
      clips[random.integers(k)]
      if k and random.random() < 0.5
      else np.stack([photo(3 * k + i, 36) for i in range(3)])
    )
    clips.append(np.clip(base + random.normal(0, 4, base.shape), 0, 255).astype(np.uint8))
  seen = duplicates.Seen("near", 10)
  kept: list[int] = []
  for k, clip in enumerate(clips):
    hashes = duplicates.perceptual_hash(clip)
    near = [
      other
      for other in kept
      if max(
        bin(int(a) ^ int(b)).count("1") + bin(int(c) ^ int(d)).count("1")
        for (a, c), (b, d) in zip(hashes, duplicates.perceptual_hash(clips[other]))
      )
      <= 10
    ]
    try:
      seen.check(f"{k}", f"{k}", {(36, 36): clip})
      assert not near
      kept.append(k)
    except Rejected as rejection:
      assert rejection.reason == "near_duplicate"
      assert f"from {near[0]}," in str(rejection)
  assert 64 < len(kept) < 140  # The table has grown once.


def test_a_clip_is_near_only_if_each_of_its_pictures_is():
  still, cut = np.stack([photo(1)] * 9), np.stack([photo(1)] * 8 + [photo(2)])
  seen = duplicates.Seen("near", 6)
  seen.check("a", "a", {(64, 64): still})
  seen.check("b", "b", {(64, 64): cut})
  with pytest.raises(Rejected, match="0 of 128 bits from a"):
    seen.check("c", "c", {(64, 64): still})


def test_every_filter_has_its_counter_in_a_job(tmp_path):
  def save(name, content):
    (tmp_path / name).write_bytes(content)
    return {"uri": name, "caption": f"a clip named {name}", "aesthetic": 6}

  clip = media.video(height=40, width=40, noise=20)
  rows = [
    save("good.mp4", clip) | {"group": 1},
    save("same.mp4", clip) | {"group": 1},
    save("similar.mp4", media.video(height=40, width=40, noise=22)) | {"group": 1},
    save("wide.mp4", media.video(height=32, width=96)),
    save("still.mp4", media.video(step=0)),
    save("low.mp4", media.video(height=34, width=34, seed=4)),
    save("long.mp4", media.video(num_frames=60)),
    save("short.mp4", media.video(num_frames=6)),
    save("small.mp4", media.video(height=16, width=24)),
    save("slow.mp4", media.video(fps=2, num_frames=6)),
    save("ugly.mp4", clip) | {"aesthetic": 4},
    save("mute.mp4", clip) | {"caption": "x"},
    save("unscored.mp4", clip) | {"aesthetic": None},
  ]
  flags = [
    f"--manifest={write_manifest(tmp_path, rows)}",
    f"--output={tmp_path / 'out'}",
    "--task=t",
    "--content=pixels",
    "--resolutions=32x32",
    "--num_frames=5",
    "--num_shards=2",
    "--decode_isolation=thread",
    "--duplicates=near",
    "--min_motion=0.001",
  ]
  rules = ("aspect<=2.5", "height!=34", "seconds<=4", "aesthetic>=5", "caption_words>=2")
  result = preprocess.run([*flags, *(f"--filter={rule}" for rule in rules)])
  assert result["rejected_by_reason"] == {
    "aesthetic>=5": 1,
    "aspect<=2.5": 1,
    "caption_words>=2": 1,
    "exact_duplicate": 1,
    "height!=34": 1,
    "low_frame_rate": 1,
    "low_motion": 1,
    "near_duplicate": 1,
    "no_aesthetic": 1,
    "seconds<=4": 1,
    "too_short": 1,
    "too_small": 1,
  }
  assert (result["rows"], result["written"], result["dead"]) == (13, 1, 0)
