"""A function that hangs, crashes or exhausts the memory fails one call; each hostile file is one dead letter."""

import json
import os
import pathlib
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from beam_jobs import preprocess
from beam_jobs.shards import loading
from beam_jobs.sources.rows import parse_line
from tests.beam_jobs import media, stubs
from tests.beam_jobs.conftest import write_manifest
from walt_t5x.media.clips import ClipSpec
from walt_t5x.media.decoding import decode
from walt_t5x.media.isolation import Isolated, WorkerCrashed, WorkerTimeout
from walt_t5x.media.reading import MediaError


@pytest.fixture
def pool():
  isolated = Isolated(
    stubs.misbehave, processes=1, timeout_seconds=20.0, memory_bytes=(4 << 30) + (1 << 29)
  )
  yield isolated
  isolated.close()


def test_values_come_back_unchanged_from_one_process(pool):
  array = np.arange(12, dtype=np.uint16).reshape(3, 4)
  value = {"a": array, "b": b"x" * 3_000_000, "c": np.zeros((0, 3))}
  (back, pid), (_, again) = pool("return", value), pool("return")
  np.testing.assert_array_equal(back["a"], array)
  assert back["b"] == value["b"] and back["c"].shape == (0, 3)
  assert pid == again != os.getpid()


def test_a_terminals_signals_do_not_reach_the_process(pool):
  _, pid = pool("return")
  assert os.getpgid(pid) == pid


def test_each_failure_costs_one_call(pool):
  _, first = pool("return")
  with pytest.raises(MediaError, match="some words") as error:
    pool("raise")
  assert error.value.reason == "some_reason"
  assert pool("return")[1] == first
  with pytest.raises(RuntimeError, match=r"pickle|local object|lambda"):
    pool("unpicklable")
  for what, code in (("crash", "-11"), ("exit", "7")):
    with pytest.raises(WorkerCrashed, match=f"code {code}"):
      pool(what)
    assert pool("return")[1] != first
  with pytest.raises(MemoryError):
    pool("hungry")
  assert pool("return", 5)[0] == 5


def test_a_call_that_hangs_times_out_and_its_process_ends():
  pool = Isolated(stubs.misbehave, processes=1, timeout_seconds=1.5)
  _, pid = pool("return")
  started = time.monotonic()
  with pytest.raises(WorkerTimeout, match=r"1\.5 seconds"):
    pool("sleep")
  assert time.monotonic() - started < 4
  assert not pathlib.Path(f"/proc/{pid}").exists()
  pool.close()
  with pytest.raises(RuntimeError, match="closed"):
    pool("return")


def test_threads_share_the_processes():
  pool = Isolated(stubs.misbehave, processes=2, timeout_seconds=60.0)
  with ThreadPoolExecutor(6) as threads:
    answers = list(threads.map(lambda i: pool("return", i), range(60)))
  assert [value for value, _ in answers] == list(range(60))
  assert len({pid for _, pid in answers}) <= 2
  pool.close()


def test_a_call_whose_process_is_killed_is_repeated_alone(tmp_path):
  """Each call is killed as long as another one runs, as with too little memory for two."""
  pool = Isolated(stubs.misbehave, processes=2, timeout_seconds=60.0)
  with ThreadPoolExecutor(4) as threads:
    answers = list(threads.map(lambda _: pool("crowded", tmp_path), range(10)))
  assert len(answers) == 10
  pool.close()


def test_a_generator_is_streamed_and_its_failure_comes_after_its_items():
  # The limit includes the start of a process, which takes seconds on a loaded machine.
  pool = Isolated(stubs.count, processes=1, timeout_seconds=5.0)
  first = [i for i, _, _ in pool.stream(5)]
  assert first == [0, 1, 2, 3, 4]
  for then, failure in (
    ("sleep", WorkerTimeout),
    ("raise", MediaError),
    ("crash", WorkerCrashed),
    ("exit", WorkerCrashed),
  ):
    seen = []
    with pytest.raises(failure):
      seen += (seen.append(i) for i, _, _ in pool.stream(3, then=then))
    assert [i for i in seen if i is not None] == [0, 1, 2], then
  pool.close()


def test_a_stream_that_is_left_early_ends_its_process_which_holds_one_item():
  pool = Isolated(stubs.count, processes=1, timeout_seconds=20.0)
  stream = pool.stream(10_000, size=1 << 20)
  _, pid, _ = next(stream)
  time.sleep(0.3)
  # The process waits for its reader: it has not made 10 GB of items.
  pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
  assert pages * os.sysconf("SC_PAGE_SIZE") < 200 << 20
  stream.close()
  assert not pathlib.Path(f"/proc/{pid}").exists()
  assert next(pool.stream(1))[1] != pid
  pool.close()


def test_the_processes_end_with_their_parent():
  program = (
    "import os, signal\n"
    "from walt_t5x.media.isolation import Isolated\n"
    "from tests.beam_jobs import stubs\n"
    "pool = Isolated(stubs.misbehave, processes=1, timeout_seconds=60)\n"
    "print(pool('return')[1], flush=True)\n"
    "os.kill(os.getpid(), signal.SIGKILL)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=False
  )
  pid = int(done.stdout)
  deadline = time.monotonic() + 10
  while pathlib.Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
    if "Z" in pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]:
      break  # A zombie: exited, but not reaped.
    time.sleep(0.05)
  else:
    assert not pathlib.Path(f"/proc/{pid}").exists()


