"""Runs the commands of README.md and docs/ at toy size, in the order of docs_commands.toml.

  python -m benchmarks.docs_commands                       # every command; writes docs_commands.{json,md}
  python -m benchmarks.docs_commands --work=/tmp/docs --pages docs/records.md   # a page, in a folder that is kept
  python -m benchmarks.docs_commands --work=/tmp/docs --missing    # only commands without a successful run

In the pages, an indented block has commands and a fenced block something else. A paragraph directly above a block that
ends with `Needs: a TPU pod.` says what its commands need, and they are not run. `Needs, from here on: ...` holds up to
the end of the page.

The working folder is a copy of the repository with the results of the quickstart (`--folder`) in runs/quickstart and
an environment that `scripts/setup.sh` fills. docs_commands.toml has what replaces placeholders such as CACHE, and the
flags that shorten a run; both are printed. A server must answer, and is stopped after the last command of its block.
`tests/docs_test.py` compares the pages with docs_commands.json.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import docs_sources, work_tree

ROOT = Path(__file__).resolve().parents[1]
REPORT = Path(__file__).with_suffix(".json")
SETTINGS = Path(__file__).with_suffix(".toml")
NEEDS = re.compile(r"(?:^|\s)Needs: (.+)\.$")
NEEDS_FROM_HERE = re.compile(r"^Needs, from here on: (.+)\.$")


@dataclass(frozen=True)
class Command:
  """A command of a page: continued lines joined, comments removed.

  Attributes:
    page: path of the page.
    block: number of its block in the page.
    text: the command.
    needs: what it needs to run, or "".
  """

  page: str
  block: int
  text: str
  needs: str


def pages() -> list[str]:
  """Paths of the pages that have commands."""
  found = sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / "docs").glob("*.md"))
  return ["README.md", *(page for page in found if page != "docs/licenses.md")]


def _blocks(text: str) -> Iterator[tuple[str, list[str]]]:
  """(needs, lines) of each indented block outside fences."""
  above: list[str] = []
  block: list[str] = []
  fenced, blank, rest = False, True, ""
  for line in [*text.splitlines(), "end"]:
    if line.lstrip().startswith("```"):
      fenced = not fenced
    inside = line.startswith("    ") and not fenced and (blank or bool(block))
    if inside:
      block.append(line.strip())
    elif line.strip():
      if block:
        match = NEEDS.search(" ".join(above))
        yield match[1] if match else rest, block
        block, above = [], []
      if match := NEEDS_FROM_HERE.match(line):
        rest = match[1]
      above = [line] if blank else [*above, line]
    blank = not line.strip()


def commands(page: str, text: str) -> list[Command]:
  """The commands of a page, in order."""
  found = []
  for number, (needs, lines) in enumerate(_blocks(text)):
    numbered = iter(lines)
    for line in numbered:
      while line.endswith("\\"):
        line = line[:-1].rstrip() + " " + next(numbered, "")
      line = re.sub(r"(^|\s{2,})#\s.*$", "", line)
      if line:
        found.append(Command(page, number, line, needs))
  return found


def all_commands() -> list[Command]:
  """The commands of all pages; one that occurs twice in a page has its last place."""
  found = []
  for page in pages():
    of_page = commands(page, (ROOT / page).read_text(encoding="utf-8"))
    last = {command.text: number for number, command in enumerate(of_page)}
    found += [command for number, command in enumerate(of_page) if last[command.text] == number]
  return found


def ordered(found: Sequence[Command], settings: dict[str, Any]) -> list[Command]:
  """The commands to run, by the order of pages; those in `last` after the others."""
  order = [*settings["pages"]]
  if missing := {command.page for command in found} - {*order}:
    raise ValueError(f"{SETTINGS.name} has no place for {missing}")

  def place(command: Command) -> tuple[bool, int]:
    return any(part in command.text for part in settings["last"]), order.index(command.page)

  return sorted((command for command in found if not command.needs), key=place)


def _pattern(part: str) -> str:
  """A part of a command as a regular expression; a placeholder is a complete word."""
  start = r"(?<!\w)" if part[0].isalnum() else ""
  return start + re.escape(part) + (r"(?!\w)" if part[-1].isalnum() else "")


def overridden(command: Command, settings: dict[str, Any]) -> tuple[str, dict[str, str]]:
  """What is run, and the overrides in it: replaced parts, and `+` and a part for flags added at the end."""
  replaced = settings["replace"]["*"] | settings["replace"].get(command.page, {})
  flags = settings["flags"]["*"] | settings["flags"].get(command.page, {})
  used: dict[str, str] = {}

  def new(match: re.Match[str]) -> str:
    used[match[0]] = replaced[match[0]]
    return replaced[match[0]]

  parts = sorted(replaced, key=len, reverse=True)
  run = re.sub("|".join(map(_pattern, parts)), new, command.text)
  for part, added in flags.items():
    if re.search(_pattern(part), command.text):
      run, used[f"+ {part}"] = f"{run} {added}", added
  return run, used


def prepare(work: Path, folder: Path) -> None:
  """Makes the working folder, or brings the copy of the repository in it up to date."""
  work_tree.copy_tree(ROOT, work)
  environment = work / ".venv"
  if not environment.is_dir():
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    # `scripts/setup.sh` installs what programs need; tests also need pytest and torch.
    (packages / "tests.pth").write_text(f"{Path(sys.prefix) / packages.relative_to(environment)}\n")
  if not (work / "runs/quickstart").is_dir():
    if not (folder / "quickstart.json").is_file():
      sys.exit(
        f"--folder={folder}: found no quickstart.json; run `bash scripts/quickstart.sh` first"
      )
    shutil.copytree(folder, work / "runs/quickstart")
  docs_sources.make(work / "runs/quickstart/corpus", work / "sources")
  docs_sources.make_own(work / "runs/quickstart/corpus", work)


def environment_of(work: Path) -> dict[str, str]:
  """Environment of the commands; programs are those of the working folder's environment."""
  return os.environ | {
    "PATH": os.pathsep.join([f"{work}/.venv/bin", f"{sys.prefix}/bin", os.environ["PATH"]]),
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(work / "runs/xla"),
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "PYTHONDONTWRITEBYTECODE": "1",
  }


