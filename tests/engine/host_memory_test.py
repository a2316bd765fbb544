"""Freed memory is reused without page faults, in any thread of a program."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys, threading
from walt_t5x.engine.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
  assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
SIZE = 100 << 20
def step():
  block = libc.malloc(SIZE)
  libc.memset(block, 1, SIZE)
  libc.free(block)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
  thread = threading.Thread(target=step)
  thread.start()
  thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_a_second_step_reuses_the_pages_of_the_first():
  plain = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "GLIBC_TUNABLES")}

  def faults(how):
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, env=plain, capture_output=True, check=True).stdout)

  pages = (100 << 20) // os.sysconf("SC_PAGE_SIZE")
  assert faults("keep") < pages // 100
  assert faults("as it is") > 2 * pages
