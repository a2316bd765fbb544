"""Checkpoints on a disk, or in the memory, of each host: written more often than those of MODEL_DIR, read by a restart.

Every process writes the shards that its devices hold, in the background, to

    <folder>/<hash of MODEL_DIR>-<run>/<step>_<start>_<process>.safetensors

where `start` tells the starts of a run apart. A shard that no other process holds is also sent to the next process,
which writes it too: the loss of one host's folder loses nothing (the scheme of Gemini, SOSP 2023). A restart gathers
the shards of the newest step that all processes together have complete, and sends each where it is needed.
"""

import concurrent.futures
import functools
import hashlib
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from walt_t5x.engine import checkpoints
from walt_t5x.engine.builtin.train_state import StateInitializer, TrainState
from walt_t5x.files import storage, tensors
from walt_t5x.files.damage import Damaged

_FILE = re.compile(r"(\d+)_(\d+)_(\d+)\.safetensors")
_RUN = "local_checkpoints.json"
# While one process writes its newest file, another may still write the one before; the third is complete everywhere.
_KEPT = 3
# Files that one process offers to a restart; more cannot be there.
_OFFERED = 4 * _KEPT


class LocalCheckpoints:
  """The local checkpoints of one run, and this process's part of them.

  Args:
    folder: a local folder, the same or another one on each host; may be shared by runs.
    model_dir: the run's folder.

  Attributes:
    seconds: how long the last `save` blocked its caller.
  """

  def __init__(self, folder: str, model_dir: str):
    if not storage.is_local(folder):
      raise ValueError(
        f"RunSettings.local_checkpoints: got {folder}, expected a folder on a disk, or in the memory (/dev/shm), of "
        "each host."
      )
    place = hashlib.sha256(checkpoints.absolute(model_dir).encode()).hexdigest()[:16]
    name = f"{place}-{_run(model_dir):08x}"
    self.folder = storage.join(storage.absolute(folder), name)
    self._start = _agreed(secrets.randbits(31))
    storage.make_folder(self.folder)
    # Those of a run that was in the same MODEL_DIR before.
    for other in storage.folders(folder):
      if other.startswith(place) and other != name:
        shutil.rmtree(storage.join(folder, other), ignore_errors=True)
    self._writer = concurrent.futures.ThreadPoolExecutor(1, "local-checkpoint")
    self._written: concurrent.futures.Future[None] | None = None
    self.seconds = 0.0

  def save(self, step: int, state: TrainState) -> None:
    """Copies the state and starts to write it; waits for the file before."""
    began = time.monotonic()
    self.wait()
    arrays: dict[str, Any] = traverse_util.flatten_dict(state.state_dict(), sep="/")
    held = dict(_shards(arrays))
    lone = {name: array for name, array in arrays.items() if _is_lone(array.sharding, array.shape)}
    held |= dict(_shards(_sent_to_the_next_process(lone), received=True)) if lone else {}
    copies = {name: _copied(shard) for name, shard in held.items()}
    file = storage.join(self.folder, f"{step}_{self._start}_{jax.process_index()}.safetensors")
    self._written = self._writer.submit(self._write, file, copies)
    self.seconds = time.monotonic() - began

  def wait(self) -> None:
    """Waits for the file that is being written. One that cannot be written is a warning: MODEL_DIR has the others."""
    written, self._written = self._written, None
    try:
      if written is not None:
        written.result()
    except OSError as error:
      logging.warning("A local checkpoint was not written: %s", error)

  def restore(self, initializer: StateInitializer, *, after: int) -> tuple[TrainState, int] | None:
    """The state of the newest step after `after` that all processes together have complete, and the step.

    Later files are deleted: the run takes these steps again.
    """
    wanted: dict[str, Any] = traverse_util.flatten_dict(initializer.shapes.state_dict(), sep="/")
    shardings: dict[str, Any] = traverse_util.flatten_dict(
      initializer.shardings.state_dict(), sep="/"
    )
    needed = sorted({key for name in wanted for key in _keys(name, wanted[name], shardings[name])})
    state = None
    for step, start in self._offered(after):
      parts = self._gathered(step, start, needed, _own_keys(wanted, shardings))
      if parts is None:
        continue
      arrays = {name: _assembled(name, wanted[name], shardings[name], parts) for name in wanted}
      tree = traverse_util.unflatten_dict(arrays, sep="/")
      state = initializer.shapes.restore_state(tree), step
      break
    # All have read before anyone deletes: processes may share a folder.
    multihost_utils.sync_global_devices("local checkpoints read")
    for name, match in self._files():
      if int(match[1]) > (state[1] if state else after):
        storage.delete(storage.join(self.folder, name))
    return state

  def clear(self) -> None:
    """Deletes the run's folder."""
    self.wait()
    shutil.rmtree(self.folder, ignore_errors=True)

  def _files(self) -> list[tuple[str, re.Match[str]]]:
    return [(n, match) for n in storage.names(self.folder) if (match := _FILE.fullmatch(n))]

  def _write(self, file: str, copies: Mapping[str, np.ndarray]) -> None:
    # Bytes, as the format has not every type of JAX.
    tensors.save(file, {key: copy.reshape(-1).view(np.uint8) for key, copy in copies.items()})
    steps = sorted({int(match[1]) for _, match in self._files()})
    for name, match in self._files():
      if int(match[1]) not in steps[-_KEPT:]:
        storage.delete(storage.join(self.folder, name))

  def _offered(self, after: int) -> list[tuple[int, int]]:
    """(step, start) of all files of all processes, the newest first."""
    mine = sorted({(int(match[1]), int(match[2])) for _, match in self._files()}, reverse=True)
    mine = [offer for offer in mine if offer[0] > after][:_OFFERED]
    padded = np.full((_OFFERED, 2), -1, np.int32)
    padded[: len(mine)] = np.reshape(mine, (-1, 2))
    everyone = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, 2)
    return sorted({(int(a), int(b)) for a, b in everyone if a >= 0}, reverse=True)

  def _gathered(
    self, step: int, start: int, needed: list[str], own: set[str]
  ) -> dict[str, np.ndarray] | None:
    """Bytes of the shards `own` of a step; None on all processes if one of `needed` is nowhere."""
    found: dict[str, np.ndarray] = {}
    for name, match in self._files():
      if (int(match[1]), int(match[2])) == (step, start):
        try:
          found |= tensors.load(storage.join(self.folder, name))
        except (Damaged, FileNotFoundError) as error:
          logging.warning("A local checkpoint is not used: %s", error)
    have = np.array([key in found for key in needed])
    lack = np.array([key in own and key not in found for key in needed])
    table = np.asarray(multihost_utils.process_allgather(np.stack([have, lack])))
    held, lacked = np.swapaxes(table.reshape(jax.process_count(), 2, len(needed)), 0, 1)
    missing = [needed[index] for index in np.flatnonzero(~held.any(axis=0))]
    if missing:
      logging.warning(
        "The local checkpoint of step %d is not used: %d of its %d shards are on no host, or are of another model or "
        "mesh, first %s.",
        step,
        len(missing),
        len(needed),
        missing[0],
      )
      return None
    for index in np.flatnonzero(lacked.any(axis=0)):
      key, source = needed[index], int(np.argmax(held[:, index]))
      mine = found.get(key)
      if mine is None:
        mine = np.zeros(_bytes_of(key), np.uint8)
      sent = multihost_utils.broadcast_one_to_all(mine, is_source=jax.process_index() == source)
      if key in own:
        found[key] = np.asarray(sent)
    return found


