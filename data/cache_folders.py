"""Cache folders named in a configuration, for programs without a flag for them (T5X's eval.py and infer.py)."""

from collections.abc import Sequence
from typing import Any

import seqio


def cached_in(task: Any, *, folders: Sequence[str]) -> Any:
  """Returns the task or mixture, after adding folders to SeqIO's cache directories.

  Args:
    task: task or mixture of `data.tasks`.
    folders: same as for `--seqio_additional_cache_dirs`.
  """
  seqio.add_global_cache_dirs(list(folders))
  return task
