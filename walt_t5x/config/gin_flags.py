"""Flags for gin files with T5X's names: `--gin_file`, `--gin.NAME=value`, `--gin_search_paths`."""

import sys
from collections.abc import Sequence

from absl import app, flags

from walt_t5x.config import gin_config

FLAGS = flags.FLAGS
# Flag of a program -> its name now, with what else has changed.
OLD_FLAGS = {
  "rounds": "--extensions, which counts one less: --extensions=0 makes the trained length",
  "decoded_given": "--decoded_conditioning",
}


def define() -> None:
  """Registers the flags with absl as flags of the running program, so that its `--help` shows them."""
  flags.DEFINE_multi_string("gin_file", None, "gin files; later ones override earlier ones.")
  flags.DEFINE_multi_string(
    "gin_bindings", [], "Single bindings; `--gin.NAME=value` is short for one."
  )
  flags.DEFINE_list(
    "gin_search_paths", ["."], "Folders to look for gin files in, before those of the package."
  )
  for flag in FLAGS.get_key_flags_for_module(__name__):
    FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def flag_hint(argument: str) -> str | None:
  """The new name of the flag of an argument such as `--rounds=2`, None for any other."""
  if not argument.startswith("-"):
    return None
  name = argument.lstrip("-").partition("=")[0]
  new = OLD_FLAGS.get(name) or OLD_FLAGS.get(name.removeprefix("no"))
  return f"--{name} is now {new}." if new else None


def parse_args(args: Sequence[str]) -> list[str]:
  """Parses absl's flags with `--gin.NAME=value` rewritten, for `app.run`; returns the remaining arguments."""
  for hint in filter(None, map(flag_hint, args[1:])):
    sys.exit(f"FATAL Flags parsing error: {hint}")
  try:
    return app.parse_flags_with_usage(gin_config.rewrite_gin_args(list(args)))
  except SystemExit:
    # absl exits with 1 after it has printed the help.
    if {"--help", "--helpshort", "--helpfull"} & {*args}:
      sys.exit(0)
    raise


def check(argv: Sequence[str], *needed: str, example: str, instead: str | None = None) -> None:
  """Raises a UsageError if main's `argv` has arguments, or `--gin_file` or one of the `needed` flags is missing.

  `instead` is a flag that replaces `--gin_file` where it is set.
  """
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {list(argv[1:])}; bindings are --gin.NAME=value.")
  if instead and FLAGS[instead].value:
    if FLAGS.gin_file:
      raise app.UsageError(
        f"--{instead} has its own gin file: remove --gin_file; --gin.NAME=value changes single bindings."
      )
  else:
    needed = ("gin_file", *needed)
  missing = [name for name in needed if not FLAGS[name].value]
  if missing:
    names = " and ".join(f"--{name}" for name in missing)
    raise app.UsageError(f"{names} missing; for example --gin_file={example}.")


def read(files: Sequence[str] | None = None, *, finalize: bool = True) -> None:
  """Parses files, by default those of `--gin_file`, and the bindings of the flags; see `gin_config.parse`."""
  folders = [*FLAGS.gin_search_paths, gin_config.FOLDER]
  gin_config.parse(files or FLAGS.gin_file, list(FLAGS.gin_bindings), folders, finalize=finalize)
