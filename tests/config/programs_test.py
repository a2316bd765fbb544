"""What programs share: quiet imports and logs, the end after an error, announced waits, `--help`."""

import importlib
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from tests import programs
from walt_t5x.config import usage, waiting


def test_quiet_imports_omit_only_the_libraries_announcements():
  said = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1.2    3 port.cc:153] oneDNN custom operations are on.",
    "E0000 00:00:1.2    3 cuda.cc:1] no driver",
    "Omitted: a warning of ours",
  )
  code = (
    "import os, sys; from walt_t5x.config import programs\n"
    "with programs.quiet_imports():\n"
    "  for line in sys.argv[1:]: os.write(2, (line + '\\n').encode())\n"
    "  print('from Python', file=sys.stderr)\n"
    "  raise ImportError('broken')\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, *said], capture_output=True, text=True, check=False
  )
  lines = done.stderr.splitlines()
  assert lines[:3] == [*said[2:], "from Python"]
  assert done.returncode == 1 and lines[-1] == "ImportError: broken"


def _ended(folder, code, *arguments):
  """A process in which an exception ends a program, with a folder for its traceback."""
  code = f"from walt_t5x.config import programs\nprograms.report_errors('toy')\n{code}"
  return subprocess.run(
    [sys.executable, "-c", code, *arguments],
    env=os.environ | {"TMPDIR": str(folder)},
    capture_output=True,
    text=True,
    check=False,
  )


def test_a_bug_is_reported_in_a_few_lines_and_its_traceback_is_in_a_file(tmp_path):
  bug = "from walt_t5x import generate\ngenerate.read_shard(None)"
  done = _ended(tmp_path, bug)
  *told, last = done.stderr.splitlines()
  assert done.returncode == 1
  assert told[0].startswith("toy: AttributeError: 'NoneType' object has no attribute 'partition'")
  assert told[1].startswith("It was raised in or below walt_t5x/generate.py, line ")
  file = Path(last.partition("Its traceback is in ")[2].partition(";")[0])
  text = file.read_text()
  assert "Traceback (most recent call last)" in text and 'generate.py", line' in text
  shown = _ended(tmp_path, bug, "--debug").stderr
  assert shown.startswith("Traceback") and text.splitlines()[-1] == shown.splitlines()[-1]


def test_an_error_that_our_code_raises_is_its_message(tmp_path):
  error = "from walt_t5x import generate\ngenerate.read_shard('3')"
  done = _ended(tmp_path, error)
  assert done.returncode == 1 and done.stderr.startswith("toy: --shard=3: expected NUMBER/COUNT")
  assert len(done.stderr.splitlines()) == 1
  assert "Traceback" in _ended(tmp_path, error, "--debug").stderr
  # A library that raises the same class does not speak to users.
  assert "may be a bug" in _ended(tmp_path, "int('x')").stderr


def test_ctrl_c_ends_a_program_with_one_line(tmp_path):
  # A job in the background starts with the signal ignored.
  interrupt = (
    "import os, signal, time\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(50)"
  )
  done = _ended(tmp_path, interrupt)
  # A shell shows the end by this signal as 130.
  assert done.returncode == -signal.SIGINT
  assert done.stderr.split("\n") == ["", "toy: interrupted", ""]
  assert "Traceback" in _ended(tmp_path, interrupt, "--debug").stderr


def test_lines_come_at_a_pace_that_bounds_their_number(monkeypatch):
  """A training adds four lines: its compilation, last step, evaluation and end; a slow machine does not add any."""
  now = 0.0
  monkeypatch.setattr(waiting, "time", types.SimpleNamespace(monotonic=lambda: now))
  pace, times = waiting.Pace(), [0.0]
  while now < 5 * 24 * 3600:
    now += 1.0
    if pace.take():
      times.append(now)
  gaps = np.diff(times)
  assert times[1] == 3 and gaps[1:7].tolist() == [15.0] * 6
  assert sum(t <= 150 for t in times[1:]) <= 8 and sum(t <= 300 for t in times[1:]) <= 9
  # Later, it is not silent for long either.
  assert gaps.max() <= 240 and (np.diff(gaps) >= 0).all()
  # A line that is not held back counts.
  now += gaps.max() - 1
  pace.count()
  now += gaps.max() - 1
  assert not pace.take()
  now += 1
  assert pace.take()


