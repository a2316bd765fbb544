"""One job on several runners: the same bytes; and a worker process that dies ends its launcher."""

import subprocess
import sys

from beam_jobs import preprocess, worker_deaths
from benchmarks import beam_runners
from tests.beam_jobs.conftest import digests, good_rows, write_manifest


def test_the_portable_runner_with_external_workers_writes_the_bytes_of_one_process(tmp_path):
  rows = good_rows(tmp_path, videos=3, images=2)
  (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
  manifest = write_manifest(tmp_path, [*rows, {"uri": "text.mp4", "caption": "x"}])

  def argv(output):
    return [
      f"--manifest={manifest}",
      f"--output={tmp_path / output}",
      "--task=t",
      "--content=pixels",
      "--resolutions=16x16",
      "--num_frames=9",
      "--num_shards=2",
      "--decode_isolation=thread",
    ]

  result = preprocess.run(argv("one"))
  assert (result["written"], result["dead"]) == (5, 1)
  with beam_runners.portable(tmp_path) as flags:
    command = [sys.executable, "-m", "beam_jobs.preprocess", *argv("other"), *flags]
    beam_runners.Process(command, tmp_path / "log").must_finish(120)
  # The pool did start a worker; the work was not done by the launcher.
  assert "Starting worker" in (tmp_path / "worker_pool_main.log").read_text()
  assert digests(tmp_path / "other") == digests(tmp_path / "one")


def test_the_launcher_ends_when_a_worker_process_dies():
  # Beam's own object for a local worker process, with commands that end as workers do.
  program = """
import threading
from types import SimpleNamespace
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability import local_job_service
from beam_jobs import worker_deaths

info = SimpleNamespace(provision_info=beam_provision_api_pb2.ProvisionInfo())
with worker_deaths.end_with_workers():
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
  assert "run the same command again" in done.stderr
