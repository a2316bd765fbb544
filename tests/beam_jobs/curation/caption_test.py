"""Every clip gets one caption per prompt or is dead, no answer is paid for twice, and the key is nowhere."""

import collections
import io
import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from beam_jobs import caption, preprocess
from beam_jobs.curation import captions, chat, clip_frames
from tests.beam_jobs.curation.chat_server import KINDS, ChatServer, describe, frame_of, frames_of
from tests.beam_jobs.curation.conftest import tool
from walt_t5x.media.reading import MediaError

KEY = "sk-secret-0123456789abcdef"
PROMPTS = ("Describe the video in one sentence.", "What moves?=0.25")
RESULTS = (caption.CLIPS, caption.DEAD, caption.SUMMARY)
CLIPS, FPS, CONCURRENCY = 24, 10, 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """A video whose frame n is gray of level 2 n, and a manifest of clips of four frames each, and of faults."""
  folder = tmp_path_factory.mktemp("clips")
  graph = f"color=c=black:s=64x48:r={FPS}:d={4 * CLIPS / FPS},format=gbrp,geq=r=2*N:g=2*N:b=2*N"
  command = [
    "ffmpeg",
    "-v",
    "error",
    "-f",
    "lavfi",
    "-i",
    graph,
    "-c:v",
    "ffv1",
    "-pix_fmt",
    "bgr0",
  ]
  tool(*command, str(folder / "gray.mkv"))
  rows = []
  for number in range(CLIPS):
    row = {"uri": "gray.mkv", "start_seconds": 4 * number / FPS}
    rows.append(row | {"end_seconds": 4 * (number + 1) / FPS, "group": "g", "extra": number})
  rows[3] |= {"caption": "as it was"}
  rows += [{"uri": "missing.mp4"}, {"uri": "gray.mkv", "start_seconds": 90.0}, {"uri": 3}]
  rows += [{"uri": "gray.mkv", "label": "x"}]
  rows.insert(1, rows[0] | {"extra": "twice"})
  (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return folder


def _flags(corpus, output, url, *flags, prompts=PROMPTS):
  shared = ["--model=gray", "--request_timeout=1", "--decode_isolation=thread", "--frames=2"]
  shared += [f"--concurrency={CONCURRENCY}", "--language=latin", f"--captioner={url}"]
  shared += [f"--prompt={prompt}" for prompt in prompts]
  return [f"--clips={corpus}/clips.jsonl", f"--output={output}", *shared, *flags]


def _lines(output, name):
  return [json.loads(line) for line in (pathlib.Path(output) / name).read_text().splitlines()]


def _bytes(output):
  return {name: (pathlib.Path(output) / name).read_bytes() for name in RESULTS}


def _expected(number, prompt):
  """The caption of a clip: its frames are those in the middle of its halves."""
  return f"Gray frames {4 * number + 1} {4 * number + 3} answer {prompt.partition('=')[0]}"


@pytest.fixture(autouse=True)
def key(monkeypatch):
  monkeypatch.setenv("WALT_CAPTIONER_KEY", KEY)
  monkeypatch.setattr(captions, "FIRST_PAUSE", 0.02)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
  """(folder, result, server) of a run that nothing interrupts, with all kinds of faults."""
  output = tmp_path_factory.mktemp("captioned") / "out"
  with pytest.MonkeyPatch.context() as patch, ChatServer(rate=0.05) as server:
    patch.setenv("WALT_CAPTIONER_KEY", KEY)
    patch.setattr(captions, "FIRST_PAUSE", 0.02)
    printed = caption.run(_flags(corpus, output, server.url))
    server.wait_until_idle()
  return output, printed, server


def test_every_row_has_one_caption_per_prompt_or_is_dead(corpus, finished):
  output, printed, server = finished
  assert set(KINDS) <= set(server.faults)
  rows = _lines(corpus, "clips.jsonl")
  texts = [prompt.partition("=")[0] for prompt in PROMPTS]
  expected = []
  for row in rows[: CLIPS + 1]:
    old = [row.pop("caption")] if "caption" in row else []
    new = [_expected(round(row["start_seconds"] * FPS / 4), prompt) for prompt in texts]
    expected.append(
      row | {"captions": old + new, "caption_weights": [1.0] * len(old) + [1.0, 0.25]}
    )
  assert _lines(output, caption.CLIPS) == expected
  dead = _lines(output, caption.DEAD)
  assert [row["reason"] for row in dead] == ["missing", "truncated", "bad_uri", "bad_label"]
  told = ("stage", "reason", "message")
  kept = [{name: value for name, value in row.items() if name not in told} for row in dead]
  assert kept == rows[CLIPS + 1 :]
  assert printed["rows"] == len(rows) == printed["captioned"] + sum(printed["dead"].values())


def test_each_answer_is_asked_for_once_and_a_rerun_asks_for_nothing(corpus, finished):
  output, _, server = finished
  answered = [key for _, key, _, said in server.log if said.startswith("answer ")]
  assert len(answered) == len(set(answered))
  before = _bytes(output)
  with ChatServer() as unused:
    again = caption.run(_flags(corpus, output, unused.url, "--max_words=20"))
    assert unused.log == [] and again["requests"] == 0 and _bytes(output) == before
    assert {sent for _, _, sent, _ in server.log} == {f"Bearer {KEY}"}


def test_captions_that_rows_have_are_kept_or_replaced(corpus, finished, tmp_path):
  shutil.copytree(finished[0], tmp_path / "out")
  flags = ["--replace_captions", "--max_requests=0"]
  caption.run(_flags(corpus, tmp_path / "out", "http://127.0.0.1:1/v1", *flags))
  before, after = (_lines(folder, caption.CLIPS) for folder in (finished[0], tmp_path / "out"))
  assert [len(row["captions"]) for row in before] == [2, 2, 2, 2, 3, *[2] * (CLIPS - 4)]
  for name in ("captions", "caption_weights"):
    assert [row[name] for row in after] == [row[name][-2:] for row in before]


def test_a_row_that_is_lost_is_an_error(corpus, finished, tmp_path, monkeypatch, capsys):
  shutil.copytree(finished[0], tmp_path / "out")
  pairs = caption._in_order
  monkeypatch.setattr(caption, "_in_order", lambda *args: list(pairs(*args))[1:])
  assert caption.main(_flags(corpus, tmp_path / "out", "http://127.0.0.1:1/v1")) == 1
  assert f"had {CLIPS + 5} rows, of which {CLIPS} have captions" in capsys.readouterr().err


def test_another_prompt_asks_only_for_its_captions(corpus, finished, tmp_path):
  shutil.copytree(finished[0], tmp_path / "out")
  with ChatServer() as server:
    caption.run(_flags(corpus, tmp_path / "out", server.url, prompts=["What is it?", *PROMPTS]))
  assert len(server.log) == CLIPS and all(text.endswith("What is it?") for text in server.texts())


@pytest.mark.parametrize("flag", ["model=x", "side=32", "frames=1", 'parameters={"seed": 1}'])
def test_other_models_and_settings_ask_again(corpus, finished, tmp_path, flag):
  shutil.copytree(finished[0], tmp_path / "out")
  with ChatServer() as server:
    caption.run(_flags(corpus, tmp_path / "out", server.url, f"--{flag}", "--max_requests=1"))
    assert len(server.log) == 1


def test_a_killed_program_ends_with_the_same_bytes_and_loses_at_most_the_answers_in_flight(
  corpus, finished, tmp_path
):
  output, random_number = tmp_path / "out", random.Random(1)
  lost, printed = [], b""
  with ChatServer(rate=0.05) as server:
    flags = _flags(corpus, output, server.url)
    command = [sys.executable, "-B", "-m", "beam_jobs.caption", *flags]
    for kill in (True, True, True, False):
      before, answers = len(server.log), len(server.texts())
      process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
      wanted = before + random_number.randint(4, 14)
      while kill and len(server.log) < wanted and process.poll() is None:
        time.sleep(0.002)
      if kill:
        process.send_signal(signal.SIGKILL)
      said, _ = process.communicate(timeout=60)
      printed += said
      assert process.returncode == (-signal.SIGKILL if kill else 0), said.decode()
      server.wait_until_idle()
      (output / "caption.lock").unlink(missing_ok=True)  # Or the next run looks for its holder.
      stored = "".join(path.read_text() for path in output.rglob("answers/*/*.json"))
      missing = {text for text in server.texts()[answers:] if json.dumps(text) not in stored}
      assert len(missing) <= CONCURRENCY if kill else not missing
      lost += missing
  assert _bytes(output) == _bytes(finished[0])
  # Equal texts are of different clips only if they are in the wrong language.
  counts = collections.Counter(text for text in server.texts() if text.startswith("Gray"))
  assert len(counts) == 2 * CLIPS
  # What is asked again after a kill has the same key, by which the server may know it.
  pairs = {(key, said) for _, key, _, said in server.log if said.startswith("answer Gray")}
  assert len(pairs) == len(counts)
  assert collections.Counter(counts) - collections.Counter(lost) == dict.fromkeys(counts, 1)
  assert not [path for path in output.iterdir() if path.name.startswith(".tmp-")]
  _assert_no_key(output, printed)


def _assert_no_key(output, printed):
  files = [path for path in output.rglob("*") if path.is_file()]
  assert files and KEY.encode() not in b"".join([printed, *(path.read_bytes() for path in files)])


def test_a_budget_is_kept_and_the_next_run_gives_what_is_missing(corpus, finished, tmp_path):
  output = tmp_path / "out"
  with ChatServer(rate=0.05) as server:
    first = caption.run(_flags(corpus, output, server.url, "--max_requests=15"))
    assert len(server.log) == first["requests"] == 15 and first["captioned"] > 0
    assert first["captioned"] + sum(first["dead"].values()) == first["rows"]
    assert first["dead"]["max_requests"] > 0
    caption.run(_flags(corpus, output, server.url))
  assert _bytes(output) == _bytes(finished[0])


@pytest.mark.parametrize(
  "text, reason, flag",
  [
    ("Too short", "too_short", "--min_words=2"),
    ("Серое видео, снятое камерой", "bad_language", "--language=any"),
  ]
  + [("very " * 30 + "long", "too_long", "--max_words=31")],
)
def test_an_answer_that_fails_a_check_is_asked_for_again_and_kept(
  corpus, tmp_path, text, reason, flag
):
  def answer(request):
    return text if frames_of(request)[0] == 1 else describe(request)

  output, flags = tmp_path / "out", ("--attempts=3", "--max_words=25")
  with ChatServer(answer=answer) as server:
    printed = caption.run(_flags(corpus, output, server.url, *flags, prompts=PROMPTS[:1]))
    assert printed["dead"][reason] == 2 and server.texts().count(text) == 3
    # Each attempt is another request to a server that remembers keys.
    assert len({key for _, key, _, _ in server.log}) == len(server.log) == CLIPS + 2
    again = caption.run(_flags(corpus, output, server.url, *flags, prompts=PROMPTS[:1]))
    assert again["requests"] == 0 and again["dead"] == printed["dead"]
    # A check that the answer passes needs no other answer.
    again = caption.run(_flags(corpus, output, server.url, *flags, flag, prompts=PROMPTS[:1]))
    assert again["requests"] == 0 and reason not in again["dead"]
  assert _lines(output, caption.CLIPS)[0]["captions"] == [text.strip()]


def test_a_request_that_the_server_rejects_is_sent_once_and_its_clip_is_dead(corpus, tmp_path):
  def answer(request):
    error = json.dumps({"error": {"message": f"content of {KEY} is not allowed"}}).encode()
    return (400, error, {}) if frames_of(request)[0] == 5 else f"{KEY} " + describe(request)

  with ChatServer(answer=answer) as server:
    printed = caption.run(_flags(corpus, tmp_path / "out", server.url))
  assert [said for *_, said in server.log].count("400") == 1
  assert printed["dead"]["rejected_request"] == 1 and printed["captioned"] == CLIPS
  (dead,) = [r for r in _lines(tmp_path / "out", caption.DEAD) if r["reason"] == "rejected_request"]
  assert dead["message"] == "400 Bad Request: content of *** is not allowed"
  _assert_no_key(tmp_path / "out", b"")


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_not_accepted_ends_the_job(corpus, tmp_path, capsys, status):
  body = json.dumps({"error": {"message": f"Incorrect API key: {KEY}"}}).encode()
  with ChatServer(answer=lambda request: (status, body, {})) as server:
    assert caption.main(_flags(corpus, tmp_path / "out", server.url)) == 2
  assert 1 <= len(server.log) <= CONCURRENCY
  printed = capsys.readouterr()
  assert re.search(rf"answers {status} .*Incorrect API key: \*\*\*", printed.err)
  assert len(printed.err.splitlines()) == 1 and KEY not in printed.out + printed.err
  assert not (tmp_path / "out" / caption.CLIPS).exists()


def test_a_server_that_is_down_ends_the_job_before_all_rows_are_dead(
  corpus, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(captions, "OUTAGE", 3)
  with ChatServer() as server:
    pass
  assert caption.main(_flags(corpus, tmp_path / "out", server.url, "--attempts=2")) == 1
  error = capsys.readouterr().err
  assert "the last 3 clips got no answer: ConnectionRefusedError" in error
  assert len(error.splitlines()) == 2


def test_a_request_is_repeated_no_earlier_than_the_server_asks(corpus, tmp_path):
  waits = iter([{"Retry-After": "1"}])

  def answer(request):
    return next(((429, b"", headers) for headers in waits), describe(request))

  flags = ("--concurrency=1", "--max_requests=2")
  with ChatServer(answer=answer) as server:
    caption.run(_flags(corpus, tmp_path / "out", server.url, *flags))
  (first, key, *_), (second, same, *_) = server.log
  assert second - first >= 1 and key == same
  in_an_hour = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3600))
  assert chat._seconds(in_an_hour) == pytest.approx(3600, abs=5)
  assert chat._seconds("soon") == chat._seconds("-1") == 0


