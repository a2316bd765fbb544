"""The tiny denoiser of gin/tiny/base.gin on every mesh of eight fake devices: equal losses, portable checkpoints.

  python -m benchmarks.engine_meshes          # prints the table, writes benchmarks/engine_meshes.{md,json}

Two layers of width 32 instead of four, float32, examples of images and videos. Checks:

  losses   3 training steps on data-parallel 1, 2, 4, 8 and model-parallel 1, 2, 4: loss, gradient norm and update norm
           within 1e-5 (relative) of one device
  moves    the state after these steps, saved on 8 devices and restored and saved again on 4, 1 and 8, is bit-identical,
           and training resumes from it like a run that was not moved
"""

import argparse
import functools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import results

HERE = Path(__file__).resolve().parent
FIELDS = {"num_layers": 2, "width": 32, "num_heads": 4, "mlp_dim": 64, "dtype": "'float32'"}
# (devices, of them along 'model').
MESHES = ((1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 4), (4, 2), (8, 4))
JOURNEY = ((8, 2), (4, 4), (1, 1), (8, 4), (8, 1))
ROWS, STEPS, TOLERANCE = 8, 3, 1e-5


@contextmanager
def configured(cache: Path) -> Iterator[tuple[Any, Any, Any]]:
  """Model, task and feature lengths as gin/tiny/base.gin binds them, with random latents."""
  import seqio

  import gin
  from benchmarks.engine_rows import write_cache
  from walt_t5x import engine
  from walt_t5x.config import gin_config

  write_cache(cache, videos=32, images=24, shards=2)
  main = sys.modules["__main__"]
  before = getattr(main, "train", None)
  main.train = engine.train  # type: ignore[attr-defined]
  narrow = [f"base/transformer.WaltDenoiser.{name} = {value}" for name, value in FIELDS.items()]
  gin.clear_config()
  try:
    gin.add_config_file_search_path(str(HERE.parent))
    gin.parse_config_files_and_bindings(
      ["gin/tiny/base.gin"], [*narrow, f"BATCH_SIZE = {ROWS}", "MODEL_DIR = 'unused'"]
    )
    seqio.set_global_cache_dirs([str(cache)])
    yield tuple(gin_config.macro_value(n) for n in ("MODEL", "MIXTURE_OR_TASK_NAME"))
  finally:
    seqio.set_global_cache_dirs([])
    gin.clear_config()
    if before is not None:
      main.train = before  # type: ignore[attr-defined]


