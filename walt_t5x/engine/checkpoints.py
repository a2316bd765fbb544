"""Reader for the checkpoints that both engines write.

A model folder holds `checkpoint_<step>/`, each with
    _CHECKPOINT_METADATA   written by Orbax, contains the commit time, and the digest of every array (not from T5X)
    state/                 one Orbax tree: {'target': parameters, 'state': {'step', 'param_states'}}, and
                           'flax_mutables' if the model has collections other than parameters
    dataset/               position in the training data, one file per host, if saved
or, in a preset, only
    weights.safetensors    the parameters to sample with (`weights_file`)
A checkpoint folder is complete once Orbax has committed it. Any other folder (interrupted while writing, emptied,
partly copied) is incomplete, and readers skip it. One whose arrays differ from their digests is `Damaged`. Imports
neither TensorFlow nor SeqIO, so Beam workers can use it.
"""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util

from walt_t5x.engine import array_digests, orbax_s3, weights_file
from walt_t5x.engine.restore_transforms import average_names
from walt_t5x.files import storage
from walt_t5x.files.damage import Damaged
from walt_t5x.files.fingerprint import file_sha256
from walt_t5x.files.retries import may_pass
from walt_t5x.files.store_errors import CannotWrite

orbax_s3.enable()
_COMMIT = "_CHECKPOINT_METADATA"
# In the custom metadata of a checkpoint: name of each array, joined by "/", -> its digest.
DIGESTS = "array_sums"
_FIRST = "first_checkpoint.json"
_STEP = re.compile(r"checkpoint_(\d+)")
_NAMES = ocp.path.step.standard_name_format(step_prefix="checkpoint")
# Of a checkpoint in a store that looks damaged.
_SAME_READS, _MOST_READS = 3, 10
# Kinds of errors of TensorStore that do not show that a file is damaged.
_MAY_PASS = re.compile(
  r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|UNKNOWN): "
)


def why_incomplete(folder: storage.PathLike) -> str | None:
  """What is missing from a checkpoint folder, or None if it is complete."""
  try:
    committed = storage.read_json(storage.join(folder, _COMMIT)).get("commit_timestamp_nsecs")
  except FileNotFoundError:
    return None if weights_file.exists(folder) else f"it has no {_COMMIT}"
  except ValueError:
    return f"its {_COMMIT} is not JSON"
  if committed is None and not storage.exists(storage.join(folder, "commit_success.txt")):
    return "it was never committed"
  for name in ("_METADATA", "manifest.ocdbt"):
    file = storage.join(folder, "state", name)
    if not storage.exists(file) or storage.size(file) == 0:
      return f"state/{name} is missing or empty"
  return None


def identity(checkpoint: storage.PathLike) -> str:
  """What tells a complete checkpoint from all others: its path and commit time, or the hash of its weights file."""
  if weights_file.exists(checkpoint):
    return f"sha256 {file_sha256(storage.join(checkpoint, weights_file.FILE_NAME))}"
  committed = storage.read_json(storage.join(checkpoint, _COMMIT)).get("commit_timestamp_nsecs")
  return f"{os.fspath(checkpoint)}, written {committed}"


def all_steps(model_dir: storage.PathLike) -> list[int]:
  """Steps of every `checkpoint_<step>` folder, complete or not, ascending."""
  matches = map(_STEP.fullmatch, storage.folders(model_dir))
  return sorted(int(match.group(1)) for match in matches if match)


def absolute(path: storage.PathLike) -> str:
  """`path` as an absolute path. Orbax requires one, and raises only when it saves."""
  path = os.fspath(path)
  return os.path.abspath(path) if storage.is_local(path) else path.rstrip("/")


def checkpoint_folder(model_dir: storage.PathLike, step: int) -> str:
  """The absolute path of one step's folder."""
  return storage.join(absolute(model_dir), f"checkpoint_{step}")


def complete_steps(model_dir: storage.PathLike) -> list[int]:
  """Steps of the complete checkpoints in a model folder, ascending. Logs a warning for each incomplete one."""
  steps = []
  for step in all_steps(model_dir):
    reason = why_incomplete(checkpoint_folder(model_dir, step))
    if reason is None:
      steps.append(step)
    else:
      logging.warning("Skipping %s: %s.", checkpoint_folder(model_dir, step), reason)
  return steps


def record_first(model_dir: storage.PathLike, step: int) -> None:
  """Notes that the checkpoint of this step is written before the run's first step, until `forget_first`."""
  storage.write_json(storage.join(model_dir, _FIRST), {"step": step})


def forget_first(model_dir: storage.PathLike) -> None:
  """Ends the effect of `record_first` for a run that reached its last step."""
  storage.delete(storage.join(model_dir, _FIRST))


def untrained_step(model_dir: storage.PathLike) -> int | None:
  """The step of a model folder's only complete checkpoint if no step was taken before it, else None."""
  file = storage.join(model_dir, _FIRST)
  if not storage.exists(file):
    return None
  first = storage.read_json(file)["step"]
  return first if _complete(model_dir) == [first] else None