def newest_step(model_dir: str) -> int:
  """The step of the newest complete checkpoint in a run's folder, as process 0 sees it; -1 without one."""
  return _agreed(max(checkpoints.complete_steps(model_dir), default=-1))


def _agreed(number: int) -> int:
  """The number of process 0, on all of them."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _run(model_dir: str) -> int:
  """A number that tells this run from a later one in the same folder."""
  file = storage.join(model_dir, _RUN)
  run = secrets.randbits(31)
  if jax.process_index() == 0:
    if storage.exists(file):
      run = int(storage.read_json(file)["run"])
    else:
      storage.write_json(file, {"run": run}, seal=True)
  return _agreed(run)


def _key(name: str, array: Any, index: Any) -> str:
  """Identifies a shard: name, type and place in the array, such as `target/kernel|float32|0:4,0:8`."""
  places = ",".join(
    "{}:{}".format(*s.indices(size)[:2]) for s, size in zip(index, array.shape, strict=True)
  )
  return f"{name}|{np.dtype(array.dtype).name}|{places}"


def _keys(name: str, array: Any, sharding: NamedSharding) -> Iterator[str]:
  for index in sharding.devices_indices_map(tuple(array.shape)).values():
    yield _key(name, array, index)


def _own_keys(wanted: Mapping[str, Any], shardings: Mapping[str, NamedSharding]) -> set[str]:
  """The shards that this process's devices hold."""
  return {
    _key(name, array, index)
    for name, array in wanted.items()
    for index in shardings[name].addressable_devices_indices_map(tuple(array.shape)).values()
  }