def test_a_decoding_process_imports_neither_jax_nor_beam():
  program = (
    "import sys, walt_t5x.media.isolation, walt_t5x.media.decoding, walt_t5x.media.reading\n"
    "print(sorted({'jax', 'apache_beam', 'tensorflow'} & set(sys.modules)))"
  )
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"


def test_isolation_changes_no_pixel(tmp_path):
  spec = ClipSpec(resolutions=((32, 32), (64, 64)), num_frames=5, fps=6.0, position="random")
  (tmp_path / "a.mp4").write_bytes(media.video(noise=30, num_frames=48))
  row = parse_line('{"uri": "a.mp4", "caption": "x"}', str(tmp_path))
  here = loading.load_row(row, spec, (), loading.DecodeSettings(isolation="thread"))
  there = loading.load_row(row, spec, (), loading.DecodeSettings(isolation="process"))
  assert here.record_id == there.record_id
  assert here.clip.start_seconds == there.clip.start_seconds > 0
  for size, frames in here.clip.frames.items():
    np.testing.assert_array_equal(there.clip.frames[size], frames)


def bomb(height: int, width: int) -> bytes:
  """A PNG with far too many pixels, which it contains compressed."""

  def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  squeezer = zlib.compressobj(9)
  rows = b"".join(squeezer.compress(bytes(1 + 3 * width)) for _ in range(100)) + squeezer.flush()
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_each_hostile_file_is_one_dead_letter_and_the_job_continues(tmp_path, monkeypatch):
  monkeypatch.setattr(loading.decoding, "decode", stubs.decode)
  loading._started.cache_clear()
  clip = media.video(noise=40, num_frames=24, height=32, width=32)
  sdp = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
  hostile = {
    "session.mp4": (sdp, "not_media"),
    "cut.mp4": (clip[: len(clip) // 2], "truncated"),
    "zero.mp4": (b"", "empty"),
    "bomb.png": (bomb(60_000, 60_000), "too_large"),
    "sound.mp4": (media.audio(), "no_video_stream"),
    "hang.mp4": (stubs.HANG, "decode_timeout"),
    "crash.mp4": (stubs.CRASH, "decoder_crashed"),
    "hungry.mp4": (stubs.HUNGRY, "out_of_memory"),
    "gone.mp4": (None, "missing"),
    # Of these, no byte is read.
    "pipe.mp4": (None, "unreadable"),
    "../other.mp4": (clip, "not_allowed"),
    f"{tmp_path.parent}/other.mp4": (None, "not_allowed"),
    "memory://elsewhere/a.mp4": (None, "not_allowed"),
    "http://127.0.0.1:9/a.mp4": (None, "not_allowed"),
  }
  os.mkfifo(tmp_path / "pipe.mp4")
  rows = []
  for name, (content, _) in hostile.items():
    if content is not None:
      (tmp_path / name).write_bytes(content)
    rows.append({"uri": name, "caption": "x"})
  for i in range(6):
    (tmp_path / f"good{i}.mp4").write_bytes(media.video(seed=i, height=32, width=32))
    rows.append({"uri": f"good{i}.mp4", "caption": "x"})
  manifest = write_manifest(tmp_path, rows)
  with manifest.open("ab") as stream:
    stream.write(b'{"uri": "long.mp4", "caption": "' + b"x" * (32 << 20) + b'"}\n')
  hostile['{"uri": "long.mp4", "caption": "'] = (None, "bad_source_row")
  started = time.monotonic()
  result = preprocess.run(
    [
      f"--manifest={manifest}",
      f"--output={tmp_path / 'out'}",
      "--task=t",
      "--content=pixels",
      "--resolutions=16x16",
      "--num_frames=9",
      "--num_shards=2",
      "--decode_timeout=1",
      "--decode_memory_mib=4096",
    ]
  )
  loading._started.cache_clear()
  assert time.monotonic() - started < 30
  assert (result["written"], result["rejected"], result["dead"]) == (6, 0, len(hostile))
  dead = [
    json.loads(line)
    for path in (tmp_path / "out").rglob("*.dead.jsonl")
    for line in path.read_text().splitlines()
  ]
  assert {entry["uri"].rstrip("x"): entry["reason"] for entry in dead} == {
    name: reason for name, (_, reason) in hostile.items()
  }
  assert len(dead) == len(hostile)
  told = {entry["uri"]: entry["error"] for entry in dead}
  assert f"{tmp_path}/../other.mp4 is not in {tmp_path} " in told["../other.mp4"]
  assert "--allow_uri" in told["../other.mp4"] and "pipe" in told["pipe.mp4"]


def test_a_slow_decoder_is_stopped_between_frames_without_a_process():
  spec = ClipSpec(resolutions=((32, 32),), num_frames=5, fps=6.0)
  with pytest.raises(MediaError, match="within the time limit") as error:
    decode(media.video(), "video", spec, max_decode_seconds=0.0)
  assert error.value.reason == "decode_timeout"
