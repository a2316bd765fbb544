"""Reads the encoder of a T5X checkpoint, one tensor at a time.

T5X stores each parameter as one zarr array in the checkpoint folder, named by its path in the tree joined with dots:
`target.encoder.layers_0.attention.query.kernel`. Names and layouts are those of this package: nothing is transposed,
and the relative position table is (heads, buckets).
"""

import pathlib
from typing import Any

import numpy as np

_PREFIX = "target."


class T5XSource:
  """The parameters under `target` of one checkpoint by flat name ('encoder/encoder_norm/scale').

  Args:
    path: local `checkpoint_<step>` folder of T5X.

  Raises:
    FileNotFoundError: if the folder does not contain such arrays.
  """

  def __init__(self, path: str | pathlib.Path):
    self._folder = pathlib.Path(path)
    self.names = frozenset(
      child.name.removeprefix(_PREFIX).replace(".", "/")
      for child in (self._folder.iterdir() if self._folder.is_dir() else ())
      if child.name.startswith(_PREFIX) and child.is_dir()
    )
    if not self.names:
      raise FileNotFoundError(
        f"{path}: no arrays named {_PREFIX}...; expected the checkpoint_<step> folder of a T5X run"
      )

  def stored_name(self, name: str) -> tuple[str, bool]:
    """Returns the name itself; nothing is transposed."""
    return name, False

  def _open(self, name: str) -> Any:
    import tensorstore as ts

    path = (self._folder / (_PREFIX + name.replace("/", "."))).resolve()
    kvstore = {"driver": "file", "path": f"{path}/"}
    return ts.open({"driver": "zarr", "kvstore": kvstore}, open=True, read=True).result()

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape of a parameter without reading its values."""
    return tuple(self._open(name).shape)

  def read(self, name: str) -> np.ndarray:
    """Reads one parameter in its stored dtype."""
    return np.asarray(self._open(name).read().result())