def has_trained(model_dir: storage.PathLike) -> bool:
  """Whether a model folder has a complete checkpoint that a start with other settings must not replace."""
  return bool(_complete(model_dir)) and untrained_step(model_dir) is None


def _complete(model_dir: storage.PathLike) -> list[int]:
  steps = all_steps(model_dir)
  return [step for step in steps if why_incomplete(checkpoint_folder(model_dir, step)) is None]


def find_checkpoint(path: storage.PathLike) -> str:
  """The complete checkpoint at `path`: itself, or the newest one of a model folder; else FileNotFoundError."""
  path = absolute(path)
  if _STEP.fullmatch(os.path.basename(path)):
    reason = why_incomplete(path) if storage.exists(path) else "it does not exist"
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


def checkpoint_step(path: storage.PathLike) -> int:
  """The step of the checkpoint that `path` refers to."""
  return _step(find_checkpoint(path))


def _step(checkpoint: str) -> int:
  return int(checkpoint.rpartition("_")[2])


_Read = TypeVar("_Read", bound=Callable[..., Any])


def _read_again(read: _Read) -> _Read:
  """A function of a checkpoint that believes the damage of one in a store once several reads in a row have found it.

  TensorStore takes half of an answer for the answer if its header has that length.
  """

  @functools.wraps(read)
  def call(checkpoint: storage.PathLike, *arguments: Any, **settings: Any) -> Any:
    found: list[str] = []
    while True:
      try:
        return read(checkpoint, *arguments, **settings)
      except Damaged as error:
        found.append(str(error))
        if storage.is_local(checkpoint) or len(found) == _MOST_READS:
          raise
        if len(found) >= _SAME_READS and len(set(found[-_SAME_READS:])) == 1:
          raise
        logging.warning("%s Reading it again.", error)

  return cast(_Read, call)


@_read_again
def state_metadata(checkpoint: storage.PathLike) -> dict[tuple[str, ...], Any]:
  """Shape and dtype of every array in a checkpoint, by the names on its path. Reads no array.

  Raises:
    Damaged: the checkpoint has no such list, or one of other arrays than were saved.
  """
  if weights_file.exists(checkpoint):
    return {("target", *name): leaf for name, leaf in weights_file.shapes(checkpoint).items()}
  # The handler takes Orbax's own kind of path, not a string.
  model_dir, step = os.path.split(absolute(checkpoint))
  folder = ocp.path.step.build_step_path(model_dir, _NAMES, _step(step))
  with _named(checkpoint):
    tree = ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree
    found = {tuple(map(str, k)): v for k, v in traverse_util.flatten_dict(tree).items()}
  recorded = _recorded(checkpoint)
  if recorded and (other := sorted(recorded.keys() ^ map("/".join, found))):
    raise _damaged(
      checkpoint, f"state/_METADATA, or the list of digests, lacks {', '.join(other[:3])}"
    )
  return found


def _recorded(checkpoint: storage.PathLike) -> dict[str, int]:
  """Digest of each array by name; empty if the checkpoint records none, as those of T5X."""
  content = storage.read_json(storage.join(checkpoint, _COMMIT))
  return (content.get("custom_metadata") or {}).get(DIGESTS) or {}


def _damaged(checkpoint: storage.PathLike, what: str) -> Damaged:
  return Damaged(
    f"checkpoint {os.fspath(checkpoint)} is damaged: {what}. Copy it again, or set an earlier checkpoint."
  )


@contextlib.contextmanager
def _named(checkpoint: storage.PathLike) -> Iterator[None]:
  """Turns errors of Orbax into one that names the checkpoint, except those that may pass."""
  try:
    yield
  # Orbax does not expect damage: its parsers raise what Python happens to.
  except Exception as error:
    passing = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    if passing or may_pass(error) or _MAY_PASS.search(str(error)):
      raise
    reason = " ".join(str(error).split())[:300]
    raise _damaged(checkpoint, f"{type(error).__name__}: {reason}") from error


@contextlib.contextmanager
def writing(model_dir: storage.PathLike) -> Iterator[None]:
  """Turns errors of TensorStore and Orbax that write to a store into one that names the folder."""
  try:
    yield
  except Exception as error:
    if storage.is_local(model_dir):
      raise
    # The rest of TensorStore's message is a specification of an array, of many lines.
    reason = " ".join(str(error).partition(" [tensorstore_spec=")[0].split())[:300]
    raise CannotWrite(
      f"cannot write a checkpoint to {os.fspath(model_dir)}: {type(error).__name__}: {reason}; run the same command "
      "again: it resumes from the newest complete checkpoint"
    ) from error


def has_average(path: storage.PathLike) -> bool:
  """Whether a checkpoint can be loaded with `ema=True`: it has a parameter average, or is a weights file."""
  checkpoint = find_checkpoint(path)
  return weights_file.exists(checkpoint) or bool(average_names(state_metadata(checkpoint)))


