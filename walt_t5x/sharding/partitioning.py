"""Which axis of parameters and activations lies over which axis of the mesh, for every stage, chosen from gin.

    engine.PjitPartitioner:
      num_partitions = 4                                  # size of 'model'; the other devices form 'data'
      logical_axis_rules = @partitioning.rules()
    partitioning.rules:
      fully_sharded = True
      model_axis = 'tensor'

Rows always lie over 'data'. By setting, with num_partitions = m and n devices:

  setting                     parameters                               activations
  the defaults, m = 1         whole on each device                     rows over n
  fully_sharded               width ("embed") over n / m               as without
  model_axis = "tensor"       heads and MLP over m                     heads and MLP inside a layer over m
  model_axis = "sequence"     whole; fully sharded: width over n       height of the token grid over m

Both engines take the rules. The tokenizer names none of these axes but its rows: it is data parallel in all of them.

"tensor" splits matrices, so m must divide heads and MLP width. "sequence" splits the tokens: a layer whose windows do
not reach over the border of two parts needs no other device, others gather keys and values. So it suits stages whose
frame holds several windows (the second super-resolution stage: two along the height), with few rows a device.
"""

from collections.abc import Sequence

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

MODEL_AXES = ("tensor", "sequence")
# Names that lie whole on every device. Each name of our modules is in the table, so that a new one is noticed.
WHOLE = (
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
  """Logical axis rules for `engine.PjitPartitioner`; the first that fits an axis and a free mesh axis wins.

  Args:
    fully_sharded: split parameters, gradients and optimizer state along the width too (ZeRO-3). The parts must divide
      the width.
    model_axis: what the mesh axis 'model' splits, "tensor" or "sequence"; nothing where num_partitions is 1.
    additional_rules: come first, so they override.

  Raises:
    ValueError: for another `model_axis`.
  """
  if model_axis not in MODEL_AXES:
    raise ValueError(f"partitioning.rules.{model_axis=}: expected one of {MODEL_AXES}")
  tensor = model_axis == "tensor"
  # Rows and height come before "embed": an activation's width stays whole where they take the mesh axis.
  found: list[tuple[str, str | tuple[str, ...] | None]] = [("batch", "data")]
  found.append(("height", None if tensor else "model"))
  found += [(name, "model" if tensor else None) for name in ("heads", "mlp", "vocab")]
  if fully_sharded:
    found.append(("embed", "data" if tensor else ("data", "model")))
  else:
    found.append(("embed", None))
  return [*additional_rules, *found, *((name, None) for name in WHOLE)]
