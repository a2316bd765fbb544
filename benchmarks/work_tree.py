"""Copies of the repository's work tree."""

import shutil
import subprocess
from pathlib import Path


def copy_tree(root: Path, to: Path) -> None:
  """Copies the files of a work tree that git does not ignore."""
  listed = subprocess.run(
    ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
    cwd=root,
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  for name in filter(None, listed.split("\0")):
    if (root / name).is_file():
      (to / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(root / name, to / name)
