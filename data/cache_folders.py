"""Cache folders named in a configuration, for programs without a flag for them (T5X's eval.py and infer.py)."""

from collections.abc import Sequence
from typing import Any

import seqio


def cached_in(task: Any, *, folders: Sequence[str]) -> Any:
  """The task or mixture, to be looked for in these folders too.

  Args:
    task: of `data.tasks`.
    folders: as given to `--seqio_additional_cache_dirs`.
  """
  seqio.add_global_cache_dirs(list(folders))
  return task
