"""Names in gin files that have changed, so that an old file is answered with the new name."""

# Macro -> its name now; None for one that is no longer needed.
MACROS: dict[str, str | None] = {
  "DATASET": "MIXTURE_OR_TASK_NAME",
  "HARDWARE_RNG": "USE_HARDWARE_RNG",
  "FEATURE_LENGTHS": None,
}
# Parameter that a gin file binds -> its name now.
PARAMETERS = {"normalise_latents": "normalize_latents"}
# Flag of a program -> its name now, with what else has changed.
FLAGS = {
  "rounds": "--extensions, which counts one less: --extensions=0 makes the trained length",
  "decoded_given": "--decoded_conditioning",
}
# Module that a gin file imports -> where it is now.
MODULES = {"walt_t5x.partitioning": "walt_t5x.sharding.partitioning"}


def macro_hint(name: str) -> str | None:
  """Returns what to write instead of an old macro, None for any other."""
  if name not in MACROS:
    return None
  new = MACROS[name]
  return f"{name} is now {new}." if new else f"{name} is no longer needed: leave it out."


def flag_hint(argument: str) -> str | None:
  """Returns the new name of the flag of an argument such as `--rounds=2`, None for any other."""
  if not argument.startswith("-"):
    return None
  name = argument.lstrip("-").partition("=")[0]
  new = FLAGS.get(name) or FLAGS.get(name.removeprefix("no"))
  return f"--{name} is now {new}." if new else None


def parameter_hint(message: str) -> str | None:
  """Returns the new name of a parameter that a failed binding named, None for any other."""
  for old, new in PARAMETERS.items():
    if f"'{old}'" in message:
      return f"{old} is now {new}."
  return None


def module_hint(message: str) -> str | None:
  """Returns where a module is that a failed import named, None for any other."""
  for old, new in MODULES.items():
    package, name = old.rsplit(".", 1)
    if old in message or (f"'{name}'" in message and f"'{package}'" in message):
      return f"{old} is now {new}: write `from {new.rsplit('.', 1)[0]} import {name}`."
  return None