def test_a_long_wait_is_announced_and_a_short_one_is_not():
  code = (
    "import time; from walt_t5x.config import programs, waiting\n"
    "waiting.FIRST_SECONDS, waiting.NEXT_SECONDS = 0.2, 0.5\n"
    "with waiting.waiting('toy', 'nothing'): pass\n"
    "with waiting.waiting('toy', 'other processes', enabled=False): time.sleep(0.4)\n"
    "with waiting.waiting('toy', 'compiling', expected=31), programs.quiet_imports():\n"
    "  time.sleep(0.9)\n"
    "  print('imported', flush=True)\n"
  )
  command = [sys.executable, "-c", code]
  said = subprocess.run(command, stdout=-1, stderr=subprocess.STDOUT, text=True, check=True).stdout
  first, second, *_, last = said.splitlines()
  assert first == "toy: compiling, 31 s the last time"
  assert re.fullmatch(r"toy: compiling, \d s so far, 31 s the last time", second)
  # Said while the imports' own lines are held back.
  assert last == "imported"


def test_libraries_log_warnings_only():
  code = (
    "import logging; from absl import logging as absl_logging\n"
    "from walt_t5x.config import programs\n"
    "absl_logging.use_absl_handler(); absl_logging.set_verbosity('info')\n"
    "programs.quiet_logs()\n"
    "for path in ('/lib/seqio/a.py', programs.__file__):\n"
    "  for level in (logging.INFO, logging.WARNING):\n"
    "    record = logging.LogRecord('absl', level, path, 1, f'{path} {level}', (), None)\n"
    "    absl_logging.get_absl_handler().handle(record)\n"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  lines = [line.partition("] ")[2] for line in done.stderr.splitlines() if "] " in line]
  said = [line.rpartition("/")[2] for line in lines]
  assert said == ["a.py 30", "programs.py 20", "programs.py 30"]


@pytest.mark.parametrize(
  ("settings", "shown"),
  [
    ({"default": 5, "type": int}, "help (default: 5)"),
    ({"default": 0, "type": int}, "help (default: 0)"),
    ({"default": 2.0, "type": float}, "help (default: 2)"),
    ({"default": ["a", "b"]}, "help (default: a,b)"),
    ({"default": "100%"}, "help (default: 100%)"),
    ({"required": True}, "help (required)"),
    ({"default": None}, "help"),
    ({"action": "store_true"}, "help"),
  ],
)
def test_help_shows_defaults_and_what_is_required(settings, shown):
  parser = usage.Parser("toy.program", "Does nothing.")
  parser.add_argument("--flag", help="help", **settings)
  parser.add_argument("--stated", default=7, help="stated (7)")
  text = " ".join(parser.format_help().split())
  # Neither the help of the flag nor that of the next one has more.
  assert f" {shown} --stated STATED stated (7)" in text
  needed = " --flag FLAG" if "required" in settings else ""
  assert text.startswith(f"usage: python -m toy.program{needed} [flags] Does nothing.")


@pytest.mark.parametrize(
  ("module", "headings"),
  [
    ("walt_t5x.train", ("configuration", "data", "several processes")),
    ("walt_t5x.generate", ("what to generate", "conditioning on frames", "output")),
    ("walt_t5x.evaluate", ("what is scored", "the work and its output")),
    ("beam_jobs.preprocess", ("source", "encoders", "clips", "filters", "decoding", "quality")),
  ],
)
def test_help_has_groups(module, headings):
  done = programs.run(module, "--help")
  assert done.returncode == 0
  assert [h for h in headings if f"\n{h}:\n" not in done.stdout] == []


@pytest.mark.parametrize(
  "module, flags",
  [
    ("walt_t5x.init", ["--data=m.jsonl", "--like=ucf101", "--output=gs://b/a"]),
    ("walt_t5x.text.import_encoder", ["--source=s3://b/a", "--output=b"]),
    ("walt_t5x.metrics.import_weights", ["--network=i3d", "--source=gs://b/a", "--output=b"]),
    ("walt_t5x.vae.import_lpips", ["--input=a", "--output=gs://b/a"]),
    ("walt_t5x.evaluation.benchmark_requests", ["--protocol=imagenet256", "--output=gs://b/a"]),
    ("data.lookalikes.corpora", ["ucf101", "gs://b/a"]),
  ],
)
def test_a_program_without_object_stores_rejects_addresses(
  module, flags, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "argv", [module, *flags])
  with pytest.raises(SystemExit):
    importlib.import_module(module).main()
  assert "://b/a, expected a local path" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_no_flag_turns_an_address_into_a_local_path():
  # `Path("gs://b/a")` is the folder `gs:` here.
  root = Path(usage.__file__).parents[2]
  files = (
    file for name in ("walt_t5x", "data", "beam_jobs") for file in (root / name).rglob("*.py")
  )
  assert [file for file in files if re.search(r"type=(pathlib\.)?Path\b", file.read_text())] == []
