"""A job on several runners, and after a kill or Ctrl-C, writes the same bytes. A dead worker ends its launcher."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from beam_jobs import preprocess
from beam_jobs.runners import worker_deaths
from benchmarks import beam_runners
from tests import programs
from tests.beam_jobs.conftest import digests, good_rows, write_manifest


def pixels(manifest, output, *, shards: int) -> list[str]:
  """A job without encoders, with two clips of each training video."""
  flags = ["--task=t", "--content=pixels", "--resolutions=16x16", "--num_frames=9"]
  flags += ["--clip_position=random", "--clips_per_video=2"]
  flags += [f"--num_shards={shards}", "--decode_isolation=thread"]
  return [f"--manifest={manifest}", f"--output={output}", *flags]


def test_the_portable_runner_with_external_workers_writes_the_bytes_of_one_process(tmp_path):
  rows = good_rows(tmp_path, videos=3, images=2)
  (tmp_path / "text.mp4").write_text("this is not a video\n" * 50)
  manifest = write_manifest(tmp_path, [*rows, {"uri": "text.mp4", "caption": "x"}])

  result = preprocess.run(pixels(manifest, tmp_path / "one", shards=2))
  assert (result["written"], result["dead"]) == (2 * 2 + 1 + 2, 2)
  with beam_runners.portable(tmp_path) as flags:
    argv = pixels(manifest, tmp_path / "other", shards=2)
    command = [sys.executable, "-m", "beam_jobs.preprocess", *argv, *flags]
    # A pool worker that dies inside a shard ends the launcher, which would wait indefinitely; then the job resumes.
    with _held_inside_a_shard(command, tmp_path / rows[1]["uri"], tmp_path / "log") as job:
      _check_loopback(beam_runners.descendants(os.getpid()))
      beam_runners.kill(beam_runners.workers_of(os.getpid()))
      assert job.wait(60) == worker_deaths.EXIT_CODE, job.tail()
      assert "a worker process died (its control stream" in job.tail().splitlines()[-1]
    beam_runners.Process(command, tmp_path / "log").must_finish(120)
  # The pool started a worker; the work was not done by the launcher.
  assert "Starting worker" in (tmp_path / "worker_pool.log").read_text()
  assert digests(tmp_path / "other") == digests(tmp_path / "one")


def test_a_job_on_two_processes_says_little(tmp_path):
  """All of its lines come at the pace of `walt_t5x.config.waiting`: more rows or a slower machine add few."""
  manifest = write_manifest(tmp_path, good_rows(tmp_path, videos=2, images=0))
  argv = pixels(manifest, tmp_path / "cache", shards=1)
  done = programs.run_in_a_new_shell("-m", "beam_jobs.preprocess", *argv, *beam_runners.TWO_WORKERS)
  assert done.returncode == 0, done.stderr
  lines = done.stderr.splitlines()
  assert [line for line in lines if not line.startswith("preprocess: ")] == []
  assert len(lines) <= 8


def test_a_worker_logs_warnings_except_those_that_mean_nothing():
  code = (
    "import logging; from beam_jobs.runners import local_worker; local_worker.log_warnings()\n"
    "root = logging.getLogger(); root.setLevel(logging.INFO)\n"
    "for text in ('Worker: severity WARN, and so on', 'ours'): root.warning('%s', text)\n"
    "root.info('connected')"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stderr == "WARNING:root:ours\n"


def test_a_job_killed_inside_a_shard_resumes_to_the_same_bytes(tmp_path):
  rows = [row | {"split": "train"} for row in good_rows(tmp_path, videos=6, images=0)]
  manifest = write_manifest(tmp_path, rows)
  calm, hard = tmp_path / "calm", tmp_path / "hard"
  preprocess.run(pixels(manifest, calm, shards=6))
  argv = pixels(manifest, hard, shards=6)
  command = [sys.executable, "-m", "beam_jobs.preprocess", *argv]
  with _held_inside_a_shard(command, tmp_path / rows[1]["uri"], tmp_path / "log") as job:
    job.kill()
  assert list(hard.rglob(".tmp-*")), "the kill was to fall into a shard"
  closed = {path: path.stat().st_ino for path in hard.glob("*/*.sidecar.json")}
  assert 0 < len(closed) < 12
  preprocess.run(argv)
  assert digests(hard) == digests(calm)
  assert all(path.stat().st_ino == inode for path, inode in closed.items())


def test_ctrl_c_ends_launcher_and_workers_with_one_line_and_keeps_finished_shards(tmp_path):
  rows = [row | {"split": "train"} for row in good_rows(tmp_path, videos=6, images=0)]
  manifest = write_manifest(tmp_path, rows)
  calm, hard, log = tmp_path / "calm", tmp_path / "hard", tmp_path / "log"
  preprocess.run(pixels(manifest, calm, shards=6))
  argv = pixels(manifest, hard, shards=6)
  argv[-1] = "--decode_isolation=process"
  command = [sys.executable, "-m", "beam_jobs.preprocess", *argv, *beam_runners.TWO_WORKERS]
  with _held_inside_a_shard(command, tmp_path / rows[1]["uri"], log) as job:
    started = beam_runners.descendants(job.pid)
    assert beam_runners.workers_of(job.pid)
    _check_loopback([job.pid, *started])
    before = len(log.read_text().splitlines())
    # A terminal sends the signal to all processes of the job's group.
    group = [pid for pid in started if os.getpgid(pid) == os.getpgid(job.pid)]
    for pid in (*group, job.pid):
      os.kill(pid, signal.SIGINT)
    assert job.wait(30) == 130
    said = [line for line in log.read_text().splitlines()[before:] if line]
    deadline = time.monotonic() + 10
    while left := [pid for pid in started if os.path.exists(f"/proc/{pid}")]:
      assert time.monotonic() < deadline, left
      time.sleep(0.05)
  assert said == [f"preprocess: {worker_deaths.INTERRUPTED}"]
  assert not (hard / "t.lock").exists()
  closed = {path: path.stat().st_ino for path in hard.glob("*/*.sidecar.json")}
  result = preprocess.run(argv)
  assert result["dead"] == 0 and digests(hard) == digests(calm)
  assert all(path.stat().st_ino == inode for path, inode in closed.items())


ON_DATAFLOW = """
import os, signal, sys, types
import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions
from beam_jobs import preprocess

