"""Lists the programs (`python -m walt_t5x`), and starts them as the commands of an installed package.

`walt-train` is `python -m walt_t5x.train`, and so on.

A command runs its module as `__main__`, as `python -m` does: gin files use `import __main__ as train_script`, and
worker processes import the main module by its name. This module must therefore not import a program.
"""

import ast
import functools
import importlib.util
import runpy
from pathlib import Path

PACKAGES = ("walt_t5x", "beam_jobs")


def _run(module: str) -> None:
  # An installed command exits with what its function returns: not with the module's globals.
  runpy.run_module(module, run_name="__main__", alter_sys=True)


# The commands of setup.py.
init = functools.partial(_run, "walt_t5x.init")
train = functools.partial(_run, "walt_t5x.train")
generate = functools.partial(_run, "walt_t5x.generate")
evaluate = functools.partial(_run, "walt_t5x.evaluate")
preprocess = functools.partial(_run, "beam_jobs.preprocess")
report = functools.partial(_run, "walt_t5x.report")
inspect = functools.partial(_run, "walt_t5x.inspect_data")
plan = functools.partial(_run, "walt_t5x.plan")


def programs() -> dict[str, str]:
  """Module -> the first line of its docstring, for every program; nothing is imported."""
  found = {}
  for package in PACKAGES:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is installed with us"
    for file in sorted(Path(spec.submodule_search_locations[0]).glob("[a-z]*.py")):
      text = file.read_text(encoding="utf-8")
      if '__name__ == "__main__"' in text:
        summary = ast.get_docstring(ast.parse(text)) or ""
        found[f"{package}.{file.stem}"] = summary.splitlines()[0]
  return found


def main() -> None:
  """Prints the programs."""
  for module, summary in programs().items():
    print(f"python -m {module:<28} {summary}")


if __name__ == "__main__":
  main()
