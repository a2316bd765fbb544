"""Every command in the documentation is accepted by its program, and its gin files and bindings parse.

Every command has run, as benchmarks/docs_commands.json says, or the page says what it needs.
"""

import argparse
import collections
import importlib
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from absl import flags

import gin
from benchmarks import docs_commands, reproduce, reproduce_commands
from walt_t5x.config import gin_config, usage

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = re.compile(
  r"(?:\.venv/bin/)?python (?:-m (?:walt_t5x|data|beam_jobs|benchmarks)\.|benchmarks/)"
)
# Programs with absl flags and a gin configuration.
GIN_PROGRAMS = (
  "walt_t5x.train",
  "walt_t5x.plan",
  "walt_t5x.generate",
  "walt_t5x.demo",
  "walt_t5x.serve",
  "walt_t5x.export",
  "walt_t5x.compare_upscaling",
  "walt_t5x.plan_sampling",
)


def commands(text):
  """The commands of a page's indented blocks, with continued lines joined."""
  lines = iter(text.splitlines())
  for line in lines:
    command = line.strip()
    while command.endswith("\\"):
      command = command[:-1] + " " + next(lines, "").strip()
    if line.startswith("    ") and OURS.match(command):
      yield command.removeprefix(".venv/bin/")


COMMANDS = [
  pytest.param(command, id=f"{page.name}-{index}")
  for page in PAGES
  for index, command in enumerate(commands(page.read_text(encoding="utf-8")))
]


class _Understood(Exception):
  """Raised instead of running the program."""


def _arguments(command):
  """(module or script, arguments, whether some were omitted) of a command line."""
  words = [word for word in shlex.split(command, comments=True) if word != "&"]
  complete = [word for word in words if word != "..."]
  program = complete[2] if complete[1] == "-m" else complete[1]
  return program, complete[3 if complete[1] == "-m" else 2 :], len(complete) < len(words)


def _check_argparse(program, arguments, abridged, monkeypatch):
  def parse_known_args(self, args=None, namespace=None):
    _, unknown = original(self, sys.argv[1:] if args is None else args, namespace)
    # The preprocessing job passes further flags to Beam.
    assert not unknown or program == "beam_jobs.preprocess", f"{program} does not know {unknown}"
    raise _Understood

  def error(self, message):
    assert abridged and message.startswith("the following arguments are required"), message
    raise _Understood

  original = argparse.ArgumentParser.parse_known_args
  monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
  monkeypatch.setattr(argparse.ArgumentParser, "error", error)
  monkeypatch.setattr(usage.Parser, "error", error)
  if any(argument.startswith("--config=") for argument in arguments):
    # The file is written by another command: its flags are not known here.
    arguments = [a for a in arguments if not a.startswith("--config=")]
    abridged = True
  monkeypatch.setattr(sys, "argv", [program, *arguments])
  with pytest.raises(_Understood):
    if program.endswith(".py"):
      runpy.run_path(str(ROOT / program), run_name="__main__")
    else:
      runpy.run_module(program, run_name="__main__")


def _check_gin(program, arguments, abridged, monkeypatch):
  module = importlib.import_module(program)
  values = flags.FlagValues()
  for kind in [name for name in dir(flags) if name.startswith("DEFINE_")]:
    define = getattr(flags, kind)
    monkeypatch.setattr(
      flags, kind, lambda *a, _define=define, **k: _define(*a, **{"flag_values": values} | k)
    )
  module.define_flags()
  left = values(gin_config.rewrite_gin_args([program, *arguments]))
  if "preset" in values and (values.preset or values.run):
    # They need no gin file.
    assert not values.gin_file
    return
  if "compare" in values and values.compare:
    files, left = left[1:], left[:1]
    assert files and all((ROOT / file).is_file() for file in files)
    return
  assert left == [program], f"{program} does not know {left[1:]}"
  from walt_t5x import engine
  from walt_t5x.generation.loading import CascadeConfig

  # Like the programs: files that trained a stage are also read to sample it.
  main = sys.modules["__main__"]
  monkeypatch.setattr(main, "train", engine.train, raising=False)
  if program not in ("walt_t5x.train", "walt_t5x.plan"):
    monkeypatch.setattr(main, "generate", CascadeConfig, raising=False)
  assert values.gin_file, f"{program} has no --gin_file"
  if values.gin_file == ["..."] or values.gin_file[0].startswith("runs/"):
    # Abridged, or written by another command.
    return
  gin.clear_config()
  # Sizes of a plan come from shapes: it needs no folder to train in.
  complete = not abridged and not program.startswith("walt_t5x.plan")
  try:
    gin_config.parse(values.gin_file, list(values.gin_bindings), [str(ROOT)], finalize=complete)
  finally:
    gin.clear_config()


def test_the_pages_have_commands():
  assert len(COMMANDS) > 20