# It would ask Google about the bucket, many times, before the job is built.
GoogleCloudOptions._warn_if_soft_delete_policy_enabled = lambda *_: None

def interrupt():
  os.kill(os.getpid(), signal.SIGINT)

def run(pipeline):
  if sys.argv[1] == "sending":
    interrupt()
  return types.SimpleNamespace(job_id=lambda: "2026-11-29_01-23", wait_until_finish=interrupt)

beam.Pipeline.run = run
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(preprocess.main(sys.argv[2:]))
"""


def test_ctrl_c_says_that_a_job_continues_on_dataflow_and_how_to_cancel_it(tmp_path):
  manifest = write_manifest(tmp_path, [])
  flags = ["--runner=DataflowRunner", "--project=p-1", "--region=us-central1"]
  flags += ["--temp_location=gs://bucket/temp"]
  started = {}
  for moment in ("sending", "waiting"):
    argv = [*pixels(manifest, tmp_path / f"{moment}_cache", shards=1), *flags]
    command = [sys.executable, "-c", ON_DATAFLOW, moment, *argv]
    started[moment] = beam_runners.Process(command, tmp_path / moment)
  told = {}
  for moment, job in started.items():
    assert job.wait(120) == 130, job.tail()
    told[moment] = (tmp_path / moment).read_text().partition("\npreprocess: ")[2]
  place = "--region=us-central1 --project=p-1"
  assert f"gcloud dataflow jobs cancel 2026-11-29_01-23 {place}\n" in told["waiting"]
  assert told["waiting"].startswith("interrupted; job 2026-11-29_01-23 continues on Dataflow.")
  assert f"gcloud dataflow jobs list {place} --status=active\n" in told["sending"]
  assert worker_deaths.INTERRUPTED not in "".join(told.values())


def _check_loopback(processes):
  """No other machine reaches what these processes listen on."""
  own = set()
  for process in processes:
    with contextlib.suppress(OSError):
      own |= {os.readlink(file) for file in pathlib.Path(f"/proc/{process}/fd").iterdir()}
  found = []
  for table in ("tcp", "tcp6"):
    for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
      _, address, _, state, *_, inode = line.split()[:10]
      if state == "0A" and f"socket:[{inode}]" in own:
        found.append(address.partition(":")[0])
  loopback = ("0100007F", "0" * 24 + "01000000", "0" * 16 + "FFFF00000100007F")
  assert found and set(found) <= set(loopback), found


@contextlib.contextmanager
def _held_inside_a_shard(command, media, log):
  """The job while it opens a row's media file, which takes until the block ends."""
  hold, reached = (media.with_name(f"{media.name}.{name}") for name in ("hold", "reached"))
  hold.touch()
  job = beam_runners.Process(command, log)
  try:
    deadline = time.monotonic() + 120
    while not reached.exists():
      assert job.running and time.monotonic() < deadline, job.tail()
      time.sleep(0.05)
    yield job
  finally:
    job.kill()
    hold.unlink()


