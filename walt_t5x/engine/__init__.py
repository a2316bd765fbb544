"""Common names for training: T5X serves them where it is installed, the built-in engine elsewhere.

Gin files import the package (`from walt_t5x import engine`) and bind `engine.DatasetConfig`. Gin resolves attributes
one at a time, so the names below are imported on first use and `import walt_t5x.engine` stays cheap. Arguments and
semantics are T5X's. `use_t5x` selects the engine and documents how to force one. The other modules of this folder are
engine-neutral.
"""

import functools
import importlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any

from absl import logging

# For type checkers; `__getattr__` imports a name on first use.
# ruff: noqa: F401
if TYPE_CHECKING:
  from walt_t5x.config.gin_config import summarize_gin_config
  from walt_t5x.engine.builtin.base_model import BaseModel
  from walt_t5x.engine.builtin.checkpoint_configs import (
    CheckpointConfig,
    RestoreCheckpointConfig,
    SaveCheckpointConfig,
  )
  from walt_t5x.engine.builtin.datasets import (
    DatasetConfig,
    get_dataset,
    get_training_eval_datasets,
  )
  from walt_t5x.engine.builtin.optimizer import OptaxWrapper
  from walt_t5x.engine.builtin.partitioner import PjitPartitioner, standard_logical_axis_rules
  from walt_t5x.engine.builtin.train_loop import train
  from walt_t5x.engine.builtin.trainer import Trainer
  from walt_t5x.engine.schedules import create_learning_rate_scheduler

_VARIABLE = "WALT_T5X_ENGINE"
# name -> (T5X module, built-in module)
_HOMES = {
  "BaseModel": ("t5x.models", "walt_t5x.engine.builtin.base_model"),
  "CheckpointConfig": ("t5x.utils", "walt_t5x.engine.builtin.checkpoint_configs"),
  "DatasetConfig": ("t5x.utils", "walt_t5x.engine.builtin.datasets"),
  "OptaxWrapper": ("t5x.optimizers", "walt_t5x.engine.builtin.optimizer"),
  "PjitPartitioner": ("t5x.partitioning", "walt_t5x.engine.builtin.partitioner"),
  "RestoreCheckpointConfig": ("t5x.utils", "walt_t5x.engine.builtin.checkpoint_configs"),
  "SaveCheckpointConfig": ("t5x.utils", "walt_t5x.engine.builtin.checkpoint_configs"),
  "Trainer": ("walt_t5x.engine.t5x_trainer", "walt_t5x.engine.builtin.trainer"),
  "create_learning_rate_scheduler": ("t5x.utils", "walt_t5x.engine.schedules"),
  # Both engines read data through one pipeline, so either can resume from a data position that the other saved.
  "get_dataset": ("walt_t5x.engine.builtin.datasets",) * 2,
  "get_training_eval_datasets": ("walt_t5x.engine.builtin.datasets",) * 2,
  "standard_logical_axis_rules": ("t5x.partitioning", "walt_t5x.engine.builtin.partitioner"),
  "summarize_gin_config": ("t5x.gin_utils", "walt_t5x.config.gin_config"),
  "train": ("t5x.train", "walt_t5x.engine.builtin.train_loop"),
}


@functools.cache
def use_t5x() -> bool:
  """Whether T5X serves the names; decided once per process.

  The environment variable `WALT_T5X_ENGINE` selects the engine: `t5x`, `builtin`, or `auto` (the default: T5X if
  `import t5x` works). If T5X is installed but cannot be imported, a warning is logged.

  Raises:
    ImportError: T5X is selected and cannot be imported.
    ValueError: the variable has another value.
  """
  wish = os.environ.get(_VARIABLE, "auto")
  if wish not in ("auto", "t5x", "builtin"):
    raise ValueError(f"{_VARIABLE}={wish!r}: expected 'auto', 't5x' or 'builtin'.")
  if wish == "builtin" or (wish == "auto" and importlib.util.find_spec("t5x") is None):
    return False
  try:
    importlib.import_module("t5x")
  except ImportError as error:
    if wish == "t5x":
      raise
    logging.warning(
      "T5X is installed but cannot be imported (%s); using the built-in engine. Set %s=builtin to select it "
      "explicitly, or %s=t5x to make this an error.",
      error,
      _VARIABLE,
      _VARIABLE,
    )
    return False
  return True


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  t5x_home, builtin_home = _HOMES[name]
  home = t5x_home if use_t5x() else builtin_home
  value = getattr(importlib.import_module(home), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted([*globals(), *_HOMES])