def test_the_time_limit_is_of_the_request_not_of_a_byte():
  def drip(request):
    return 200, b" " * 10**6, {}

  with ChatServer(answer=drip) as server:
    server.RequestHandlerClass = type("Drip", (server.RequestHandlerClass,), {"do_POST": _drip})
    client = chat.ChatClient(server.url, key="", timeout=0.4)
    started = time.monotonic()
    with pytest.raises(chat.NoAnswer, match=r"no complete answer within 0.4 s"):
      client.ask(b"{}", idempotency_key="k")
    assert time.monotonic() - started < 2


def _drip(handler):
  """A byte of a header every 50 ms, for 5 seconds."""
  handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
  for _ in range(100):
    handler.wfile.write(b"x")
    time.sleep(0.05)


def test_frames_are_those_in_the_middle_of_equal_parts(corpus):
  def frames(**window):
    found = clip_frames.jpegs(str(corpus / "gray.mkv"), "video", side=32, **window)
    assert {Image.open(io.BytesIO(one)).size for one in found} == {(32, 24)}
    return [frame_of(one) for one in found]

  every = 4 * CLIPS
  assert frames(count=every) == list(range(every))
  assert frames(count=5) == [int((number + 0.5) * every / 5) for number in range(5)]
  # Ten parts of four frames: each is displayed for several parts.
  shown = [20 + int((number + 0.5) * 4 / 10) for number in range(10)]
  assert frames(count=10, start=2.0, end=2.4) == shown
  assert frames(count=3, start=9.0, end=11.0) == [91, 93, 95]
  for window in ({"start": 11.0}, {"start": 11.0, "end": 12.0}):
    with pytest.raises(MediaError, match=r"the video ends at 9\.600 s"):
      frames(count=2, **window)


