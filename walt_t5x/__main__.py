"""The commands of an installed package: `walt-train` is `python -m walt_t5x.train`, and so on.

A command starts its module as `__main__`, as `python -m` does: gin files say `import __main__ as train_script`, and
worker processes import the main module by its name. So nothing here may import a program.
"""

import runpy


def _run(module: str) -> None:
  runpy.run_module(module, run_name="__main__", alter_sys=True)


def train() -> None:
  """`python -m walt_t5x.train`."""
  _run("walt_t5x.train")


def generate() -> None:
  """`python -m walt_t5x.generate`."""
  _run("walt_t5x.generate")


def evaluate() -> None:
  """`python -m walt_t5x.evaluate`."""
  _run("walt_t5x.evaluate")


def preprocess() -> None:
  """`python -m beam_jobs.preprocess`."""
  _run("beam_jobs.preprocess")


def plan() -> None:
  """`python -m walt_t5x.plan`."""
  _run("walt_t5x.plan")
