"""A recorded model as gin bindings, for the gin file of a run that starts from it."""

from collections.abc import Mapping
from typing import Any

from walt_t5x.models.model_record import BY_NAME

# Gin files import the learning-rate schedules by this name.
_ALIAS = {"schedules": " as noise_schedules"}


def bindings(tree: Mapping[str, Any]) -> tuple[list[str], list[str], str]:
  """(import lines, blocks of bindings, reference) of the model of a run's record, `model_record.record_of`.

  The reference, such as `@denoiser_model.DenoiserModel()`, is what gin binds a model to.
  """
  imports: set[str] = set()
  blocks: list[str] = []
  reference = _add(dict(tree), "", imports=imports, blocks=blocks, seen=set())
  return sorted(imports), blocks, reference


def _add(
  tree: Mapping[str, Any], field: str, *, imports: set[str], blocks: list[str], seen: set[str]
) -> str:
  """Adds the block of an object after those of the objects in it; returns its reference."""
  name = tree["class"]
  package, _, module = BY_NAME[name].__module__.rpartition(".")
  imports.add(f"from {package} import {module}{_ALIAS.get(module, '')}")
  module = _ALIAS.get(module, module).removeprefix(" as ")
  # A second object of a class has a scope: the field that holds it.
  scope = f"{field}/" if name in seen else ""
  seen.add(name)
  lines = [f"{scope}{module}.{name}:"]
  for setting, value in tree.items():
    if setting == "class":
      continue
    if isinstance(value, Mapping):
      told = _add(value, setting, imports=imports, blocks=blocks, seen=seen)
    else:
      told = repr(tuple(value) if isinstance(value, list) else value)
    lines.append(f"  {setting} = {told}")
  blocks.append("\n".join(lines) if len(lines) > 1 else "")
  return f"@{scope}{module}.{name}()"
