"""Interpolates position tables to another token grid: the 9:16 fine-tuning of the base stage (Section 4.5, appendix).

Absolute tables have one row per grid position, relative tables one row per displacement within a window. Both are
reshaped to grids and interpolated linearly along each axis with aligned ends. Displacement 0 therefore remains
displacement 0, and an unchanged grid returns the table unchanged, bit for bit.

Assumption: linear with aligned ends; the paper says only that both kinds of table are interpolated.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from walt_t5x.denoiser.windows import Window


def interpolation_matrix(old: int, new: int) -> np.ndarray:
  """float64 [new, old] that resamples an axis linearly; each row sums to 1, first and last rows are unit vectors."""
  place = np.linspace(0, old - 1, new) if new > 1 else np.array([(old - 1) / 2])
  return np.stack([np.interp(place, np.arange(old), row) for row in np.eye(old)], axis=1)


def interpolate_rows(
  table: np.ndarray, old: Sequence[int], new: Sequence[int], *, axis: int = 0
) -> np.ndarray:
  """Interpolates a table whose `axis` runs over a grid of sizes `old` (row-major) to a grid of sizes `new`.

  [..., prod(old), ...] becomes [..., prod(new), ...] of the same dtype; the table itself if the grids are equal. Raises
  ValueError if the axis does not have prod(old) entries.
  """
  if table.shape[axis] != math.prod(old):
    raise ValueError(
      f"interpolate_rows: axis {axis} of a table of shape {table.shape} has {table.shape[axis]} rows, expected "
      f"{math.prod(old)} = prod{tuple(old)}; set the grid that the checkpoint was trained on"
    )
  if tuple(old) == tuple(new):
    return table
  grid = np.moveaxis(np.asarray(table, np.float64), axis, 0)
  rest = grid.shape[1:]
  grid = grid.reshape(*old, *rest)
  for i, (before, after) in enumerate(zip(old, new, strict=True)):
    grid = np.moveaxis(np.tensordot(interpolation_matrix(before, after), grid, (1, i)), 0, i)
  return np.moveaxis(grid.reshape(math.prod(new), *rest), 0, axis).astype(table.dtype)


def displacements(window: Window) -> tuple[int, ...]:
  """Sizes of the grid of a relative table: 2 w - 1 along each axis."""
  return tuple(2 * size - 1 for size in window)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InterpolatePositions:
  """A checkpoint transform, for `engine.RestoreCheckpointConfig.state_transformation_fns` in gin.

  Interpolates every position table of a denoiser, and the optimizer state that has the same rows, from one token grid
  to another. A resumed run is not changed: its checkpoints already have the new tables.

  Grids (t, h, w) and windows (wt, wh, ww) are in tokens, of the checkpoint and (`new_`) of this run.
  """

  grid: Window
  new_grid: Window
  spatial_window: Window
  new_spatial_window: Window
  spatiotemporal_window: Window
  new_spatiotemporal_window: Window

  def __call__(
    self,
    state_dict: Mapping[str, Any],
    target_state_dict: Mapping[str, Any] | None = None,
    *,
    is_resuming: bool = False,
  ) -> Mapping[str, Any]:
    """Returns the state with interpolated tables; other entries are the same objects.

    Raises ValueError if the rows of a table do not match the given grid, or the state has no table.
    """
    del target_state_dict
    if is_resuming:
      return state_dict
    flat = traverse_util.flatten_dict(dict(state_dict), keep_empty_nodes=True)
    moved = {name: self._moved(name, value) for name, value in flat.items()}
    if not any(self._grids(name) for name in flat):
      raise ValueError(
        "InterpolatePositions found no position table in the checkpoint: expected names that contain "
        f"'position_embedding' or 'relative_position_bias', got {['/'.join(n) for n in list(flat)[:3]]} ..."
      )
    return traverse_util.unflatten_dict(moved)

  def _grids(self, name: tuple[str, ...]) -> tuple[Sequence[int], Sequence[int]] | None:
    """Old and new grid of the table that an entry of the state belongs to; None for other entries."""
    if "position_embedding" in name:
      if "space" in name:
        return self.grid[1:], self.new_grid[1:]
      return self.grid[:1], self.new_grid[:1]
    if "relative_position_bias" in name:
      kind = "spatiotemporal" if "spatiotemporal" in name else "spatial"
      windows = getattr(self, f"{kind}_window"), getattr(self, f"new_{kind}_window")
      return displacements(windows[0]), displacements(windows[1])
    return None

  def _moved(self, name: tuple[str, ...], value: Any) -> Any:
    grids = self._grids(name)
    shape = getattr(value, "shape", ())
    # Scanned layers stack their tables along axis 0. Column statistics of an optimizer have no such rows.
    axis = 1 if "pairs" in name else 0
    rows = grids and math.prod(grids[0])
    if grids is None or "v_col" in name or not rows or math.prod(shape) == 1 or len(shape) <= axis:
      return value
    try:
      return interpolate_rows(np.asarray(value), *grids, axis=axis)
    except ValueError as error:
      raise ValueError(f"{'/'.join(name)}: {error}") from error
