"""Reader for the checkpoints that both engines write.

A model folder holds `checkpoint_<step>/`, each with
    _CHECKPOINT_METADATA   written by Orbax, contains the commit time
    state/                 one Orbax tree: {'target': parameters, 'state': {'step', 'param_states'}}, and
                           'flax_mutables' if the model has collections other than parameters
    dataset/               position in the training data, one file per host, if saved
A checkpoint folder is complete once Orbax has committed it. Any other folder (interrupted while writing, emptied,
partly copied) is incomplete, and readers skip it. Imports neither TensorFlow nor SeqIO, so Beam workers can use it.
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import traverse_util

from walt_t5x.engine.restore_transforms import average_names

_STEP = re.compile(r"checkpoint_(\d+)")


def why_incomplete(folder: epath.PathLike) -> str | None:
  """What is missing from a checkpoint folder, or None if it is complete."""
  folder = epath.Path(folder)
  metadata = folder / "_CHECKPOINT_METADATA"
  if not metadata.exists():
    return "it has no _CHECKPOINT_METADATA"
  try:
    committed = json.loads(metadata.read_text()).get("commit_timestamp_nsecs")
  except ValueError:
    return "its _CHECKPOINT_METADATA is not JSON"
  if committed is None and not (folder / "commit_success.txt").exists():
    return "it was never committed"
  state = folder / "state"
  for name in ("_METADATA", "manifest.ocdbt"):
    file = state / name
    if not file.exists() or file.stat().length == 0:
      return f"state/{name} is missing or empty"
  return None


def committed(checkpoint: epath.PathLike) -> int | None:
  """Commit time of a complete checkpoint in nanoseconds, which identifies it among namesakes; None if not recorded."""
  metadata = absolute(checkpoint) / "_CHECKPOINT_METADATA"
  return json.loads(metadata.read_text()).get("commit_timestamp_nsecs")


def all_steps(model_dir: epath.PathLike) -> list[int]:
  """Steps of every `checkpoint_<step>` folder, complete or not, ascending."""
  model_dir = epath.Path(model_dir)
  if not model_dir.exists():
    return []
  matches = (_STEP.fullmatch(path.name) for path in model_dir.iterdir())
  return sorted(int(match.group(1)) for match in matches if match)


def absolute(path: epath.PathLike) -> epath.Path:
  """`path` as an absolute path. Orbax requires one, and raises only when it saves."""
  text = os.fspath(path)
  return epath.Path(text if "://" in text else os.path.abspath(text))


def checkpoint_folder(model_dir: epath.PathLike, step: int) -> epath.Path:
  """The absolute path of one step's folder."""
  return absolute(model_dir) / f"checkpoint_{step}"


def complete_steps(model_dir: epath.PathLike) -> list[int]:
  """Steps of the complete checkpoints in a model folder, ascending. Logs a warning for each incomplete one."""
  steps = []
  for step in all_steps(model_dir):
    reason = why_incomplete(checkpoint_folder(model_dir, step))
    if reason is None:
      steps.append(step)
    else:
      logging.warning("Skipping %s: %s.", checkpoint_folder(model_dir, step), reason)
  return steps


def find_checkpoint(path: epath.PathLike) -> epath.Path:
  """The complete checkpoint at `path`: itself, or the newest one of a model folder; else FileNotFoundError."""
  path = absolute(path)
  if _STEP.fullmatch(path.name):
    reason = why_incomplete(path) if path.exists() else "it does not exist"
    if reason is not None:
      raise FileNotFoundError(
        f"checkpoint {path} cannot be read: {reason}. Set another step, or the model folder."
      )
    return path
  steps = complete_steps(path)
  if not steps:
    raise FileNotFoundError(
      f"no complete checkpoint in {path}; expected checkpoint_<step> folders. Set a model folder or one such folder."
    )
  return checkpoint_folder(path, steps[-1])


def checkpoint_step(path: epath.PathLike) -> int:
  """The step of the checkpoint that `path` refers to."""
  return int(find_checkpoint(path).name.removeprefix("checkpoint_"))


def state_metadata(checkpoint: epath.PathLike) -> dict[tuple[str, ...], Any]:
  """Shape and dtype of every array in a checkpoint, by the names on its path. Reads no array."""
  tree = ocp.PyTreeCheckpointHandler().metadata(absolute(checkpoint) / "state").tree
  return {tuple(map(str, k)): v for k, v in traverse_util.flatten_dict(tree).items()}


def load_params(path: epath.PathLike, *, ema: bool = False) -> dict[str, Any]:
  """Parameters of a checkpoint as nested dicts of numpy arrays.

  Reads only the requested arrays: moments and the other copy of the parameters stay on disk.

  Args:
    path: a `checkpoint_<step>` folder, or a model folder (then its newest complete checkpoint).
    ema: read the parameter average (`optimizers.parameter_ema`) instead. Parameters without an average (trained by
      another optimizer, for example those of a discriminator) are returned as they are.

  Raises:
    FileNotFoundError: no complete checkpoint exists.
    ValueError: `ema` is set and the checkpoint has no average.
  """
  checkpoint = find_checkpoint(path)
  metadata = state_metadata(checkpoint)
  sources = {name[1:]: name for name in metadata if name[0] == "target"}
  if ema:
    averages = average_names(metadata)
    if not averages:
      raise ValueError(
        f"{checkpoint} has no parameter average; set ema_decay in its optimizer, or load with ema=False."
      )
    sources |= {name: source for name, source in averages.items() if name in sources}
  wanted = read_arrays(checkpoint, {source: metadata[source] for source in sources.values()})
  return traverse_util.unflatten_dict({name: wanted[source] for name, source in sources.items()})


def load_state_dict(path: epath.PathLike) -> dict[str, Any]:
  """The entire saved state, `{'target', 'state'}` and `'flax_mutables'` if any, as nested dicts of numpy arrays."""
  checkpoint = find_checkpoint(path)
  return traverse_util.unflatten_dict(read_arrays(checkpoint, state_metadata(checkpoint)))


def read_arrays(
  checkpoint: epath.PathLike,
  wanted: Mapping[tuple[str, ...], Any],
  restore_args: Mapping[tuple[str, ...], ocp.RestoreArgs] | None = None,
) -> dict[tuple[str, ...], Any]:
  """The arrays named by `wanted` (a subset of `state_metadata`), as numpy arrays or as `restore_args` specifies."""
  restore_args = restore_args or dict.fromkeys(wanted, ocp.RestoreArgs(restore_type=np.ndarray))
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    tree = reader.restore(
      absolute(checkpoint) / "state",
      args=ocp.args.PyTreeRestore(
        item=traverse_util.unflatten_dict(dict(wanted)),
        restore_args=traverse_util.unflatten_dict(dict(restore_args)),
        partial_restore=True,
      ),
    )
  return traverse_util.flatten_dict(tree)