class OnMesh:
  """A model, its input and its checkpoints on the first devices.

  Args:
    given: result of `configured`.
    devices: number of devices.
    model_parallel: number of devices along the axis 'model'.
  """

  def __init__(self, given: tuple[Any, Any], devices: int, model_parallel: int):
    import jax
    import numpy as np

    from data import batch_spec
    from walt_t5x import engine
    from walt_t5x.engine.builtin.data_iterator import ShardedIterator
    from walt_t5x.engine.builtin.train_state import StateInitializer

    self.model, dataset = given
    self.partitioner = engine.PjitPartitioner(num_partitions=model_parallel)
    grid = np.array(jax.devices()[:devices]).reshape(devices // model_parallel, model_parallel)
    self.partitioner.mesh = jax.sharding.Mesh(grid, ("data", "model"))
    cfg = engine.DatasetConfig(
      mixture_or_task_name=dataset,
      task_feature_lengths=batch_spec.task_feature_lengths(dataset),
      split="train",
      batch_size=ROWS,
      shuffle=False,
      seed=0,
      use_cached=True,
      trim_output_features=False,
    )
    self.layout = self.partitioner.get_data_layout(ROWS)
    make = functools.partial(
      engine.get_dataset,
      cfg,
      self.layout.shard_id,
      self.layout.num_shards,
      self.model.FEATURE_CONVERTER_CLS,
    )
    self.rows = ShardedIterator(make, sharding=self.partitioner.data_sharding, batch_size=ROWS)
    self.initializer = StateInitializer(
      self.model, input_spec=self.rows.element_spec, partitioner=self.partitioner
    )

  def from_scratch(self) -> Any:
    import jax

    return self.initializer.from_scratch(jax.random.PRNGKey(0))

  def place(self, state: Any) -> Any:
    """Moves a state from another mesh to this one."""
    import jax

    return jax.device_put(jax.device_get(state), self.initializer.shardings)

  def train(self, state: Any, steps: int) -> tuple[Any, dict[str, float]]:
    """The state after a number of steps on the next batches, and the mean of the metrics."""
    import jax

    from walt_t5x.engine.builtin.training_step import TrainingStep

    step = TrainingStep(
      model=self.model,
      partitioner=self.partitioner,
      axes=self.initializer.axes,
      rng=jax.random.PRNGKey(1),
      learning_rate_fn=lambda step: 0.0,
    )
    for _ in range(steps):
      state, _ = step(state, next(self.rows))
    metrics = jax.device_get(step.take_metrics())
    return state, {name: float(metric.compute()) for name, metric in metrics.items()}

  def save(self, folder: Path, state: Any) -> None:
    from walt_t5x import engine
    from walt_t5x.engine.builtin.checkpoint_manager import CheckpointManager

    config = engine.SaveCheckpointConfig(period=1, save_dataset=True)
    manager = CheckpointManager(str(folder), config=config, layout=self.layout)
    manager.save(int(state.step), state, self.rows)
    manager.wait()
    manager.close()

  def restore(self, folder: Path) -> Any:
    """Restores the newest state of a folder on this mesh, and the position of the input."""
    import jax

    from walt_t5x.engine import checkpoints
    from walt_t5x.engine.builtin import restoring

    restorer = restoring.Restorer(self.initializer, jax.random.PRNGKey(0))
    state, step = restorer.newest(str(folder))
    checkpoint = checkpoints.checkpoint_folder(folder, step)
    assert restoring.restore_row_position(checkpoint, self.rows, self.layout, position=step)
    return state


def differences(a: Any, b: Any) -> list[str]:
  """Names of the arrays of two states that differ in any bit."""
  import jax
  import numpy as np

  pairs = zip(
    jax.tree_util.tree_leaves_with_path(jax.device_get(a.state_dict())),
    jax.tree.leaves(jax.device_get(b.state_dict())),
    strict=True,
  )
  return [
    jax.tree_util.keystr(path)
    for (path, x), y in pairs
    if np.asarray(x).tobytes() != np.asarray(y).tobytes()
  ]


def run() -> dict[str, Any]:
  result: dict[str, Any] = {"meshes": {}, "moves": {}}
  with tempfile.TemporaryDirectory() as temporary, configured(Path(temporary) / "cache") as given:
    scratch = OnMesh(given, 1, 1).from_scratch()
    base: dict[str, float] = {}
    for devices, model_parallel in MESHES:
      mesh = OnMesh(given, devices, model_parallel)
      _, metrics = mesh.train(mesh.place(scratch), STEPS)
      base = base or metrics
      worst = {
        name: abs(metrics[name] / base[name] - 1)
        for name in ("loss", "loss_image", "loss_video", "gradient_norm", "update_norm")
      }
      name = f"data {devices // model_parallel} x model {model_parallel}"
      result["meshes"][name] = {"loss": metrics["loss"], "worst": max(worst.values())}
      print(name, json.dumps(result["meshes"][name]), flush=True)

    home = OnMesh(given, *JOURNEY[0])
    state, _ = home.train(home.place(scratch), STEPS)
    folder = Path(temporary) / "0"
    home.save(folder, state)
    for n, (devices, model_parallel) in enumerate(JOURNEY[1:], start=1):
      mesh = OnMesh(given, devices, model_parallel)
      moved = mesh.restore(folder)
      changed = differences(moved, state)
      result["moves"][f"{devices} devices, model {model_parallel}"] = len(changed)
      folder = Path(temporary) / str(n)
      mesh.save(folder, moved)
    stayed, went = OnMesh(given, *JOURNEY[0]), OnMesh(given, *JOURNEY[0])
    first = stayed.train(stayed.restore(Path(temporary) / "0"), 2)[0]
    second = went.train(went.restore(folder), 2)[0]
    result["differ_after_2_more_steps"] = len(differences(first, second))
  result["held"] = (
    all(m["worst"] <= TOLERANCE for m in result["meshes"].values())
    and not any(result["moves"].values())
    and not result["differ_after_2_more_steps"]
  )
  return result


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--output", default=str(HERE), help="folder of engine_meshes.{md,json}")
  output = parser.parse_args().output
  os.environ |= {
    "WALT_T5X_ENGINE": "builtin",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
  }
  result = run()
  lines = ["# The tiny denoiser on every mesh", ""]
  lines += [f"| mesh | loss of {STEPS} steps | largest difference |", "| --- | --- | --- |"]
  lines += [f"| {n} | {m['loss']:.7f} | {m['worst']:.1e} |" for n, m in result["meshes"].items()]
  lines += ["", "| restored on | arrays that differ |", "| --- | --- |"]
  lines += [f"| {name} | {count} |" for name, count in result["moves"].items()]
  lines += [f"| then 2 steps more | {result['differ_after_2_more_steps']} |"]
  results.write(output, "engine_meshes", "\n".join(lines) + "\n", result)
  print("held" if result["held"] else "NOT HELD")
  return 0 if result["held"] else 1


if __name__ == "__main__":
  sys.exit(main())
