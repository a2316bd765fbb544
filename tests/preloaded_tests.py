"""Imported once by the process that workers are forked from: imports the modules of tests as pytest does.

A worker imports for 20 s otherwise, most of it libraries. Nothing initializes a device.
"""

import contextlib
import gc
import json
import os
import sys
import warnings

import pytest

from tests.workers import ARGUMENTS


class _Module(pytest.Module):
  def collect(self):
    self.obj  # noqa: B018 - imports it.
    backends = sys.modules.get("jax._src.xla_bridge")
    if backends and backends.backends_are_initialized():
      COMPUTING.append(self.path)
    return []


class _ImportOnly:
  @pytest.hookimpl(tryfirst=True)
  def pytest_pycollect_makemodule(self, module_path, parent):
    return _Module.from_parent(parent, path=module_path)


COMPUTING: list = []

if ARGUMENTS in os.environ:
  arguments = json.loads(os.environ.pop(ARGUMENTS))
  # Each worker imports again what failed here, and reports it.
  with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
    pytest.main([*arguments, "-n0", "--collect-only"], plugins=[_ImportOnly()])
  if COMPUTING:
    # The threads of a device do not survive a fork.
    sys.exit(f"{COMPUTING[0]}: got an array of JAX in the module, expected one of numpy")
  # A collection in a worker would write to, and so copy, the memory of all objects.
  gc.collect()
  gc.freeze()
  # No computation has started before the fork.
  warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