def load_params(
  path: storage.PathLike, *, ema: bool = False, shardings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Parameters of a checkpoint as nested dicts of arrays.

  Reads only the requested arrays: moments and the other copy of the parameters stay on disk.

  Args:
    path: a `checkpoint_<step>` folder, or a model folder (then its newest complete checkpoint).
    ema: read the parameter average (`optimizers.parameter_ema`) instead. Parameters without an average (trained by
      another optimizer, for example those of a discriminator) are returned as they are. A weights file has one set of
      parameters, which is returned either way.
    shardings: sharding of every parameter, as nested dicts; a device then gets its part alone. None returns
      numpy arrays.

  Raises:
    FileNotFoundError: no complete checkpoint exists.
    ValueError: `ema` is set and the checkpoint has no average.
  """
  checkpoint = find_checkpoint(path)
  metadata = state_metadata(checkpoint)
  sources = {name[1:]: name for name in metadata if name[0] == "target"}
  if ema and not weights_file.exists(checkpoint):
    averages = average_names(metadata)
    if not averages:
      raise ValueError(
        f"{checkpoint} has no parameter average; set ema_decay in its optimizer, or load with ema=False."
      )
    sources |= {name: source for name, source in averages.items() if name in sources}
  wanted = {source: metadata[source] for source in sources.values()}
  if shardings is None:
    arrays = read_arrays(checkpoint, wanted)
  else:
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(dict(shardings))
    placed = {source: flat[name] for name, source in sources.items()}
    arrays = _read_sharded(checkpoint, wanted, placed)
  return traverse_util.unflatten_dict({name: arrays[source] for name, source in sources.items()})


def _read_sharded(
  checkpoint: str, wanted: Mapping[tuple[str, ...], Any], shardings: Mapping[tuple[str, ...], Any]
) -> dict[tuple[str, ...], Any]:
  if weights_file.exists(checkpoint):
    read = read_arrays(checkpoint, wanted)
    return {name: jax.device_put(array, shardings[name]) for name, array in read.items()}
  restore_args = {
    name: ocp.ArrayRestoreArgs(sharding=shardings[name], global_shape=tuple(leaf.shape))
    for name, leaf in wanted.items()
  }
  return read_arrays(checkpoint, wanted, restore_args)


def load_state_dict(path: storage.PathLike) -> dict[str, Any]:
  """The entire saved state, `{'target', 'state'}` and `'flax_mutables'` if any, as nested dicts of numpy arrays."""
  checkpoint = find_checkpoint(path)
  return traverse_util.unflatten_dict(read_arrays(checkpoint, state_metadata(checkpoint)))


@_read_again
def read_arrays(
  checkpoint: storage.PathLike,
  wanted: Mapping[tuple[str, ...], Any],
  restore_args: Mapping[tuple[str, ...], ocp.RestoreArgs] | None = None,
) -> dict[tuple[str, ...], Any]:
  """The arrays named by `wanted` (a subset of `state_metadata`), as numpy arrays or as `restore_args` specifies.

  Raises:
    Damaged: an array differs from its digest, or a file cannot be read; names the checkpoint and the array.
    ValueError: `restore_args` are given and the checkpoint is a weights file, from which no run starts.
  """
  if weights_file.exists(checkpoint):
    if restore_args:
      raise ValueError(
        f"{checkpoint} has weights to sample with, and no training state; set a checkpoint that training wrote"
      )
    found = weights_file.read(checkpoint, [name[1:] for name in wanted])
    return {("target", *name): array for name, array in found.items()}
  plain = ocp.RestoreArgs(restore_type=np.ndarray)
  # In the dtype of the file, whose digest is known.
  as_stored = {
    name: dataclasses.replace((restore_args or {}).get(name, plain), dtype=None) for name in wanted
  }
  with _named(checkpoint), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    tree = reader.restore(
      storage.join(absolute(checkpoint), "state"),
      args=ocp.args.PyTreeRestore(
        item=traverse_util.unflatten_dict(dict(wanted)),
        restore_args=traverse_util.unflatten_dict(as_stored),
        partial_restore=True,
      ),
    )
  found: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(tree)
  _check_digests(checkpoint, {"/".join(name): array for name, array in found.items()})
  dtypes = {name: args.dtype for name, args in (restore_args or {}).items() if args.dtype}
  return found | {name: found[name].astype(dtype) for name, dtype in dtypes.items()}


def _check_digests(checkpoint: storage.PathLike, arrays: Mapping[str, Any]) -> None:
  recorded = _recorded(checkpoint)
  if recorded:
    digests = array_digests.digests(arrays)
    changed = sorted(name for name, digest in digests.items() if recorded[name] != digest)
    if changed:
      raise _damaged(
        checkpoint,
        f"{len(changed)} of {len(arrays)} arrays changed after they were saved: {', '.join(changed[:3])}",
      )