def test_an_image_is_sent_upright_and_not_enlarged(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # To be turned by a quarter.
  Image.new("RGB", (40, 20), (90, 90, 90)).save(tmp_path / "a.jpg", exif=exif)
  for side, size in ((448, (20, 40)), (10, (5, 10))):
    (found,) = clip_frames.jpegs(str(tmp_path / "a.jpg"), "image", count=4, side=side)
    assert Image.open(io.BytesIO(found)).size == size


def test_preprocessing_reads_the_captioned_clips(finished, tmp_path):
  output, _, _ = finished
  done = preprocess.run(
    [f"--config={output}/preprocess.toml", f"--output={tmp_path}", "--task=clips"]
    + ["--content=pixels", "--resolutions=16x16", "--num_frames=2", "--fps=10", "--num_shards=1"]
    + ["--decode_isolation=thread"]
  )
  assert done["written"] == CLIPS and done["dead"] == 0


def test_decoding_processes_and_the_media_root_of_curate(corpus, finished, tmp_path):
  curated = tmp_path / "curated"
  curated.mkdir()
  shutil.copy(corpus / "clips.jsonl", curated)
  (curated / "preprocess.toml").write_text(f'media_root = "{corpus}"\n')
  with ChatServer() as server:
    flags = ["--decode_isolation=process", "--decode_threads=1"]
    caption.run(_flags(curated, tmp_path / "out", server.url, *flags))
  assert _bytes(tmp_path / "out") == _bytes(finished[0])


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--prompt= =2"], "--prompt: got ' =2', expected TEXT or TEXT=WEIGHT"),
    (["--prompt=What?=0"], "with a weight above 0"),
    (["--prompt=What?=1", "--prompt=What?"], "the same text is given twice"),
    (["--parameters={"], "--parameters: got {, expected a JSON object"),
    (['--parameters={"model": "x"}'], "a JSON object without messages, model"),
    (["--language=french"], "--language: got french, expected any, arabic, .*latin"),
    (["--captioner=localhost:8000"], "--captioner: got 'localhost:8000', expected an address"),
    (["--captioner=http://me:password@host/v1"], "--captioner: expected an address without user"),
    (["--no_such_flag"], "unknown flags --no_such_flag"),
  ],
)
def test_wrong_flags_are_answered(corpus, tmp_path, capsys, flags, message):
  given = _flags(corpus, tmp_path / "out", "http://127.0.0.1:1/v1", prompts=())
  try:
    code = caption.main([*given, *flags])
  except SystemExit as ended:
    code = ended.code
  error = capsys.readouterr().err
  assert code == 2 and len(error.strip().splitlines()) <= 3 and re.search(message, error), error
  assert "password" not in error.replace("without user, password", "")


