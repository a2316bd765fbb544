"""What programs share: quiet imports."""

import subprocess
import sys


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