def start(run: str, work: Path, log: Path) -> subprocess.Popen[bytes]:
  """Starts a command in a process group."""
  with log.open("wb") as output:
    return subprocess.Popen(
      ["bash", "-c", run],
      cwd=work,
      env=environment_of(work),
      stdin=subprocess.DEVNULL,
      stdout=output,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes]) -> None:
  """Ends a process group: SIGTERM, and SIGKILL after 30 seconds."""
  for sent, wait in ((signal.SIGTERM, 30), (signal.SIGKILL, 30)):
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, sent)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(wait)
      break


def answers(address: str) -> bool:
  """Whether a server answers at `http://...` or accepts a connection at `host:port`."""
  with contextlib.suppress(OSError):
    if address.startswith("http"):
      with urllib.request.urlopen(address, timeout=20) as response:
        return response.status == 200
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=20):
      return True
  return False


def code_of(process: subprocess.Popen[bytes], address: str, timeout: float) -> int:
  """The return code; of a server 0 once it answers. 124 after the timeout."""
  started = time.monotonic()
  while time.monotonic() - started < timeout:
    if process.poll() is not None:
      return process.returncode if not address else process.returncode or 1
    if address and answers(address):
      return 0
    time.sleep(0.2)
  stop(process)
  return 124


def run_all(
  todo: Sequence[Command], settings: dict[str, Any], work: Path, timeout: float
) -> Iterator[dict[str, Any]]:
  """Runs the commands; yields the entry of each."""
  servers: list[subprocess.Popen[bytes]] = []
  started = time.monotonic()
  logs = work / "runs/logs"
  logs.mkdir(parents=True, exist_ok=True)
  try:
    for number, command in enumerate(todo):
      if number and (command.page, command.block) != (
        todo[number - 1].page,
        todo[number - 1].block,
      ):
        while servers:
          stop(servers.pop())
      run, used = overridden(command, settings)
      spent = time.monotonic() - started
      left = f", {spent / number * (len(todo) - number) / 60:.0f} min left" if number else ""
      print(
        f"[{number + 1}/{len(todo)}] {command.page} ({spent / 60:.0f} min{left})\n$ {run}",
        *(f"    {old}  ->  {new}" for old, new in used.items()),
        sep="\n",
        file=sys.stderr,
        flush=True,
      )
      address = next((a for part, a in settings["servers"].items() if part in command.text), "")
      begun, log = time.monotonic(), logs / f"{command.page.replace('/', '_')}-{number}.txt"
      process = start(run, work, log)
      if address:
        servers.append(process)
      try:
        code = code_of(process, address, timeout)
      except BaseException:
        stop(process)
        raise
      seconds = round(time.monotonic() - begun, 1)
      print(f"    return code {code}, {seconds} s", file=sys.stderr, flush=True)
      if code:
        print(log.read_text(errors="replace")[-3000:], file=sys.stderr, flush=True)
      yield {
        "page": command.page,
        "text": command.text,
        "run": run,
        "overrides": used,
        "returncode": code,
        "seconds": seconds,
        "date": time.strftime("%Y-%m-%d"),
      }
  finally:
    while servers:
      stop(servers.pop())


