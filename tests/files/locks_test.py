"""Locks: one holder at a time on every kind of store, whatever happens to the holder."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest

from tests.files.storage_test import folder  # noqa: F401 - a fixture
from tests.programs import FOREGROUND
from walt_t5x.files import locks, storage

# Says when it holds the lock, and then waits.
HOLDER = """
import sys, time
from walt_t5x.files import locks
with locks.held(sys.argv[1], program="train", instead="set another MODEL_DIR"):
  print("held", flush=True)
  time.sleep(60)
"""


@pytest.fixture
def lock(folder, monkeypatch):  # noqa: F811
  """A lock's path; waiting times are short."""
  monkeypatch.setattr(locks, "SETTLE", 0.2)
  monkeypatch.setattr(locks, "RENEWAL", 0.2)
  return storage.join(folder, "train.lock")


def take(path, **settings):
  return locks.held(path, program="train", instead="set another MODEL_DIR", **settings)


def rewrite(path, **changes):
  storage.write_json(path, storage.read_json(path) | changes)


def left_behind(path, **changes):
  """A lock whose holder has ended without a trace."""
  found = locks._Lock(path, "train")
  found.take("")
  rewrite(path, **changes)


def started_together(path, count):
  """How many of several callers that start at the same time got the lock, while the first still held it."""
  barrier, got, done = threading.Barrier(count), [], threading.Barrier(count)

  def start():
    barrier.wait()
    try:
      with take(path):
        got.append(True)
        done.wait()
    except locks.Held:
      got.append(False)
      done.wait()

  threads = [threading.Thread(target=start) for _ in range(count)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return sum(got)


def test_one_of_several_gets_a_lock_and_the_next_one_after_it(lock):
  assert started_together(lock, 6) == 1
  assert not storage.exists(lock)
  assert started_together(lock, 2) == 1


def test_one_of_several_takes_over_a_lock_that_has_expired(lock):
  left_behind(lock, started="long ago")
  assert started_together(lock, 6) == 1


def test_the_second_is_told_who_holds_it(lock):
  with take(lock):
    _check_told(lock, storage.read_json(lock))
  theirs = {"machine": "another", "host": "pod-7", "process": 4321, "since": "2026-01-02"}
  left_behind(lock, **theirs)
  threading.Timer(0.1, rewrite, (lock,), {"renewed": 1.0}).start()
  _check_told(lock, theirs)


def _check_told(lock, found):
  with pytest.raises(locks.Held) as told, take(lock):
    pass
  text = str(told.value)
  assert f"process {found['process']} on {found['host']}, since {found['since']}" in text
  assert storage.parent(lock) in text and "set another MODEL_DIR" in text and text.count("\n") < 4


@pytest.mark.parametrize("age", [0.0, 100.0, -100.0])
def test_a_lock_of_another_machine_expires_unless_it_is_renewed(age, lock, monkeypatch):
  """Whatever the other machine's clock shows."""
  monkeypatch.setattr(locks, "EXPIRY", 0.6)
  left_behind(lock, machine="another", renewed=time.time() - age)
  renewing = threading.Timer(0.1, rewrite, (lock,), {"renewed": time.time() - age + 0.2})
  renewing.start()
  with pytest.raises(locks.Held), take(lock):
    pass
  renewing.join()
  began = time.monotonic()
  with take(lock):
    assert storage.read_json(lock)["process"] == os.getpid()
    waited = time.monotonic() - began
  assert waited < 0.6 + locks.SETTLE + 0.5
  assert waited > 0.6 or age == 100.0  # Which is as old as it looks.


def test_a_lock_that_is_released_meanwhile_is_free(lock):
  left_behind(lock, machine="another")
  threading.Timer(0.1, storage.delete, (lock,)).start()
  with take(lock):
    pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_an_incomplete_lock_expires(content, tmp_path, monkeypatch):
  monkeypatch.setattr(locks, "SETTLE", 0.0)
  monkeypatch.setattr(locks, "RENEWAL", 0.0)
  (tmp_path / "train.lock").write_bytes(content)
  with take(tmp_path / "train.lock"):
    pass


def test_a_holder_renews_its_lock(lock):
  with take(lock):
    first = storage.read_json(lock)
    storage.delete(lock)  # Renewed too: somebody deleted the folder.
    while not storage.exists(lock) or storage.read_json(lock)["renewed"] <= first["renewed"]:
      time.sleep(0.02)
    assert storage.read_json(lock)["owner"] == first["owner"]


def started(path, *, before=""):
  process = subprocess.Popen(
    [*FOREGROUND, sys.executable, "-c", before + HOLDER, str(path)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout and process.stdout.readline() == "held\n"
  return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_after_a_signal_the_next_start_succeeds_at_once(number, tmp_path, monkeypatch):
  """The lock is released, except by SIGKILL, after which the process is not there any more."""
  path = tmp_path / "train.lock"
  process = started(path)
  monkeypatch.setattr(locks, "SETTLE", 0.2)
  with pytest.raises(locks.Held, match=f"kill {process.pid}"), take(path):
    pass
  process.send_signal(number)
  code = process.wait(timeout=20)
  assert code in (-number, 128 + number)
  assert path.exists() == (number == signal.SIGKILL)
  began = time.monotonic()
  with take(path):
    assert time.monotonic() - began < 1


def test_a_holder_that_lost_its_lock_ends(tmp_path):
  path = tmp_path / "train.lock"
  process = started(path, before="from walt_t5x.files import locks; locks.RENEWAL = 0.1\n")
  record = json.loads(path.read_text()) | {"owner": uuid.uuid4().hex, "machine": "", "process": 7}
  storage.write_json(path, record)
  _, told = process.communicate(timeout=20)
  assert process.returncode == 1 and "lost" in told and "process 7" in told
  assert json.loads(path.read_text()) == record
