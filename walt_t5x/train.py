"""Trains a model: `python -m walt_t5x.train --gin_file=gin/... --gin.MODEL_DIR=\\"/path\\" --gin.NAME=value`.

The flags are those of T5X's `train.py`, and one gin file works with both. It begins with

    from __gin__ import dynamic_registration
    import __main__ as train_script
    from walt_t5x import engine

and binds `train_script.train`. Heavy packages are imported after the flags are parsed. Exit codes: `engine.exits`.
"""

import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Iterator, Sequence

from absl import app, flags, logging

from walt_t5x.config import gin_flags, programs
from walt_t5x.config.waiting import waiting
from walt_t5x.generation import presets

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags of T5X's launcher, and `--multiprocess`."""
  gin_flags.define()
  with gin_flags.group("configuration"):
    flags.DEFINE_string(
      "from", None, "Fine-tunes this run, or this checkpoint of a run (gin/runs/finetune.gin)."
    )
  with gin_flags.group("data"):
    flags.DEFINE_list("seqio_additional_cache_dirs", [], "Folders with cached tasks.")
    flags.DEFINE_string("tfds_data_dir", None, "Folder of TensorFlow Datasets.")
  with gin_flags.group("several processes"):
    flags.DEFINE_boolean(
      "multiprocess",
      False,
      "One process of several, as configured by the cluster (TPU pods, SLURM, GKE) or the environment: "
      "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID.",
    )
    flags.DEFINE_boolean(
      "multiprocess_gpu", False, "One process of several, as configured by the next three flags."
    )
    flags.DEFINE_string("coordinator_address", None, "host:port of process 0.")
    flags.DEFINE_integer("process_count", None, "Number of processes.")
    flags.DEFINE_integer("process_index", None, "Index of this process.")
    flags.DEFINE_integer("initialization_timeout", 300, "Seconds to wait for the other processes.")


def main(argv: Sequence[str]) -> None:
  """Reads the configuration and trains."""
  gin_flags.check(argv, "gin_file=gin/tiny/base.gin")
  try:
    _train()
  except KeyboardInterrupt:  # Outside the steps, where `engine.exits` handles it.
    print(
      "\ntrain: interrupted; the same command resumes from the last checkpoint", file=sys.stderr
    )
    sys.exit(128 + signal.SIGINT)


def _train() -> None:
  from walt_t5x.engine import host_memory

  if host_memory.runs_on_cpu():
    host_memory.keep_freed_memory()

  with waiting("train", "importing JAX and TensorFlow"), programs.quiet_imports():
    import jax
    import seqio
    import tensorflow as tf

  from walt_t5x import engine
  from walt_t5x.config import gin_config
  from walt_t5x.engine import exits, run_settings, watchdog
  from walt_t5x.files.locks import Held
  from walt_t5x.files.mismatch import Mismatch

  # `kill -USR1` prints the stacks of a run.
  faulthandler.register(signal.SIGUSR1, all_threads=True)
  tf.config.set_visible_devices([], "GPU")  # JAX owns the accelerators.
  join_processes()
  if FLAGS.tfds_data_dir:
    seqio.set_tfds_data_dir_override(FLAGS.tfds_data_dir)
  seqio.add_global_cache_dirs(FLAGS.seqio_additional_cache_dirs)

  programs.register(train=engine.train)
  with programs.user_errors("train"):
    gin_flags.read(with_finetuning())
    train = gin_config.configured(engine.train, "train_script.train")
    settings = gin_config.bound(run_settings.RunSettings)
    model_dir = gin_config.binding("train_script.train.model_dir")
  try:
    if engine.use_t5x():
      with alone(model_dir):
        train()
    else:
      several = jax.distributed.is_initialized()
      with (
        contextlib.nullcontext() if several else exits.preemption_notice(at_once=True),
        watchdog.Watchdog(limits=settings.limits(), model_dir=model_dir) as watched,
      ):
        watched.enter("backend")
        jax.devices()
        watched.enter("lock")
        with alone(model_dir):
          watched.enter("data")  # Some arguments of the gin files are read from the caches.
          train(settings=settings, watchdog=watched)
  except exits.TrainingStopped as stopped:
    logging.error("%s Exit code %d.", gin_config.without_location(stopped), stopped.exit_code)
    sys.exit(stopped.exit_code)
  except (FileNotFoundError, Mismatch, Held) as error:
    sys.exit(f"train: {gin_config.without_location(error)}")
  jax.effects_barrier()


def with_finetuning() -> list[str]:
  """The gin files of the flags, with those of --from, whose run becomes a binding."""
  run = FLAGS["from"].value
  if not run:
    return FLAGS.gin_file
  run = presets.place(run)
  FLAGS.gin_bindings.append(f"FINETUNED_RUN = {run!r}")
  return [*FLAGS.gin_file, "gin/runs/finetune.gin"]


@contextlib.contextmanager
def alone(model_dir: str | None) -> Iterator[None]:
  """Inside the block, no other training starts in the folder; of several processes, the first holds the lock.

  Raises:
    Held: in all processes, if another training has the folder.
  """
  import jax
  import numpy as np
  from jax.experimental import multihost_utils

  from walt_t5x.files import locks, storage

  several, failed = jax.process_count() > 1, None
  with contextlib.ExitStack() as stack:
    if model_dir and jax.process_index() == 0:
      path = storage.join(model_dir, "train.lock")
      instead = "set another MODEL_DIR"
      try:
        # JAX handles the SIGTERM of several processes.
        sigterm = not jax.distributed.is_initialized()
        stack.enter_context(locks.held(path, program="train", instead=instead, sigterm=sigterm))
      except Exception as error:
        failed = error
    if several and multihost_utils.broadcast_one_to_all(np.int32(failed is not None)):
      failed = failed or locks.Held(f"process 0 did not get {model_dir}; its log says why")
    if failed:
      raise failed
    yield


def join_processes() -> None:
  """Makes this process one of several if flags, environment or cluster configure it; otherwise does nothing."""
  import jax

  timeout = {"initialization_timeout": FLAGS.initialization_timeout}
  address, count, index = (
    os.environ.get(f"JAX_{n}") for n in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
  )
  if FLAGS.multiprocess_gpu:
    jax.distributed.initialize(
      FLAGS.coordinator_address, FLAGS.process_count, FLAGS.process_index, **timeout
    )
  elif address and count and index:
    jax.distributed.initialize(address, int(count), int(index), **timeout)
  elif FLAGS.multiprocess:
    jax.distributed.initialize(**timeout)


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=gin_flags.parse_args)