def _bytes_of(key: str) -> int:
  _, dtype, places = key.split("|")
  sizes = [int(end) - int(begin) for begin, end in (p.split(":") for p in places.split(",") if p)]
  return int(np.prod(sizes, dtype=np.int64)) * jax.numpy.dtype(dtype).itemsize


def _shards(arrays: Mapping[str, Any], *, received: bool = False) -> Iterator[tuple[str, Any]]:
  """The shards on this process's devices by key; `received`: they are those of the process before."""
  for name, array in arrays.items():
    indices = array.sharding.devices_indices_map(array.shape)
    senders = {b: a for a, b in _next_devices(array.sharding.mesh).items()} if received else {}
    for shard in array.addressable_shards:
      yield _key(name, array, indices[senders.get(shard.device, shard.device)]), shard.data


@functools.cache
def _is_lone(sharding: Any, shape: tuple[int, ...]) -> bool:
  """Whether a part of such an array is on the devices of one process only, of several."""
  if jax.process_count() == 1:
    return False
  holders: dict[str, set[int]] = {}
  for device, index in sharding.devices_indices_map(shape).items():
    holders.setdefault(str(index), set()).add(device.process_index)
  return min(map(len, holders.values())) == 1


@functools.cache
def _next_devices(mesh: Any) -> dict[Any, Any]:
  """Each device of the mesh -> the device of the next process that receives its shards."""
  by_process: dict[int, list[Any]] = {}
  for device in mesh.devices.flat:
    by_process.setdefault(device.process_index, []).append(device)
  groups = [by_process[process] for process in sorted(by_process)]
  return {
    a: b
    for group, after in zip(groups, [*groups[1:], groups[0]], strict=True)
    for a, b in zip(group, after, strict=True)
  }


def _sent_to_the_next_process(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """The arrays with each device's shards on the corresponding device of the next process."""
  mesh = next(iter(arrays.values())).sharding.mesh
  return _sender(mesh, tuple((n, array.sharding.spec) for n, array in arrays.items()))(dict(arrays))


@functools.cache
def _sender(mesh: Any, specs: tuple[tuple[str, Any], ...]) -> Any:
  places = {device: number for number, device in enumerate(mesh.devices.flat)}
  pairs = [(places[a], places[b]) for a, b in _next_devices(mesh).items()]

  def send(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {n: jax.lax.ppermute(a, mesh.axis_names, pairs) for n, a in arrays.items()}

  by_name = dict(specs)
  return jax.jit(
    jax.shard_map(send, mesh=mesh, in_specs=(by_name,), out_specs=by_name, check_vma=False)
  )


def _copied(shard: jax.Array) -> np.ndarray:
  """The shard on the host, where the next step does not overwrite it."""
  array = np.asarray(shard)
  # On a CPU it is the device's own memory.
  return array if array.flags.owndata else array.copy()


def _assembled(
  name: str, array: Any, sharding: NamedSharding, parts: Mapping[str, np.ndarray]
) -> jax.Array:
  def part(index: Any) -> np.ndarray:
    shape = [len(range(*s.indices(size))) for s, size in zip(index, array.shape, strict=True)]
    return parts[_key(name, array, index)].view(array.dtype).reshape(shape)

  return jax.make_array_from_callback(tuple(array.shape), sharding, part)