def test_the_costs_of_the_readme_are_those_of_the_plans():
  plans = json.loads((ROOT / "benchmarks/plans.json").read_text(encoding="utf-8"))
  days = {plan["gin_file"]: reproduce.rounded(reproduce.chip_days(plan)) for plan in plans}
  readme = (ROOT / "README.md").read_text(encoding="utf-8")
  pattern = r"^\| `(gin/walt_\w+\.gin)` \|.*\| ([\d.,]+) \| not trained \|$"
  rows = re.findall(pattern, readme, re.MULTILINE)
  assert len(rows) == 8 and {name: cost for name, cost in rows if days[name] != cost} == {}


def test_the_reproduction_page_is_up_to_date():
  plans = json.loads((ROOT / "benchmarks/plans.json").read_text(encoding="utf-8"))
  written = reproduce.page({plan["gin_file"]: plan for plan in plans})
  assert reproduce.PAGE.read_text(encoding="utf-8") == written, "run python -m benchmarks.reproduce"
  # Tables 1 to 5 of the paper, our rows of each.
  counts = collections.Counter(row.table for row in reproduce_commands.ROWS)
  assert counts == {
    "1": 3,
    "2": 1,
    "3a": 3,
    "3b": 4,
    "3c": 4,
    "3d": 5,
    "3e": 4,
    "3f": 4,
    "4": 2,
    "5": 3,
  }


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_is_accepted(command, monkeypatch):
  program, arguments, abridged = _arguments(command)
  if program in GIN_PROGRAMS:
    _check_gin(program, arguments, abridged, monkeypatch)
  else:
    _check_argparse(program, arguments, abridged, monkeypatch)


def test_commands_of_the_first_pages_work_as_printed():
  readme = (ROOT / "README.md").read_text(encoding="utf-8")
  (said,) = re.finditer(
    r"run from the root of the clone; [^.]*`source \.venv/bin/activate`", readme
  )
  # Before it is said, and in the quickstart, no environment is active.
  quickstart = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8")
  for text in (readme[: said.start()], quickstart):
    assert re.findall(r"^    (?:python|walt-)\b.*", text, re.MULTILINE) == []


def test_every_command_has_run_or_the_page_says_what_it_needs():
  settings = tomllib.loads(docs_commands.SETTINGS.read_text(encoding="utf-8"))
  entries = docs_commands.recorded()
  missing = [
    f"{command.page}: {command.text}"
    for command in docs_commands.ordered(docs_commands.all_commands(), settings)
    if not docs_commands.has_run(command, settings, entries)
  ]
  assert missing == [], (
    "these have not run as they are now; run `python -m benchmarks.docs_commands`, or write `Needs: ...` above the "
    "block, or put a block that has no commands into a fence"
  )


def test_git_ignores_what_the_documented_commands_write():
  written = {
    name
    for entry in docs_commands.recorded().values()
    for name in re.findall(r"--(?:output|output_dir|dest)=([\w.][\w./-]*)", entry["run"])
  }
  assert "samples" in written
  done = subprocess.run(
    ["git", "check-ignore", "--no-index", "--stdin"],
    input="\n".join(f"{name}/file" if "." not in name else name for name in sorted(written)),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  ignored = {line.removesuffix("/file") for line in done.stdout.splitlines()}
  assert written - ignored == set()


def test_the_table_of_commands_has_no_links_of_the_pages():
  command = docs_commands.Command("docs/a.md", 0, "x", "weights ([b.md](b.md), [c](d/c.md)), a pod")
  assert "| docs/a.md | 1 | weights (b.md, c), a pod |" in docs_commands.table([], [command])


PAGE = """
Text. Needs: two
hosts.

    first --flag \\
      --other    # comment

    # comment
    second "a # b"

- item
    continued

      third

```text
    not a command
```

Needs, from here on: a pod.

Text.

    fourth
"""


def test_commands_of_a_page():
  found = docs_commands.commands("page", PAGE)
  assert [(command.block, command.text, command.needs) for command in found] == [
    (0, "first --flag --other", "two hosts"),
    (0, 'second "a # b"', "two hosts"),
    (1, "third", ""),
    (2, "fourth", "a pod"),
  ]


def test_overrides_replace_placeholders_only():
  settings = {
    "replace": {"*": {"DIR": "a/DIR"}, "page": {"...": "--x=1"}},
    "flags": {"*": {"run ": "--y=2"}},
  }
  command = docs_commands.Command("page", 0, "run --d=DIR --model=MODEL_DIR ...", "")
  run, used = docs_commands.overridden(command, settings)
  assert run == "run --d=a/DIR --model=MODEL_DIR --x=1 --y=2"
  assert used == {"DIR": "a/DIR", "...": "--x=1", "+ run ": "--y=2"}


@pytest.mark.parametrize(
  ("extra", "files"),
  [
    ("demo", ("docs/generation.md", "walt_t5x/demo.py")),
    ("serve", ("docs/serving.md", "walt_t5x/serve.py")),
  ],
)
def test_the_programs_that_serve_are_installed_at_the_versions_of_their_extras(extra, files):
  line = re.search(rf'"{extra}": \[([^]]+)\]', (ROOT / "setup.py").read_text(encoding="utf-8"))[1]
  pins = " ".join(re.findall('"([^"]+)"', line))
  for file in files:
    assert f"pip install {pins}" in (ROOT / file).read_text(encoding="utf-8"), file
