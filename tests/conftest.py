"""Test setup: CPU with eight fake devices, annotations checked at calls, one compilation cache.

Tests must not affect programs: the annotation checks are compiled into modules, so tests write no bytecode; the
caches are in `.venv`; and the settings below apply only to the test processes and the programs that they start.
"""

# ruff: noqa: E402 - the imports below read the environment.
import ast
import ctypes
import functools
import gc
import os
import resource
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
# Tracing makes many objects that are freed by reference counts; a cycle search every 700 took a tenth of the time.
gc.set_threshold(50_000, 20, 50)
LONGEST = ("end_to_end_test.py", "your_data_test.py", "rehearse_test.py", "stage_steps_test.py")
MOST_MEMORY = 2.7 * 2**30  # of a worker; about a third is libraries
CACHE = Path(__file__).resolve().parents[1] / ".venv" / "cache" / "xla"
# Keys and files of the cache take a twelfth of a worker's time, and in a first run only programs that tests start find
# something in it. Set JAX_COMPILATION_CACHE_DIR to repeat tests faster.
WORKERS_CACHE = "JAX_COMPILATION_CACHE_DIR" in os.environ
os.environ |= {
  "PYTHONDONTWRITEBYTECODE": "1",
  "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
  "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
  # Shared by the programs that tests start and, if it is set, by the workers.
  "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(CACHE)),
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  # Most programs run a few times on tiny shapes, so compilation dominates. `numerics` marks the others.
  "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
  # No source lines in compiled programs: a twentieth of the time of tracing and compiling.
  "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
  "JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS": "0",
  "JAX_ENABLE_COMPILATION_CACHE": str(int(WORKERS_CACHE)),
}
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
  # The older emitters of fusions compile in half of the time, a program in one part in four fifths: the workers use
  # all cores.
  flags = "--xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false"
  flags += " --xla_cpu_parallel_codegen_split_count=1"
  # Otherwise XLA links and optimizes its functions of elementary mathematics into each program that uses one.
  flags += " --xla_cpu_enable_platform_dependent_math=false"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()

import pytest
from jaxtyping import _import_hook, install_import_hook

from tests import programs, workers


class _OuterFunctions(_import_hook.JaxtypingTransformer):
  """Checks annotations of modules' functions and methods. Those of nested functions would be compiled per call."""

  def visit_FunctionDef(self, node):
    inside = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
    return node if inside else super().visit_FunctionDef(node)


_import_hook.JaxtypingTransformer = _OuterFunctions
install_import_hook(
  ["walt_t5x.vae", "walt_t5x.denoiser", "walt_t5x.diffusion", "walt_t5x.text", "walt_t5x.metrics"],
  "beartype.beartype",
)


def _release():
  """The function of the allocator that returns freed memory to the system."""
  library = ctypes.CDLL(None)
  if hasattr(library, "MallocExtension_ReleaseFreeMemory"):  # tcmalloc
    return library.MallocExtension_ReleaseFreeMemory
  return functools.partial(library.malloc_trim, 0)


RELEASE = _release()
LEFT: dict[str, int] = {}
CONTEXTS: list = []


@functools.cache
def _share_contexts():
  """JAX makes an MLIR context with all dialects for each program: a twentieth of the time. Here one serves a module."""
  from jax._src.interpreters import mlir

  make = mlir.make_ir_context

  def shared():
    if not CONTEXTS:
      CONTEXTS.append(make())
    return CONTEXTS[0]

  mlir.make_ir_context = shared


def _drop_compiled_programs():
  if "jax" in sys.modules:
    sys.modules["jax"].clear_caches()
  gc.unfreeze()
  gc.collect()
  gc.freeze()
  # Memory that the next test uses again costs a page fault per 4 KiB, so the allocator keeps a small amount.
  if _resident() > MOST_MEMORY:
    RELEASE()


@pytest.fixture(scope="module", autouse=True)
def left_objects():
  """Programs are dropped for their memory alone: to drop those of each module takes a tenth of the time."""
  if "jax" in sys.modules:
    _share_contexts()
  yield
  CONTEXTS.clear()
  # What is left belongs to libraries and compiled programs; collections skip it until these are dropped.
  gc.freeze()


@pytest.fixture(autouse=True)
def memory():
  """Drops programs within a module that compiles many, after the test that exceeds the limit."""
  yield
  # Memory that stays resident after a drop does not trigger another one.
  if _resident() > max(MOST_MEMORY, LEFT.get("after_drop", 0) + 2**28):
    _drop_compiled_programs()
    LEFT["after_drop"] = _resident()


def _resident():
  return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.fixture(scope="module", autouse=True)
def compiler_effort(request):
  """`pytestmark = pytest.mark.numerics`: a module that compares numbers is compiled like a program."""
  if request.node.get_closest_marker("numerics") is None:
    yield
    return
  import jax

  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def random_numbers():
  """A run with USE_HARDWARE_RNG sets the generator of its process; the next test gets JAX's default."""
  _use_threefry()
  yield
  _use_threefry()


def _use_threefry():
  if "jax" in sys.modules:
    sys.modules["jax"].config.update("jax_default_prng_impl", "threefry2x32")


def pytest_configure(config):
  cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
  config.suite = {"started": time.monotonic(), "peaks": [], "warm": any(cache.glob("*"))}
  if hasattr(config, "workerinput"):
    programs.share(config.workerinput["programs"])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config, specs):
  if Path.cwd() == CACHE.parents[2]:
    command = workers.command(config.invocation_params.args)
    for spec in specs:
      spec.python = command


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
  node.workerinput["programs"] = programs.serve()


def pytest_sessionfinish(session):
  if hasattr(session.config, "workeroutput"):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started = sys.modules.get("tests.programs")
    largest = max(children / 2**20, started.peak_memory() if started else 0.0)
    session.config.workeroutput["peaks"] = (peak / 2**20, largest)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
  node.config.suite["peaks"].append(node.workeroutput["peaks"])


def pytest_collection_modifyitems(items):
  # The longest first: at the end one would occupy one worker while the others are idle. Then modules that import the
  # same libraries for seconds: a worker runs neighbors, so that the others do not import them.
  items.sort(key=lambda item: (*(item.path.name != name for name in LONGEST), _imports(item.path)))


@functools.cache
def _imports(path):
  """0 for a module of tests that starts programs, 1 for one that uses PyTorch, 2 for others."""
  text = path.read_text(encoding="utf-8")
  marks = (("import programs",), ("torch", "diffusers", "transformers"))
  return next((i for i, names in enumerate(marks) if any(n in text for n in names)), len(marks))


def pytest_terminal_summary(terminalreporter, config):
  suite = config.suite
  peaks = [own for own, _ in suite["peaks"]]
  terminalreporter.write_line(
    f"{time.monotonic() - suite['started']:.0f} s with a {'warm' if suite['warm'] else 'cold'} compilation cache; "
    f"peak memory of the workers {' + '.join(f'{p:.1f}' for p in peaks)} = {sum(peaks):.1f} GiB, "
    f"largest program that they started {max((c for _, c in suite['peaks']), default=0):.1f} GiB"
  )
