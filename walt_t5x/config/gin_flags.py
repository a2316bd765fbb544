"""Flags for gin files with T5X's names: `--gin_file`, `--gin.NAME=value`, `--gin_search_paths`; and absl's `--help`."""

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from absl import flags

from walt_t5x.config import gin_config, gin_text, programs, usage
from walt_t5x.config.waiting import waiting

FLAGS = flags.FLAGS
_REQUIRED = " (required)"
_HELP = {"--help", "-help", "-h", "-?", "--helpshort"}
# Heading in `--help` -> the flags under it.
_GROUPS: dict[str, list[str]] = {}
# Flag of a program -> its name now, with what else has changed.
OLD_FLAGS = {
  "rounds": "--extensions, which counts one less: --extensions=0 makes the trained length",
  "decoded_given": "--decoded_conditioning",
}


@contextlib.contextmanager
def group(heading: str) -> Iterator[None]:
  """The flags that are defined inside the block are under this heading in `--help`."""
  before = set(FLAGS)
  yield
  _GROUPS.setdefault(heading, []).extend(name for name in FLAGS if name not in before)


def define() -> None:
  """Registers the flags with absl as flags of the running program, so that its `--help` shows them."""
  with group("configuration"):
    flags.DEFINE_multi_string(
      "gin_file", None, "Gin file (required); may be repeated, later ones override earlier ones."
    )
    flags.DEFINE_multi_string(
      "gin_bindings", [], "Single bindings; `--gin.NAME=value` is short for one."
    )
    flags.DEFINE_list(
      "gin_search_paths", ["."], "Folders to look for gin files in, before those of the package."
    )
  with group("messages"):
    flags.DEFINE_boolean("debug", False, usage.DEBUG_HELP.capitalize() + ".")


def flag_hint(argument: str) -> str | None:
  """The new name of the flag of an argument such as `--rounds=2`, None for any other."""
  if not argument.startswith("-"):
    return None
  name = argument.lstrip("-").partition("=")[0]
  new = OLD_FLAGS.get(name) or OLD_FLAGS.get(name.removeprefix("no"))
  return f"--{name} is now {new}." if new else None


def parse_args(args: Sequence[str]) -> list[str]:
  """Parses absl's flags with `--gin.NAME=value` rewritten, for `app.run`; returns the remaining arguments.

  From then on errors end the program as `programs.report_errors` says, and libraries log warnings only.
  """
  programs.report_errors(_program())
  programs.quiet_logs()
  if _HELP & {*args[1:]}:
    _print_help()
    sys.exit(0)
  for hint in filter(None, map(flag_hint, args[1:])):
    reject(hint)
  try:
    return FLAGS(gin_config.rewrite_gin_args(list(args)))
  except flags.UnrecognizedFlagError as error:
    given = f"--{error.flagname}"
    reject(
      usage.unknown_flags([given], [f"--{name}" for name in FLAGS]).strip()
      or f"{given} is unknown."
    )
  except (flags.Error, gin_config.GinError) as error:
    message = str(error).replace("flag --", "--", 1)
    if wrong := re.match(r"--(\w+)=(.*): invalid literal|--(\w+)=(.*): could not convert", message):
      name = wrong[1] or wrong[3]
      message = f"{message.partition(': ')[0]}: {usage.expected_number(name, FLAGS[name].default)}"
    reject(message)
  except SystemExit:
    # absl exits with 1 after it has printed the help.
    sys.exit(0)


def reject(message: str) -> NoReturn:
  """Ends the running program, whose command is wrong."""
  usage.reject(_program(), message)


def check(
  argv: Sequence[str],
  *needed: str,
  instead: str | None = None,
  complete: bool = True,
  scripts: Sequence[str] = ("train",),
) -> None:
  """Ends the program if its command is wrong, before anything heavy is imported.

  Args:
    argv: main's arguments, of which there must be none.
    *needed: required flags as examples, such as `gin_file=gin/tiny/base.gin`.
    instead: a flag that replaces `--gin_file` where it is set.
    complete, scripts: as in `gin_text.check`.
  """
  if len(argv) > 1:
    bound = [f"--gin.{arg.removeprefix('gin.')}" for arg in argv[1:] if "=" in arg]
    hint = f"for a binding write {bound[0]}" if bound else "values with spaces need quotes"
    reject(f"unexpected arguments {list(argv[1:])}; {hint}")
  if instead and FLAGS[instead].value:
    needed = tuple(example for example in needed if not example.startswith("gin_file="))
  missing = [example for example in needed if not FLAGS[example.partition("=")[0]].value]
  if missing:
    names = " and ".join(f"--{example.partition('=')[0]}" for example in missing)
    verb = "are" if len(missing) > 1 else "is"
    examples = " ".join(f"--{example}" for example in missing)
    reject(f"{names} {verb} missing; for example {examples}")
  if FLAGS.gin_file:
    with programs.user_errors(_program()):
      gin_text.check(
        FLAGS.gin_file, list(FLAGS.gin_bindings), _folders(), complete=complete, scripts=scripts
      )


def read(files: Sequence[str] | None = None, *, finalize: bool = True) -> None:
  """Parses files, by default those of `--gin_file`, and the bindings of the flags; see `gin_config.parse`."""
  with waiting(_program(), "importing what the gin files name"), programs.quiet_imports():
    gin_config.parse(
      files or FLAGS.gin_file, list(FLAGS.gin_bindings), _folders(), finalize=finalize
    )


def _folders() -> list[str]:
  return [*FLAGS.gin_search_paths, gin_text.FOLDER]


def _program() -> str:
  return _module().rpartition(".")[2]


def _module() -> str:
  spec = getattr(sys.modules["__main__"], "__spec__", None)
  return spec.name if spec else sys.argv[0].rpartition("/")[2]


def _print_help() -> None:
  """Prints the flags by group, with defaults."""
  parser = usage.Parser(_module(), sys.modules["__main__"].__doc__, add_debug=False)
  shown = {"verbosity": "How much is logged: -1 warnings, 0 information, 1 debugging."}
  grouped = {name for names in _GROUPS.values() for name in names}
  own = [flag.name for flag in FLAGS.get_key_flags_for_module(sys.argv[0])]
  groups = {"flags": [name for name in own if name not in grouped]}
  groups |= {heading: list(names) for heading, names in _GROUPS.items()}
  groups["messages"].extend(shown)
  for heading in sorted(groups, key="messages".__eq__):
    section = parser.add_argument_group(heading)
    for name in groups[heading]:
      flag = FLAGS[name]
      text = re.sub(r";\s+repeat this option.*", "", shown.get(name) or flag.help, flags=re.DOTALL)
      options: Any = {
        "default": flag.default,
        "required": _REQUIRED in text,
        "help": text.replace(_REQUIRED, "").replace("%", "%%"),
      }
      if flag.boolean:
        section.add_argument(f"--{name}", action="store_true", **options)
      else:
        section.add_argument(f"--{name}", **options)
  parser.print_help()
  print(
    "\n--gin.NAME=value sets a binding of the gin files; --helpfull lists the flags of libraries."
  )
