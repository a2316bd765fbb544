"""Freed host memory is kept for the next step.

XLA's CPU client allocates a program's buffers in every call and frees them after it. glibc returns blocks of that size
to the kernel at once, so that each step of the tiny base pays 120,000 page faults for the same memory
(benchmarks/allocators.md). tcmalloc, where it is preloaded (scripts/allocator.sh), keeps them already.
"""

import ctypes

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
  """Tells glibc's malloc to keep what is freed, for the life of the process. For runs on the CPU.

  One arena: only the first can grow past 64 MiB without mapping every large block anew.

  Returns:
    Whether the C library took it: False on one that is not glibc.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return False
  settings = {M_ARENA_MAX: 1, M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: LARGEST}
  return all([mallopt(name, value) for name, value in settings.items()])
