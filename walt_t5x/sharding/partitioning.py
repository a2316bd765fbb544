"""Logical axis rules: the mesh axis that each axis of parameters and activations is sharded over, selected from gin.

    engine.PjitPartitioner:
      num_partitions = 4                                  # size of 'model'; the other devices form 'data'
      logical_axis_rules = @partitioning.rules()
    partitioning.rules:
      fully_sharded = True
      model_axis = 'tensor'

The batch is always sharded over 'data'. By setting, with num_partitions = m and n devices:

  setting                     parameters                               activations
  the defaults, m = 1         replicated                               batch over n
  fully_sharded               width ("embed") over n / m               unchanged
  model_axis = "tensor"       heads and MLP over m                     heads and MLP inside a layer over m
  model_axis = "sequence"     replicated; fully sharded: width over n  height of the token grid over m

Both engines use the rules. Of these axes the tokenizer has only the batch: it is always data parallel.

"tensor" splits matrices, so m must divide heads and MLP width. "sequence" splits the tokens: a layer whose windows do
not cross the border between two parts needs no communication, others gather keys and values. It suits stages whose
frames contain several windows (the second super-resolution stage: two along the height), with few examples per device.
"""

from collections.abc import Sequence

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

MODEL_AXES = ("tensor", "sequence")
# Names that are replicated on every device. Each name of our modules is in the table, so that a new one is noticed.
REPLICATED = (
  "frames",
  "width",
  "kv",
  "layers",
  "unmodeled",
  "relpos_buckets",
  *(f"conv_{axis}" for axis in ("t", "h", "w", "in", "out")),
)


def rules(
  *,
  fully_sharded: bool = False,
  model_axis: str = "tensor",
  additional_rules: Rules = (),
) -> Rules:
  """Logical axis rules for `engine.PjitPartitioner`; the first that matches an axis and a free mesh axis wins.

  Args:
    fully_sharded: also split parameters, gradients and optimizer state along the width (ZeRO-3). The number of parts
      must divide the width.
    model_axis: what the mesh axis 'model' splits, "tensor" or "sequence"; unused if num_partitions is 1.
    additional_rules: come first and override the others.

  Raises ValueError if `model_axis` is unknown.
  """
  if model_axis not in MODEL_AXES:
    raise ValueError(f"partitioning.rules.{model_axis=}: expected one of {MODEL_AXES}")
  tensor = model_axis == "tensor"
  # Batch and height come before "embed": an activation's width is not split if they use the mesh axis.
  found: list[tuple[str, str | tuple[str, ...] | None]] = [("batch", "data")]
  found.append(("height", None if tensor else "model"))
  found += [(name, "model" if tensor else None) for name in ("heads", "mlp", "vocab")]
  if fully_sharded:
    found.append(("embed", "data" if tensor else ("data", "model")))
  else:
    found.append(("embed", None))
  return [*additional_rules, *found, *((name, None) for name in REPLICATED)]
