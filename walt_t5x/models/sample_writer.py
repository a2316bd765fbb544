"""Output of T5X's infer.py for models of latents: one `.npz` per task instead of lines of JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from walt_t5x.files import storage


def write_samples(
  path: str,
  inferences: tuple[Sequence[Any], Mapping[str, Any]],
  task_ds: Any,
  mode: str,
  vocabulary: Any = None,
) -> None:
  """Writes one chunk: `predict` (or `score`) [n, ...] float32, and `is_image` [n] if the examples have it.

  `inferences` are predictions in the order of the examples, and auxiliary outputs; infer.py's mode names the array.
  """
  predictions, aux = inferences
  arrays = {mode: np.stack([np.asarray(p, np.float32) for p in predictions])}
  arrays |= {f"aux/{name}": np.stack(values) for name, values in aux.items()}
  kinds = [row["is_image"] for row in task_ds.as_numpy_iterator() if "is_image" in row]
  if kinds:
    arrays["is_image"] = np.asarray(kinds)
  with storage.writer(path) as file:
    np.savez(file, allow_pickle=False, **arrays)


def merge_samples(output_dir: str, output_fname: str, tmp_dir: str, step: int | None) -> None:
  """Joins the chunks of a task into `<output_dir>/<output_fname>` and adds the step of the checkpoint.

  Raises:
    FileNotFoundError: a chunk is missing, or there are none.
  """
  names = [name for name in storage.names(tmp_dir) if name.startswith(f"{output_fname}-chunk")]
  chunks = [name for name in names if not name.endswith(".COMPLETED")]
  expected = [f"{output_fname}-chunk{i:05}" for i in range(max(1, len(chunks)))]
  if chunks != expected:
    raise FileNotFoundError(
      f"{tmp_dir}: got chunks {chunks}, expected {expected}; run infer.py again"
    )
  parts = []
  for name in chunks:
    with storage.open_raw(storage.join(tmp_dir, name)) as file:
      parts.append(dict(np.load(file)))
  joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
  with storage.writer(storage.join(output_dir, output_fname)) as file:
    step_number = np.int64(-1 if step is None else step)
    np.savez(file, allow_pickle=False, step=step_number, **joined)
