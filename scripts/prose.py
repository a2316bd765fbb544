"""Checks that comments, docstrings, messages, gin files and docs avoid the phrases of prose.toml.

python scripts/prose.py                    # every tracked text file
python scripts/prose.py docs README.md     # some of them
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_suffix(".toml")
SUFFIXES = (
  ".py",
  ".md",
  ".gin",
  ".toml",
  ".sh",
  ".yml",
  ".yaml",
  ".j2",
  ".html",
  ".css",
  ".in",
  "",
)
# What machines write, or what others wrote.
LEFT_OUT = ("benchmarks/mutation", "docs/licenses", "LICENSE", "scripts/prose.toml")
MOST_EXCEPTIONS = 5


def files(paths: list[str]) -> list[Path]:
  """Tracked text files under the paths."""
  command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *paths]
  output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
  names = [name for name in output.split("\0") if name]
  return [
    ROOT / name
    for name in sorted(names)
    if Path(name).suffix in SUFFIXES and not name.startswith(LEFT_OUT) and (ROOT / name).is_file()
  ]


def main(argv: list[str] | None = None) -> int:
  """Prints each hit as `file:line: phrase (write: ...)`; returns 1 if there is one."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("paths", nargs="*", help="files or folders; everything by default")
  parser.add_argument("--count", action="store_true", help="hits per phrase instead of lines")
  arguments = parser.parse_args(argv)
  config = tomllib.loads(LIST.read_text(encoding="utf-8"))
  phrases = [(re.compile(p["pattern"], re.IGNORECASE), p["instead"]) for p in config["phrase"]]
  exceptions = {(e["file"], e["text"]): e["reason"] for e in config.get("exception", ())}
  counts, problems = Counter(), []
  for file in files(arguments.paths):
    name = file.relative_to(ROOT).as_posix()
    try:
      lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
      continue
    for number, line in enumerate(lines, 1):
      for pattern, instead in phrases:
        for match in pattern.finditer(line):
          if any(name == f and text in line for f, text in exceptions):
            continue
          counts[instead] += 1
          problems.append(f"{name}:{number}: {match[0]!r} (write: {instead})")
  for pattern, instead in phrases:
    used = [text for _, text in exceptions if pattern.search(text)]
    if len(used) > MOST_EXCEPTIONS:
      problems.append(f"prose.toml has {len(used)} exceptions for {instead!r}, expected at most 5")
  if arguments.count:
    print("\n".join(f"{count:5d}  {instead}" for instead, count in counts.most_common()))
  else:
    print("\n".join(problems))
  return int(bool(problems))


if __name__ == "__main__":
  sys.exit(main())
