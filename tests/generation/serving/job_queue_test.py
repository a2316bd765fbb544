"""The queue: batches form from waiting jobs, and an accepted job is finished once, whatever happens to the process."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.generation.serving.plain_maker import make_queue, request
from walt_t5x.files import storage
from walt_t5x.files.damage import Damaged
from walt_t5x.files.store_errors import CannotWrite
from walt_t5x.generation.serving.job_queue import (
  COMPLETED,
  FAILED,
  IN_PROGRESS,
  QUEUED,
  JobIsRunning,
  QueueFull,
)

ROOT = Path(__file__).resolve().parents[3]


def finish(queue, *tracked):
  """Runs the queue until these jobs have ended."""
  queue.start()
  for one in tracked:
    list(queue.watch(one))


def test_requests_that_wait_together_form_batches_of_their_kind_the_oldest_first(tmp_path):
  batches = []
  queue, maker = make_queue(tmp_path, batch_size=3, observe=batches.append)
  kinds = {"a": {}, "b": {"extensions": 1}}
  jobs = [queue.submit(request(f"{kind}{i}", **kinds[kind])) for i, kind in enumerate("abaabab")]
  finish(queue, *jobs)
  assert maker.batches == [["a0", "a2", "a3"], ["b1", "b4", "b6"], ["a5"]]
  assert [batch.clips for batch in batches] == [3, 3, 1]
  assert batches[0].seconds == {"base": {"sample": 0.5}}
  assert [one.job.index for one in jobs] == list(range(7))


def test_sixteen_concurrent_requests_form_full_batches_while_one_runs(tmp_path):
  queue, maker = make_queue(tmp_path, batch_size=8, held=True)
  queue.start()
  first = queue.submit(request("first"))
  maker.started.acquire()
  jobs = []
  threads = [
    threading.Thread(target=lambda n=n: jobs.append(queue.submit(request("later", seed=n))))
    for n in range(16)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert (first.status, {one.status for one in jobs}) == (IN_PROGRESS, {QUEUED})
  maker.release.release(3)
  finish(queue, first, *jobs)
  assert [len(batch) for batch in maker.batches] == [1, 8, 8]
  assert len({one.job.id for one in jobs}) == 16
  # The clip of each job has its seed.
  for one in jobs:
    sidecar = storage.read_json(tmp_path / f"{one.job.index:05d}.json")
    assert (sidecar["job"], sidecar["seed"]) == (one.job.id, one.job.request.seed)


def test_progress_is_reported_until_the_end(tmp_path):
  queue, _ = make_queue(tmp_path)
  one = queue.submit(request())
  assert (one.status, one.share) == (QUEUED, 0)
  queue.start()
  assert list(queue.watch(one)) == [(0, 1, "started"), (1, 1, "base")]
  assert (one.status, one.share) == (COMPLETED, 1) and one.ended == pytest.approx(
    time.time(), abs=5
  )


def test_an_accepted_job_is_on_disk_and_the_next_process_finishes_it(tmp_path):
  queue, _ = make_queue(tmp_path)
  first = queue.submit(request("a", seed=3), image=b"pixels")
  assert storage.read(first.job.request.image) == b"pixels"
  # The first process ends without a word.
  again, maker = make_queue(tmp_path)
  (found,) = again.jobs()
  assert found.job == first.job and found.status == QUEUED
  second = again.submit(request("b", image=None))
  finish(again, found, second)
  assert maker.batches == [["a"], ["b"]]  # One starts from an image.
  last, idle = make_queue(tmp_path)
  assert [one.status for one in last.jobs()] == [COMPLETED, COMPLETED]
  assert [one.ended for one in last.jobs()] == [found.ended, second.ended]
  third = last.submit(request("c"))
  finish(last, third)
  assert idle.batches == [["c"]] and third.job.index == 2


def test_a_kill_in_the_middle_loses_no_job_and_repeats_no_finished_one(tmp_path):
  command = [sys.executable, "-m", "tests.generation.serving.plain_maker", str(tmp_path), "10"]
  with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout is not None
    accepted = [process.stdout.readline().strip() for _ in range(10)]
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("[0-9]*.json"))) < 3 and time.monotonic() < deadline:
      time.sleep(0.01)
    process.kill()
  before = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("[0-9]*.json")}
  assert 3 <= len(before) < 10
  queue, maker = make_queue(tmp_path)
  assert [one.job.id for one in queue.jobs()] == accepted
  finish(queue, *queue.jobs())
  assert sum(map(len, maker.batches)) == 10 - len(before)
  for number, one in enumerate(queue.jobs()):
    sidecar = storage.read_json(tmp_path / f"{one.job.index:05d}.json")
    assert (sidecar["job"], sidecar["seed"]) == (one.job.id, number)
  assert all((tmp_path / name).stat().st_mtime_ns == stamp for name, stamp in before.items())


def test_a_job_that_cannot_be_made_fails_alone(tmp_path):
  queue, maker = make_queue(tmp_path, rejected=["bad"])
  jobs = [queue.submit(request(prompt)) for prompt in ("a", "bad", "b")]
  finish(queue, *jobs)
  assert [one.status for one in jobs] == [COMPLETED, FAILED, COMPLETED]
  assert maker.batches == [["a", "bad", "b"], ["a"], ["bad"], ["b"]]
  assert jobs[1].job.error == "ZeroDivisionError: of this prompt"
  # It is not tried again.
  again, _ = make_queue(tmp_path)
  assert [one.status for one in again.jobs()] == [COMPLETED, FAILED, COMPLETED]
  assert again.jobs()[1].ended == jobs[1].ended is not None


def test_only_so_many_jobs_wait(tmp_path):
  queue, _ = make_queue(tmp_path, max_waiting=2)
  queue.submit(request()), queue.submit(request())
  with pytest.raises(QueueFull, match="2 clips are waiting") as raised:
    queue.submit(request())
  assert raised.value.retry_after >= 1
  assert len(queue.jobs()) == len(list((tmp_path / "jobs").iterdir())) == 2


def test_a_deleted_job_is_gone_with_its_files_and_a_running_one_stays(tmp_path):
  queue, maker = make_queue(tmp_path, batch_size=1, held=True)
  done, running, waiting = (queue.submit(request(p), image=b"i") for p in ("a", "b", "c"))
  maker.release.release()
  finish(queue, done)
  maker.started.acquire(), maker.started.acquire()
  with pytest.raises(JobIsRunning):
    queue.delete(running)
  queue.delete(waiting)
  queue.delete(done)
  maker.release.release()
  finish(queue, running)
  assert maker.batches == [["a"], ["b"]] and queue.find(done.job.id) is None
  assert sorted(file.name for file in tmp_path.iterdir()) == [
    "00001.json",
    "00001_base.mp4",
    "jobs",
  ]
  names = {file.name for file in (tmp_path / "jobs").iterdir()}
  assert names == {f"{running.job.id}.json", f"{running.job.id}.image"}
  again, _ = make_queue(tmp_path)
  assert [one.status for one in again.jobs()] == [COMPLETED]


def test_a_stopped_queue_ends_its_batch_and_keeps_the_rest(tmp_path):
  queue, maker = make_queue(tmp_path, batch_size=2, held=True)
  jobs = [queue.submit(request()) for _ in range(5)]
  queue.start()
  maker.started.acquire()
  queue.take_no_more()
  maker.release.release(5)
  queue.stop()
  assert [one.status for one in jobs] == [COMPLETED] * 2 + [QUEUED] * 3
  again, _ = make_queue(tmp_path)
  assert [one.status for one in again.jobs()] == [COMPLETED] * 2 + [QUEUED] * 3


def test_samples_of_others_keep_their_numbers(tmp_path):
  (tmp_path / "00041.json").write_text("{}")
  queue, _ = make_queue(tmp_path)
  one = queue.submit(request())
  finish(queue, one)
  assert one.job.index == 42 and (tmp_path / "00041.json").read_text() == "{}"


def test_a_job_that_cannot_be_stored_is_not_accepted(tmp_path, monkeypatch):
  queue, _ = make_queue(tmp_path)

  def full(*arguments, **options):
    raise CannotWrite("no room")

  with monkeypatch.context() as patch:
    patch.setattr(storage, "write_json", full)
    with pytest.raises(CannotWrite):
      queue.submit(request(), image=b"pixels")
  assert queue.jobs() == [] and list((tmp_path / "jobs").iterdir()) == []


def test_a_damaged_job_is_named(tmp_path):
  queue, _ = make_queue(tmp_path)
  one = queue.submit(request("a red square"))
  file = tmp_path / "jobs" / f"{one.job.id}.json"
  file.write_text(file.read_text().replace("red", "blue"))
  with pytest.raises(Damaged, match=one.job.id):
    make_queue(tmp_path)


def test_names_cannot_be_guessed(tmp_path):
  queue, _ = make_queue(tmp_path, max_waiting=1000)
  digits = [queue.submit(request()).job.id.removeprefix("video_") for _ in range(200)]
  assert {len(name) for name in digits} == {32} and len(set(digits)) == 200
  # No position is constant, and none grows with time.
  values = np.array([[int(digit, 16) for digit in name] for name in digits])
  assert (np.abs(values.mean(0) - 7.5) < 1.5).all()
