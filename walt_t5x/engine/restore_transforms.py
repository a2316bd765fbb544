"""Transformations of a checkpoint that another model restores, for both engines' `state_transformation_fns`.

A transformation is `f(state_dict, target_state_dict, *, is_resuming) -> state_dict` over nested dicts: the
checkpoint's state, and the shapes that this model expects. Gin binds them:

    engine.RestoreCheckpointConfig.state_transformation_fns = [@restore_transforms.FitArrays()]
    restore_transforms.FitArrays.fit = @some_module.interpolate
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from walt_t5x.files.mismatch import Mismatch

Name = tuple[str, ...]
Fit = Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class FitArrays:
  """Passes arrays whose shape differs from the expected one to `fit`, e.g. position tables of another resolution.

  A resumed run is not changed: its own checkpoints already fit.

  Args:
    fit: `(name, array, wanted_shape) -> array`, called for each array that does not fit. `name` is its full name in
      this model's state, such as `target/position/table` or `state/param_states/4/ema/position/table`: moments and
      averages of parameters are included. Return arrays with other names unchanged; the engine then rejects them
      like any array of a wrong shape.
  """

  fit: Fit

  def __call__(
    self,
    state_dict: Mapping[str, Any],
    target_state_dict: Mapping[str, Any],
    *,
    is_resuming: bool = False,
  ) -> dict[str, Any]:
    state_dict = require_arrays(state_dict, target_state_dict, is_resuming=is_resuming)
    if is_resuming:
      return state_dict
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(state_dict, keep_empty_nodes=True)
    target = traverse_util.flatten_dict(dict(target_state_dict), keep_empty_nodes=True)
    for name, array in flat.items():
      wanted = getattr(target.get(name), "shape", None)
      if wanted is not None and tuple(np.shape(array)) != tuple(wanted):
        flat[name] = self.fit("/".join(name), np.asarray(array), tuple(wanted))
    return traverse_util.unflatten_dict(flat)


def require_arrays(
  state_dict: Mapping[str, Any],
  target_state_dict: Mapping[str, Any],
  *,
  is_resuming: bool = False,
) -> dict[str, Any]:
  """Returns the state as it is. Comes before a transformation that computes with arrays, and raises without them.

  Raises:
    Mismatch: there are none: T5X passes names alone, and Orbax reads the arrays afterwards.
  """
  del target_state_dict
  leaves = traverse_util.flatten_dict(dict(state_dict)).values()
  if not is_resuming and not any(hasattr(leaf, "shape") for leaf in leaves):
    raise Mismatch(
      "T5X gives transformations of a checkpoint no arrays. Let the built-in engine write the start: add "
      "--gin.train_script.train.total_steps=0 to a command of walt_t5x.train with WALT_T5X_ENGINE=builtin; then "
      "repeat this command, which continues from it (docs/t5x.md)"
    )
  return dict(state_dict)


def average_as_parameters(
  state_dict: Mapping[str, Any],
  target_state_dict: Mapping[str, Any],
  *,
  is_resuming: bool = False,
) -> dict[str, Any]:
  """Starts from the average (`optimizers.parameter_ema`) alone: the new run's parameters and their average.

  Step, moments and counts are dropped, so `fallback_to_scratch=True` is required.
  """
  if is_resuming:
    return dict(state_dict)
  if not average_names(traverse_util.flatten_dict(dict(state_dict), keep_empty_nodes=True)):
    raise ValueError(
      "average_as_parameters: the checkpoint has no parameter average; remove the transformation, or set another "
      "checkpoint."
    )
  return weights_alone(state_dict, target_state_dict)


def weights_alone(
  state_dict: Mapping[str, Any],
  target_state_dict: Mapping[str, Any],
  *,
  is_resuming: bool = False,
  new_parameters: Sequence[str] = (),
) -> dict[str, Any]:
  """Starts a new run from a trained model: from the average of its parameters, or from these where it has none.

  The new run's average starts from the same values. Step, moments and counts are dropped, so
  `fallback_to_scratch=True` is required.

  Args:
    new_parameters: regular expressions, searched in the names of parameters that the trained model may lack; they then
      start as initialized.

  Raises:
    Mismatch: the checkpoint is of another network; names arrays and shapes.
  """
  state_dict = require_arrays(state_dict, target_state_dict, is_resuming=is_resuming)
  if is_resuming:
    return state_dict
  flat = traverse_util.flatten_dict(state_dict, keep_empty_nodes=True)
  target = traverse_util.flatten_dict(dict(target_state_dict), keep_empty_nodes=True)
  _check_network(flat, target, new_parameters=new_parameters)
  averages = average_names(flat)
  started = {name: value for name, value in flat.items() if name[0] == "target"}
  for name, source in averages.items():
    started[("target", *name)] = flat[source]
  for name, wanted in average_names(target).items():
    if ("target", *name) in started:
      started[wanted] = np.asarray(started[("target", *name)], np.float32)
  return traverse_util.unflatten_dict(started)


def student_and_teacher(
  state_dict: Mapping[str, Any],
  target_state_dict: Mapping[str, Any],
  *,
  is_resuming: bool = False,
) -> dict[str, Any]:
  """Starts a distillation: the weights of `weights_alone` for the student and for its collection `teacher`.

  Raises:
    Mismatch: the checkpoint is of another network; names arrays and shapes.
  """
  started = weights_alone(
    state_dict, target_state_dict, is_resuming=is_resuming, new_parameters=("^guidance_mlp/",)
  )
  if is_resuming:
    return started
  flat: dict[Name, Any] = traverse_util.flatten_dict(started)
  for name in traverse_util.flatten_dict(dict(target_state_dict)):
    if name[:2] == ("flax_mutables", "teacher"):
      flat[name] = np.asarray(flat[("target", *name[2:])])
  return traverse_util.unflatten_dict(flat)


def _check_network(
  found: Mapping[Name, Any], wanted: Mapping[Name, Any], *, new_parameters: Sequence[str]
) -> None:
  """Raises Mismatch unless both states have parameters of the same names and shapes, except for new ones."""
  shapes = [
    {"/".join(name[1:]): np.shape(array) for name, array in state.items() if name[0] == "target"}
    for state in (found, wanted)
  ]
  names = sorted(shapes[0].keys() | shapes[1].keys())
  new = {
    name
    for name in shapes[1].keys() - shapes[0].keys()
    if any(re.search(pattern, name) for pattern in new_parameters)
  }
  differing = [
    name for name in names if name not in new and shapes[0].get(name) != shapes[1].get(name)
  ]
  if differing:
    shown = "; ".join(
      f"{name}: {shapes[0].get(name)}, {shapes[1].get(name)}" for name in differing[:3]
    )
    raise Mismatch(
      f"the run to start from has another network: {len(differing)} of {len(names)} arrays differ (its shape, and the "
      f"shape that this model expects: {shown}); train with the gin file of that run's model"
    )


def average_names(names: Mapping[Name, Any]) -> dict[Name, Name]:
  """Parameter name -> name of its average, for every `optax.EmaState` among the optimizer states."""
  found: dict[Name, Name] = {}
  for name in names:
    for i, part in enumerate(name):
      # An EmaState is saved as {'count', 'ema'}; a parameter that happens to be named 'ema' has no such sibling.
      if name[0] == "state" and part == "ema" and (*name[:i], "count") in names:
        found[name[i + 1 :]] = name
        break
  return found
