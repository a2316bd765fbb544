"""The scripts that restart a run: which exit codes are restarted, and that a stop is passed to the run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.programs import FOREGROUND

ROOT = Path(__file__).resolve().parents[1]
KEEP = ["bash", str(ROOT / "scripts" / "keep_training.sh")]
# Reads its next exit code from a file; a negative one is a signal that kills it.
RUN = """
import os, pathlib, sys
file = pathlib.Path(sys.argv[1])
code, *rest = file.read_text().split()
file.write_text(" ".join(rest))
if int(code) < 0:
  os.kill(os.getpid(), -int(code))
sys.exit(int(code))
"""


@pytest.mark.parametrize(
  ("codes", "end", "left"),
  [
    ("75 70 -9 0 1", 0, "1"),  # Preempted, hung, killed: restarted each time, until it finishes.
    ("75 65 0", 65, "0"),  # Not finite: a restart would repeat it.
    ("1 0", 1, "0"),
    ("130 0", 130, "0"),  # Ctrl-C.
  ],
)
def test_a_resumable_run_is_restarted(tmp_path, codes, end, left):
  file = tmp_path / "codes"
  file.write_text(codes)
  done = subprocess.run(
    [*KEEP, sys.executable, "-c", RUN, str(file)],
    env=os.environ | {"PAUSE": "0"},
    capture_output=True,
    timeout=60,
    check=False,
  )
  assert done.returncode == end
  assert file.read_text() == left


def test_a_run_that_always_fails_at_once_is_given_up(tmp_path):
  file = tmp_path / "codes"
  file.write_text("70 " * 9)
  done = subprocess.run(
    [*KEEP, sys.executable, "-c", RUN, str(file)],
    env=os.environ | {"PAUSE": "0", "MAX_FAILURES": "3"},
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert (done.returncode, file.read_text().split()) == (70, ["70"] * 6)
  assert "3 times in a row" in done.stderr and "MAX_FAILURES" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_during_the_pause_ends_it(number, tmp_path):
  (tmp_path / "codes").write_text("70 0")
  command = [*FOREGROUND, *KEEP, sys.executable, "-c", RUN, str(tmp_path / "codes")]
  process = subprocess.Popen(
    command, env=os.environ | {"PAUSE": "60"}, stderr=subprocess.PIPE, text=True
  )
  assert process.stderr
  while "again in 60 s" not in process.stderr.readline():
    assert process.poll() is None
  time.sleep(0.1)
  process.send_signal(number)
  assert process.wait(timeout=10) == 70
  assert (tmp_path / "codes").read_text() == "0"


def test_without_a_command_the_usage_is_printed():
  done = subprocess.run(KEEP, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith("usage: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_is_passed_to_the_run_and_waits_for_it_to_save(number, tmp_path):
  run = (
    "import pathlib, signal, sys, time\n"
    f"folder = pathlib.Path({str(tmp_path)!r})\n"
    "def leave(*_):\n"
    "  time.sleep(0.5)\n"
    "  (folder / 'saved').write_text('')\n"
    "  sys.exit(75)\n"
    "signal.signal(signal.SIGTERM, leave)\n"
    "(folder / 'up').write_text('')\n"
    "time.sleep(60)\n"
  )
  process = subprocess.Popen(
    [*FOREGROUND, *KEEP, sys.executable, "-c", run], stderr=subprocess.DEVNULL
  )
  while not (tmp_path / "up").exists():
    time.sleep(0.02)
  process.send_signal(number)
  assert process.wait(timeout=30) == 75
  assert (tmp_path / "saved").exists()


def _pod(*arguments, **settings):
  environment = os.environ | {"NAME": "walt", "ZONE": "z", "DRY_RUN": "1"} | settings
  return subprocess.run(
    ["bash", str(ROOT / "scripts" / "pod.sh"), *arguments],
    env=environment, capture_output=True, text=True, timeout=60, check=False,
  )  # fmt: skip


def test_every_host_of_every_slice_gets_the_same_command():
  done = _pod("train", "--gin_file=gin/walt_3b.gin", '--gin.MODEL_DIR="gs://b/run"', SLICES="2")
  commands = sorted(done.stdout.splitlines())
  assert [c.split(" --command=")[0] for c in commands] == [
    f"gcloud compute tpus tpu-vm ssh walt-{i} --worker=all" for i in range(2)
  ]
  # Two shells parse it: ours removes one layer of quotes, the host's the next, and gin gets its string.
  (command,) = {c.split(" --command=")[1] for c in commands}
  remote = subprocess.run(
    ["bash", "-c", f"printf %s {command.rsplit(' --zone=', 1)[0]}"],
    capture_output=True, text=True, check=True,
  ).stdout  # fmt: skip
  assert (
    '--multiprocess --debug --gin_file=gin/walt_3b.gin --gin.MODEL_DIR=\\"gs://b/run\\"' in remote
  )
  assert _pod("create", TYPE="v5p-128").stdout.startswith(
    "gcloud compute tpus queued-resources create walt --node-id=walt --accelerator-type=v5p-128"
  )
  assert "got 'dance', expected create" in _pod("dance").stderr
