"""Freed host memory is kept for the next step.

XLA's CPU client allocates a program's buffers in every call and frees them after it. glibc returns blocks of that size
to the kernel at once, so that each step of the tiny base pays 120,000 page faults for the same memory
(benchmarks/allocators.md). tcmalloc, where it is preloaded (scripts/allocator.sh), keeps them already.
"""

import ctypes
import glob
import os

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
LARGEST = 2**31 - 1


def runs_on_cpu() -> bool:
  """Whether JAX will run on the CPU, told without starting it: by JAX_PLATFORMS, else by the devices of the machine."""
  chosen = os.environ.get("JAX_PLATFORMS")
  if chosen:
    return chosen == "cpu"
  return not any(glob.glob(f"/dev/{name}[0-9]*") for name in ("nvidia", "accel", "vfio/"))


def keep_freed_memory() -> bool:
  """Tells glibc's malloc to keep what is freed, for the life of the process. For runs on the CPU, before any thread.

  One arena: only the first can grow past 64 MiB without mapping every large block again, and a thread that exists
  keeps the arena that it has.

  Returns:
    Whether the C library took it: False on one that is not glibc.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return False
  settings = {M_ARENA_MAX: 1, M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: LARGEST}
  return all([mallopt(name, value) for name, value in settings.items()])
