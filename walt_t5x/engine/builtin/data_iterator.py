"""Iterates over batches on the mesh; its position can be saved."""

import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import NamedSharding

from walt_t5x.files import mirror
from walt_t5x.files.damage import Damaged

_OTHER_SHAPES = "Incompatible shapes"


class ShardedIterator(Iterator[Mapping[str, jax.Array]]):
  """Turns this host's examples into arrays that are sharded over the mesh.

  The position is that of the `tf.data` iterator, including its shuffle and prefetch buffers, so a restored iterator
  continues with exactly the next example.

  Args:
    make_dataset: builds the batches of this host's examples, a flat dict of dense tensors; always the same batches.
    sharding: sharding of the batch axis over the data axes.
    batch_size: size of the global batch.
    folders: what the examples are read from, for the error about a damaged record.
  """

  def __init__(
    self,
    make_dataset: Callable[[], Any],
    *,
    sharding: NamedSharding,
    batch_size: int,
    folders: Sequence[str] = (),
  ):
    import tensorflow as tf

    self._make_dataset, self._position, self._folders = make_dataset, 0, folders
    self._start()
    spec = self._iterator.element_spec
    if not isinstance(spec, dict) or not all(
      isinstance(v, tf.TensorSpec) and v.shape.is_fully_defined() for v in spec.values()
    ):
      raise ValueError(
        f"training data: got {spec}, expected a flat dict of dense tensors with known dimensions."
      )
    self.element_spec = {
      k: jax.ShapeDtypeStruct((batch_size, *v.shape[1:]), v.dtype.as_numpy_dtype, sharding=sharding)
      for k, v in spec.items()
    }
    self._sharding = sharding
    self._ahead: concurrent.futures.Future[Mapping[str, jax.Array]] | None = None

  def __next__(self) -> Mapping[str, jax.Array]:
    ahead, self._ahead = self._ahead, None
    return self._read() if ahead is None else ahead.result()

  def start_warmup(self) -> concurrent.futures.Future[Mapping[str, jax.Array]]:
    """Reads the first batch in the background, so that the pipeline fills while the step compiles; returns it."""
    ahead = self._ahead = concurrent.futures.Future()

    def read() -> None:
      try:
        ahead.set_result(self._read())
      except BaseException as error:  # Raised again by __next__, in the caller's thread.
        ahead.set_exception(error)

    # Not an executor: Python would wait for its threads at the end, even for one whose data never arrives.
    threading.Thread(target=read, name="first-batch", daemon=True).start()
    return ahead

  def save(self, filename: str) -> None:
    """Writes the position. Not between `start_warmup` and the first batch, which would be lost."""
    if self._ahead is not None:
      raise RuntimeError(
        "the position was requested while a batch read ahead is unused; save before start_warmup."
      )
    folder, name = os.path.split(filename)
    written = mirror.Mirror(folder)
    self._checkpoint.write(os.path.join(written.folder, name))
    written.upload()

  def restore(self, filename: str, *, position: int) -> bool:
    """Restores what `save` wrote after `position` batches; False, and a restart, if it is of another pipeline."""
    import tensorflow as tf

    if position == 0:
      # The pipeline's beginning. A state without a single batch does not rewind every pipeline.
      self._start()
      return True
    folder, name = os.path.split(filename)
    copied = mirror.Mirror(folder)
    copied.fetch(name)
    local = os.path.join(copied.folder, name)
    try:
      self._checkpoint.read(local).assert_consumed()
      # Batches of another size are noticed when they are used.
      with contextlib.suppress(tf.errors.InternalError):
        next(self._iterator)
      self._checkpoint.read(local)
    except (
      tf.errors.NotFoundError,
      tf.errors.InvalidArgumentError,
      tf.errors.DataLossError,
    ) as error:
      damaged = isinstance(error, tf.errors.DataLossError)
      reason = "is damaged" if damaged else "does not fit this dataset"
      logging.warning("The position %s %s: %s", filename, reason, error.message)
      self._start()
      return False
    self._position = position
    return True

  def skip(self, batches: int) -> None:
    """Continues after the next `batches`."""
    for _ in range(batches):
      self._next()

  def _start(self) -> None:
    import tensorflow as tf

    self._iterator = iter(self._make_dataset())
    self._checkpoint = tf.train.Checkpoint(ds=self._iterator)

  def _next(self) -> Mapping[str, Any]:
    import tensorflow as tf

    try:
      with _named(f"training data {' '.join(self._folders)}"):
        rows = next(self._iterator)
    except (tf.errors.InternalError, tf.errors.InvalidArgumentError) as error:
      # A restored shuffle buffer has examples with the features of the version that saved it; which of its threads
      # notices them first determines the error.
      if isinstance(error, tf.errors.InvalidArgumentError) and _OTHER_SHAPES not in error.message:
        raise
      logging.warning("The restored examples cannot be used: %s", error.message)
      logging.warning("Reading the %d batches before them again.", self._position)
      self._start()
      for _ in range(self._position):
        next(self._iterator)
      rows = next(self._iterator)
    self._position += 1
    return rows

  def _read(self) -> Mapping[str, jax.Array]:
    rows = self._next()
    return {
      k: jax.make_array_from_process_local_data(
        self._sharding, np.asarray(v), self.element_spec[k].shape
      )
      for k, v in rows.items()
    }


def eval_batches(
  rows: Any, sharding: NamedSharding, *, name: str
) -> Iterator[Mapping[str, jax.Array]]:
  """The batches of an evaluation set, once, on the mesh; `name` is that of the set, for errors."""
  with _named(f"evaluation data {name}"):
    for batch in rows.as_numpy_iterator():
      yield jax.make_array_from_process_local_data(sharding, batch)


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
  """Turns TensorFlow's error about a damaged record into one that says what is damaged and what to do."""
  import tensorflow as tf

  try:
    yield
  except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
    # The second is that of `data.tfrecord`, which reads from object stores.
    if not isinstance(error, tf.errors.DataLossError) and "CorruptRecord" not in str(error):
      raise
    raise Damaged(
      f"a shard of the {what} is damaged ({error.message}): `python -m beam_jobs.verify` with the folders of its "
      "caches names it; the `beam_jobs.preprocess` command that made it makes it again."
    ) from error
