"""Keeps freed host memory for the next step.

XLA's CPU client allocates a program's buffers in every call and frees them afterwards. glibc returns blocks of that
size to the kernel immediately, so each step of the tiny base causes 120,000 page faults for the same memory
(benchmarks/allocators.md). tcmalloc, if preloaded (scripts/allocator.sh), keeps them by default.
"""

import ctypes
import glob
import os

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
LARGEST = 2**31 - 1


def runs_on_cpu() -> bool:
  """Whether JAX will run on the CPU, from JAX_PLATFORMS or else the machine's devices. Does not initialize JAX."""
  chosen = os.environ.get("JAX_PLATFORMS")
  if chosen:
    return chosen == "cpu"
  return not any(glob.glob(f"/dev/{name}[0-9]*") for name in ("nvidia", "accel", "vfio/"))


def keep_freed_memory() -> bool:
  """Makes glibc's malloc keep freed memory for the life of the process. For runs on the CPU, before any thread starts.

  One arena: only the first can grow past 64 MiB without mapping every large block again, and a running thread keeps
  its arena. Returns False if the C library is not glibc.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return False
  settings = {M_ARENA_MAX: 1, M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: LARGEST}
  return all([mallopt(name, value) for name, value in settings.items()])
