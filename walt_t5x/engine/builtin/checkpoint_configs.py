"""Checkpoint settings that gin binds."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

_DTYPES = (None, "float32", "bfloat16")


@dataclasses.dataclass
class SaveCheckpointConfig:
  """When and what to save.

  Args:
    dtype: type of the saved parameters, 'float32' or 'bfloat16'; optimizer state keeps its type.
    period: steps between checkpoints; the last step of a run is always saved. None disables checkpoints.
    checkpoint_steps: additional steps to save at.
    keep: number of newest checkpoints to keep; None keeps all.
    keep_dataset_checkpoints: accepted for T5X compatibility; a dataset state is deleted with its checkpoint.
    save_dataset: save the position in the training data, so that a resumed run continues with the next examples.
    checkpointer_cls, checkpoint_manager_cls, state_transformation_fns: T5X only, must be None or empty.
  """

  dtype: str | None = "float32"
  period: int | None = None
  checkpoint_steps: Sequence[int] | None = None
  keep: int | None = None
  keep_dataset_checkpoints: int | None = None
  save_dataset: bool = False
  checkpointer_cls: Any = None
  state_transformation_fns: Sequence[Callable[..., Any]] = ()
  checkpoint_manager_cls: Any = None

  def __post_init__(self) -> None:
    _check(self)
    if self.state_transformation_fns:
      raise ValueError(
        "SaveCheckpointConfig.state_transformation_fns: the built-in engine saves the state unchanged; "
        "leave it empty, or train with T5X."
      )
    for name in ("period", "keep"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"SaveCheckpointConfig.{name}: got {value}, expected None or at least 1.")


@dataclasses.dataclass
class RestoreCheckpointConfig:
  """Where a new run gets its parameters; a resumed run restores from its own folder instead.

  Args:
    path: a checkpoint ('specific') or a folder of checkpoints ('latest'); an empty list starts from scratch.
    mode: 'specific' or 'latest'.
    assignment_map: (pattern, replacement) pairs. A pattern matches a full name of this model's state, such as
      `target/decoder/kernel` or `state/param_states/.*`; its replacement, after substitution, is the name in the
      checkpoint. None as a replacement drops the entry, see `fallback_to_scratch`. The first match wins.
    strict: accepted for T5X compatibility (it concerns TensorFlow checkpoints).
    fallback_to_scratch: initialize arrays that are missing in the checkpoint instead of raising.
    dtype: type of the restored parameters, or None for the model's own.
    restore_dataset: also restore the position in the training data.
    checkpointer_cls, checkpoint_manager_cls: T5X only, must be None.
    state_transformation_fns: functions `f(state_dict, target_state_dict, *, is_resuming) -> state_dict`, applied in
      order, after `assignment_map`, to the state read from the checkpoint as nested dicts of numpy arrays; see
      `engine.restore_transforms`. A resumed run's own checkpoints are not transformed again.
  """

  path: str | Sequence[str]
  mode: str = "latest"
  assignment_map: Sequence[tuple[str, str | None]] | None = None
  strict: bool = True
  fallback_to_scratch: bool = False
  dtype: str | None = None
  restore_dataset: bool = False
  checkpointer_cls: Any = None
  state_transformation_fns: Sequence[Callable[..., Any]] = ()
  checkpoint_manager_cls: Any = None

  def __post_init__(self) -> None:
    _check(self)
    if self.mode not in ("specific", "latest"):
      raise ValueError(
        f"RestoreCheckpointConfig.mode: got {self.mode!r}, expected 'specific' or 'latest' in training."
      )
    if not isinstance(self.path, str) and len(self.path) > 0:
      raise ValueError(
        f"RestoreCheckpointConfig.path: got {self.path!r}, expected one path, or an empty list for none."
      )


@dataclasses.dataclass
class CheckpointConfig:
  """Checkpoint settings of a run: what it saves and what it starts from."""

  save: SaveCheckpointConfig | None = None
  restore: RestoreCheckpointConfig | None = None


def _check(config: SaveCheckpointConfig | RestoreCheckpointConfig) -> None:
  """Rejects an unknown `dtype`, and what only T5X supports."""
  owner = type(config).__name__
  if config.dtype not in _DTYPES:
    raise ValueError(f"{owner}.dtype: got {config.dtype!r}, expected one of {_DTYPES}.")
  if config.checkpointer_cls is not None or config.checkpoint_manager_cls is not None:
    raise ValueError(
      f"{owner}: checkpointer_cls and checkpoint_manager_cls select among T5X's classes; the built-in engine "
      "always uses Orbax. Remove the binding, or train with T5X."
    )
