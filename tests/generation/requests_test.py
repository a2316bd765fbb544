"""Requests are read as written in the file, and impossible ones are rejected by their number."""

import json
import locale

import pytest

from walt_t5x.generation.requests import (
  Request,
  check_requests,
  make_requests,
  read_prompts,
  read_requests,
)


@pytest.fixture
def media(tmp_path):
  for name in ("a.png", "b.mp4"):
    (tmp_path / name).write_bytes(b"media")
  return {"image": str(tmp_path / "a.png"), "video": str(tmp_path / "b.mp4")}


def _write(folder, *rows):
  file = folder / "requests.jsonl"
  file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
  return str(file)


def test_a_request_has_conditioning_media_and_reports_its_set_fields():
  assert (Request().kind, Request().file, Request().as_dict()) == (None, None, {})
  picture, clip = Request(prompt="p", image="a.png"), Request(label=0, video="b.mp4")
  assert (picture.kind, picture.file) == ("image", "a.png")
  assert (clip.kind, clip.file) == ("video", "b.mp4")
  assert picture.as_dict() == {"prompt": "p", "image": "a.png"}
  # Class 0 is a valid class.
  assert clip.as_dict() == {"label": 0, "video": "b.mp4"}


def test_prompts_are_those_of_the_flag_then_the_lines_of_the_file(tmp_path):
  file = tmp_path / "prompts.txt"
  file.write_text("\n  c \n\nd\n")
  assert read_prompts([" a", "b "], str(file)) == ["a", "b", "c", "d"]
  assert read_prompts(["a"], None) == ["a"] and read_prompts([], None) == []
  with pytest.raises(ValueError, match="prompt 1 of 3 is empty"):
    read_prompts([""], str(file))
  file.write_bytes("ä".encode("latin-1"))
  with pytest.raises(ValueError, match="is not UTF-8 text"):
    read_prompts([], str(file))


def test_prompts_are_read_as_utf_8_in_any_locale(tmp_path):
  file = tmp_path / "prompts.txt"
  file.write_text("été\n", encoding="utf-8")
  before = locale.setlocale(locale.LC_CTYPE)
  locale.setlocale(locale.LC_CTYPE, "C")
  try:
    assert read_prompts([], str(file)) == ["été"]
  finally:
    locale.setlocale(locale.LC_CTYPE, before)


def test_a_file_of_requests_is_read_line_by_line(tmp_path):
  rows = ({"prompt": "a", "label": 0}, "", {"image": "x.png", "video": None}, {"video": "/v.mp4"})
  assert read_requests(_write(tmp_path, *rows)) == [
    Request(prompt="a", label=0),
    Request(image=str(tmp_path / "x.png")),
    Request(video="/v.mp4"),
  ]
  for empty in ("", "\n \n"):
    with pytest.raises(ValueError, match="has no request"):
      read_requests(_write(tmp_path, empty))
  # The number is that of the line, including blank lines.
  with pytest.raises(ValueError, match=r"jsonl:3 has prompt \['b'\], expected a string"):
    read_requests(_write(tmp_path, {"prompt": "a"}, "", {"prompt": ["b"]}))
  with pytest.raises(ValueError, match="has prompt True, expected a string"):
    read_requests(_write(tmp_path, {"prompt": True}))


def test_prompts_share_their_media_and_no_prompt_is_one_request():
  assert make_requests(["a", "b"], image="i") == [Request(prompt=p, image="i") for p in "ab"]
  assert make_requests([], video="v") == [Request(video="v")]


def test_required_inputs_are_checked(media):
  check_requests([Request(prompt="a"), Request(prompt="b")], text=True, classes=0)
  check_requests([Request(label=label) for label in (0, 1, 2)], text=False, classes=3)
  check_requests([Request(prompt="a", label=0)], text=True, classes=1)
  for kind, file in media.items():
    check_requests([Request(prompt=p, **{kind: file}) for p in "ab"], text=True, classes=0)


@pytest.mark.parametrize(
  ("request_", "needs", "message"),
  [
    ({"prompt": " "}, {"text": True}, "request 1 has no prompt"),
    ({"label": 3}, {"classes": 3}, "request 1 has label 3, expected 0 to 2"),
    ({"label": -1}, {"classes": 3}, "request 1 has label -1"),
    ({}, {"classes": 3}, "request 1 has label None"),
    ({"label": 0}, {}, "request 1 has a label, but the stages have no classes"),
  ],
)
def test_impossible_requests_are_rejected_by_their_number(request_, needs, message):
  needs = {"text": False, "classes": 0} | needs
  good = {"prompt": "a"} | ({"label": 0} if needs["classes"] else {})
  with pytest.raises(ValueError, match=message):
    check_requests([Request(**good), Request(**request_)], **needs)


def test_conditioning_media_are_of_one_kind_and_exist(media, tmp_path):
  def check(*requests):
    check_requests([Request(**request) for request in requests], text=False, classes=0)

  with pytest.raises(ValueError, match="request 0 has an image and a video"):
    check(media)
  with pytest.raises(ValueError, match=r"request 0 starts from .*, which does not exist"):
    check({"video": str(tmp_path / "no.mp4")})
  with pytest.raises(ValueError, match=r"\(0 from image, 2 from noise\)"):
    check({"image": media["image"]}, {"image": media["image"]}, {})
