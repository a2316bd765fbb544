"""Maps logical axes to a device mesh."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from flax.core.spmd import logical_axis_rules
from flax.linen.spmd import logical_to_mesh_axes
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LogicalAxisRules = Sequence[tuple[str, str | tuple[str, ...] | None]]


@dataclasses.dataclass(frozen=True)
class DataLayout:
  """The data shard that this process reads."""

  batch_size: int
  shard_id: int
  num_shards: int
  is_first_host_in_replica_set: bool


def standard_logical_axis_rules(
  activation_partitioning_dims: int = 1,
  parameter_partitioning_dims: int = 1,
  additional_rules: LogicalAxisRules | None = None,
) -> LogicalAxisRules:
  """T5X's standard rules: wide axes over 'model', batch over 'data'; with two dimensions 'embed' is split too.

  Args:
    activation_partitioning_dims: 1, or 2 to split activations along 'embed' over 'model'.
    parameter_partitioning_dims: 1, or 2 to split parameters along 'embed' over 'data' (fully sharded).
    additional_rules: appended; the first rule that matches an axis wins.
  """
  if activation_partitioning_dims not in (1, 2) or parameter_partitioning_dims not in (1, 2):
    raise ValueError(
      f"standard_logical_axis_rules: got {activation_partitioning_dims=}, {parameter_partitioning_dims=}, "
      "expected 1 or 2."
    )
  sharded = [
    ("batch", "data"),
    *((name, "model") for name in ("vocab", "mlp", "heads", "joined_kv")),
  ]
  if activation_partitioning_dims == 2:
    sharded.append(("embed", "model"))
  if parameter_partitioning_dims == 2:
    sharded.append(("embed", "data"))
  replicated = ("relpos_buckets", "abspos_buckets", "length", "layers", "stack", "mlp_activations")
  unsharded = [(name, None) for name in ("embed", "kv", *replicated)]
  return [*sharded, *unsharded, *(additional_rules or [])]


class PjitPartitioner:
  """Maps logical axes to a ('data', 'model') mesh and compiles functions over it.

  Args:
    num_partitions: size of the 'model' axis; the other devices form 'data'.
    model_parallel_submesh: T5X's (x, y, z, cores) tile; its product is the size of the 'model' axis and the
      placement is left to `jax.experimental.mesh_utils`, which knows the interconnect.
    params_on_devices: accepted for T5X compatibility; parameters are always on the devices.
    backend: use devices of this platform.
    ici_mesh_shape: (replica, data, model) sizes within a slice; requires `dcn_mesh_shape`, for several slices.
    dcn_mesh_shape: (replica, data, model) sizes across slices.
    logical_axis_rules: (logical axis, mesh axis or None) pairs; the first match wins.

  Raises:
    ValueError: neither or both of `num_partitions` and `model_parallel_submesh` are given.
  """

  def __init__(
    self,
    num_partitions: int | None = None,
    model_parallel_submesh: Sequence[int] | None = None,
    params_on_devices: bool = True,
    backend: str | None = None,
    ici_mesh_shape: Sequence[int] | None = None,
    dcn_mesh_shape: Sequence[int] | None = None,
    logical_axis_rules: LogicalAxisRules | None = None,
  ):
    del params_on_devices
    if bool(num_partitions) == bool(model_parallel_submesh):
      raise ValueError(
        f"PjitPartitioner: got {num_partitions=} and {model_parallel_submesh=}, expected exactly one of them."
      )
    if (ici_mesh_shape is None) != (dcn_mesh_shape is None):
      raise ValueError(
        f"PjitPartitioner: got {ici_mesh_shape=} and {dcn_mesh_shape=}; give both, or neither."
      )
    self._model_size = num_partitions or math.prod(model_parallel_submesh or ())
    self._backend = backend
    self._ici, self._dcn = ici_mesh_shape, dcn_mesh_shape
    rules = standard_logical_axis_rules() if logical_axis_rules is None else logical_axis_rules
    if ici_mesh_shape is not None:
      rules = [(k, ("replica", "data") if k == "batch" else v) for k, v in rules]
    self.logical_axis_rules = tuple((name, axis) for name, axis in rules)

  @property
  def devices(self) -> Sequence[jax.Device]:
    """All devices of all processes."""
    return jax.devices(self._backend)

  @functools.cached_property
  def mesh(self) -> Mesh:
    """The mesh over all devices.

    A mesh axis may be part of an axis of the slice: 4 of the 16 along one side of a v5e:16x16.
    """
    devices = self.devices
    if self._ici is not None and self._dcn is not None:
      grid = mesh_utils.create_hybrid_device_mesh(
        self._ici, self._dcn, devices=devices, allow_split_physical_axes=True
      )
      return Mesh(grid, ("replica", "data", "model"))
    if len(devices) % self._model_size:
      raise ValueError(
        f"PjitPartitioner: {len(devices)} devices do not divide into {self._model_size} model partitions; set "
        "num_partitions to a divisor."
      )
    shape = (len(devices) // self._model_size, self._model_size)
    grid = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    return Mesh(grid, ("data", "model"))

  @property
  def data_partition_spec(self) -> PartitionSpec:
    return logical_to_mesh_axes(("batch",), self.logical_axis_rules) or PartitionSpec()

  @property
  def data_sharding(self) -> NamedSharding:
    """Sharding of a batch: batch axis over the data axes."""
    return NamedSharding(self.mesh, self.data_partition_spec)

  @property
  def replicated(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec())

  def get_data_layout(self, batch_size: int | None = None) -> DataLayout:
    """The data shard that this process reads. Processes that hold the same part of a batch read the same shard.

    Args:
      batch_size: size of the global batch; None for one example per data partition.

    Raises:
      ValueError: the batch size is not divisible by the number of data partitions.
    """
    axes = _mesh_axes(self.data_partition_spec[0])
    parts = math.prod(self.mesh.shape[axis] for axis in axes)
    batch_size = batch_size or parts
    if batch_size % parts:
      lower, upper = batch_size // parts * parts, -(-batch_size // parts) * parts
      nearest = f"{lower} and {upper}" if lower else f"{upper}"
      raise ValueError(
        f"batch size {batch_size} is not divisible by {parts} data partitions of the devices; the nearest that are: "
        f"{nearest}. Set --gin.BATCH_SIZE={upper}, or EVAL_BATCH_SIZE if this is the batch of evaluations."
      )
    shards, owners = _data_shards(self.mesh, axes)
    mine = owners[jax.process_index()]
    first = min(process for process, shard in owners.items() if shard == mine)
    return DataLayout(batch_size, mine, shards, first == jax.process_index())

  def get_mesh_axes(self, logical_axes: Any) -> Any:
    """Maps a tree of logical `PartitionSpec`s to mesh `PartitionSpec`s."""
    return jax.tree.map(
      lambda axes: logical_to_mesh_axes(tuple(axes), self.logical_axis_rules), logical_axes
    )

  def get_shardings(self, mesh_axes: Any) -> Any:
    """Maps a tree (or prefix) of mesh `PartitionSpec`s to shardings; None is replicated."""
    return jax.tree.map(
      lambda spec: NamedSharding(self.mesh, PartitionSpec() if spec is None else spec),
      mesh_axes,
      is_leaf=lambda node: node is None,
    )

  def check_divisible(self, state_dict: Any, mesh_axes_dict: Any) -> None:
    """Raises a `ValueError` if a sharded dimension is not divisible by the size of its mesh axes."""
    shapes: dict[str, Any] = traverse_util.flatten_dict(state_dict, sep="/")
    specs: dict[str, Any] = traverse_util.flatten_dict(mesh_axes_dict, sep="/")
    for name, spec in specs.items():
      for size, axis in zip(shapes[name].shape, spec):
        parts = math.prod(self.mesh.shape[name] for name in _mesh_axes(axis))
        if size % parts:
          raise ValueError(
            f"{name}: dimension of {size} is not divisible by mesh axis {axis!r} of {parts}; change "
            "PjitPartitioner.num_partitions, or map its logical axis to None in logical_axis_rules."
          )

  def partition(
    self,
    fn: Callable[..., Any],
    in_axis_resources: Any,
    out_axis_resources: Any,
    static_argnums: int | Sequence[int] = (),
    donate_argnums: int | Sequence[int] = (),
  ) -> Any:
    """Compiles `fn` over the mesh; resources are trees (or prefixes) of `PartitionSpec`, None for replicated."""

    @functools.wraps(fn)
    def in_context(*args: Any) -> Any:
      with self.context():
        return fn(*args)

    return jax.jit(
      in_context,
      in_shardings=self.get_shardings(in_axis_resources),
      out_shardings=self.get_shardings(out_axis_resources),
      static_argnums=static_argnums,
      donate_argnums=donate_argnums,
    )

  @contextlib.contextmanager
  def context(self) -> Iterator[None]:
    """The context in which functions are traced; it defines the meaning of logical axes."""
    with self.mesh, logical_axis_rules(self.logical_axis_rules):
      yield

  def compile(self, partitioned_fn: Any, *args: Any) -> Callable[..., Any]:
    """The function compiled for arguments of these shapes (arrays or `jax.ShapeDtypeStruct`)."""
    return partitioned_fn.lower(*args).compile()


def _mesh_axes(axis: str | Sequence[str] | None) -> tuple[str, ...]:
  """The entry of a `PartitionSpec` for one dimension, as names."""
  return (axis,) if isinstance(axis, str) else tuple(axis or ())


def _data_shards(mesh: Mesh, data_axes: Sequence[str]) -> tuple[int, dict[int, int]]:
  """Number of data shards, and the shard of each process.

  A process's shard is the part of a batch that its devices hold; equal parts are one shard, read by several processes.
  """
  rows: dict[int, set[tuple[int, ...]]] = {}
  positions = [mesh.axis_names.index(axis) for axis in data_axes]
  for index, device in np.ndenumerate(mesh.devices):
    rows.setdefault(device.process_index, set()).add(tuple(index[p] for p in positions))
  distinct = sorted({tuple(sorted(held)) for held in rows.values()})
  flat = [row for held in distinct for row in held]
  if len(flat) != len(set(flat)) or len({len(held) for held in distinct}) != 1:
    raise ValueError(
      "the processes' shares of the data axis overlap partly; choose num_partitions so that the model axis spans "
      "complete processes, or fits into one."
    )
  return len(distinct), {p: distinct.index(tuple(sorted(held))) for p, held in rows.items()}