def table(entries: Sequence[dict[str, Any]], found: Sequence[Command]) -> str:
  """The report as Markdown."""
  minutes = sum(entry["seconds"] for entry in entries) / 60
  lines = [
    "# Commands of the documentation",
    "",
    "    python -m benchmarks.docs_commands",
    "",
    f"{sum(not entry['returncode'] for entry in entries)} of {len(entries)} commands ran, in {minutes:.0f} minutes on "
    "two shared CPU cores. Overrides: placeholders of a page, and flags that shorten a run. A server must answer.",
    "",
    "| page | command | overrides | seconds | return code |",
    "| --- | --- | --- | --- | --- |",
  ]
  for entry in entries:
    cells = [f"`{entry['text']}`"]
    cells.append("; ".join(f"`{old}`: `{new}`" for old, new in entry["overrides"].items()))
    cells = [cell.replace("|", "\\|") for cell in cells]
    lines.append(
      f"| {entry['page']} | {' | '.join(cells)} | {entry['seconds']:.0f} | {entry['returncode']} |"
    )
  # Links of a page are relative to its folder.
  needs = Counter(
    (command.page, re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", command.needs))
    for command in found
    if command.needs
  )
  lines += ["", "Not run:", "", "| page | commands | need |", "| --- | --- | --- |"]
  lines += [f"| {page} | {count} | {need} |" for (page, need), count in needs.items()]
  return "\n".join(lines) + "\n"


def recorded() -> dict[tuple[str, str], dict[str, Any]]:
  """Entries of docs_commands.json by page and text."""
  if not REPORT.is_file():
    return {}
  entries = json.loads(REPORT.read_text(encoding="utf-8"))
  return {(entry["page"], entry["text"]): entry for entry in entries}


def has_run(
  command: Command, settings: dict[str, Any], entries: dict[tuple[str, str], dict[str, Any]]
) -> bool:
  """Whether the command ran without an error as it is now, with the overrides of now."""
  entry = entries.get((command.page, command.text), {"returncode": None})
  return entry["returncode"] == 0 and entry["run"] == overridden(command, settings)[0]


def write(
  entries: dict[tuple[str, str], dict[str, Any]], found: Sequence[Command], order: Sequence[Command]
) -> int:
  """Writes the report of the commands that are still in the pages; returns how many failed."""
  kept = [entries[key] for c in order if (key := (c.page, c.text)) in entries]
  REPORT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
  REPORT.with_suffix(".md").write_text(table(kept, found), encoding="utf-8")
  return sum(entry["returncode"] != 0 for entry in kept)


def main() -> int:
  """Runs the commands; returns 1 if one failed."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--folder", default="runs/quickstart", help="output of scripts/quickstart.sh")
  parser.add_argument("--work", help="working folder, kept (default: a temporary one)")
  parser.add_argument("--pages", nargs="*", help="only these, such as docs/records.md")
  parser.add_argument("--missing", action="store_true", help="only what has not succeeded yet")
  parser.add_argument("--timeout", type=float, default=600, help="seconds per command")
  parser.add_argument("--list", action="store_true", help="print what would be run")
  args = parser.parse_args()
  settings = tomllib.loads(SETTINGS.read_text(encoding="utf-8"))
  found = all_commands()
  order = ordered(found, settings)
  entries = recorded()
  todo = [
    command
    for command in order
    if (not args.pages or command.page in args.pages)
    and not (args.missing and has_run(command, settings, entries))
  ]
  if args.list:
    for command in todo:
      print(f"{command.page}\n  {command.text}\n  {overridden(command, settings)[0]}")
    return 0
  # So that the running command and the servers are stopped too.
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
  with tempfile.TemporaryDirectory() as temporary:
    work = Path(args.work or temporary).resolve()
    work.mkdir(parents=True, exist_ok=True)
    prepare(work, Path(args.folder).resolve())
    failed = 0
    for entry in run_all(todo, settings, work, args.timeout):
      entries[entry["page"], entry["text"]] = entry
      failed = write(entries, found, order)
  print(f"{len(todo)} commands ran; {failed} of {REPORT.name} failed")
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