@pytest.fixture(autouse=True)
def _slow_files(tmp_path, monkeypatch):
  """In processes that are started from here, a video cannot be opened while NAME.hold exists."""
  folder = tmp_path / "startup"
  folder.mkdir()
  (folder / "sitecustomize.py").write_text(
    "import os, sys, time\n"
    "def wait(event, arguments):\n"
    "  name = str(arguments[0]) if event == 'open' else ''\n"
    "  while name.endswith('.mp4') and os.path.exists(name + '.hold'):\n"
    "    os.close(os.open(name + '.reached', os.O_CREAT | os.O_WRONLY))\n"
    "    time.sleep(0.05)\n"
    "sys.addaudithook(wait)\n"
  )
  monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


def test_the_launcher_ends_when_a_worker_process_dies():
  # Beam's object for a local worker process, with commands that exit like workers.
  program = """
import threading
from types import SimpleNamespace
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability import local_job_service
from beam_jobs.runners import worker_deaths

info = SimpleNamespace(provision_info=beam_provision_api_pb2.ProvisionInfo())
with worker_deaths.end_with_workers(str, program="curate"):
  for command in (b"exit 0", b"kill -9 $$"):
    worker = local_job_service.SubprocessSdkWorker(command, "", info)
    thread = threading.Thread(target=worker.run)
    thread.start()
    thread.join()
    print("after", command, flush=True)
"""
  done = subprocess.run(
    [sys.executable, "-c", program],
    env=beam_runners.environment(),
    capture_output=True,
    text=True,
    check=False,
    timeout=60,
  )
  assert done.returncode == worker_deaths.EXIT_CODE == 75, done.stderr
  assert done.stdout == "after b'exit 0'\n"
  assert re.search(
    r"^curate: a worker process died .* run the same command again", done.stderr, re.M
  )


def test_a_worker_that_never_connects_is_noticed(monkeypatch):
  from apache_beam.portability.api import beam_fn_api_pb2
  from apache_beam.runners.portability.fn_api_runner import worker_handlers

  monkeypatch.setattr(worker_deaths, "CONNECT_SECONDS", 0.05)
  before = worker_handlers.ControlConnection.push
  with worker_deaths.notice_deaths():
    connection = worker_handlers.ControlConnection()
    asked = connection.push(beam_fn_api_pb2.InstructionRequest())
    with pytest.raises(worker_deaths.WorkerDied, match="did not connect within"):
      asked.get(timeout=10)
    # Later requests fail immediately.
    with pytest.raises(worker_deaths.WorkerDied):
      connection.push(beam_fn_api_pb2.InstructionRequest()).get(timeout=10)
  assert worker_handlers.ControlConnection.push is before