@pytest.mark.parametrize("key", ["sk-secret 123456", "sk-secret\n123456", "sk-sécret-123456"])
def test_a_key_that_cannot_be_sent_is_not_shown(corpus, tmp_path, capsys, monkeypatch, key):
  monkeypatch.setenv("WALT_CAPTIONER_KEY", key)
  assert caption.main(_flags(corpus, tmp_path / "out", "http://127.0.0.1:1/v1")) == 2
  error = capsys.readouterr().err
  assert "printable ASCII" in error and "123456" not in error


def test_an_answer_is_judged_by_its_words_its_end_and_its_letters():
  checks = captions.Checks(min_words=2, max_words=3, script="latin")
  for text, finish, reason in (
    ("A dog", "stop", ""),
    ("A dog", "length", "too_long"),
    ("Dog", "length", "too_short"),
    ("A dog runs away", "stop", "too_long"),
    ("1 2", "stop", "bad_language"),
  ):
    assert checks.reason(chat.Answer(text, finish)) == reason


def test_prompts_have_weights_after_the_last_equals_sign():
  assert captions.Prompt.parse("What moves?=0.3") == captions.Prompt("What moves?", 0.3)
  assert captions.Prompt.parse("Is 1+1=2=1") == captions.Prompt("Is 1+1=2", 1.0)
  assert captions.Prompt.parse("Is a=b?") == captions.Prompt("Is a=b?", 1.0)


@pytest.mark.parametrize(
  "text, script, share",
  [
    ("A dog, 3 cats.", "latin", 1.0),
    ("собака лает dog", "cyrillic", 10 / 13),
    ("犬がほえる", "japanese", 1.0),
    ("犬がほえる", "chinese", 0.2),
    ("123 !", "latin", 0.0),
  ],
)
def test_the_share_of_a_script(text, script, share):
  assert captions.share_of_script(text, script) == pytest.approx(share)
