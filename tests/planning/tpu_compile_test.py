"""Parsing of the TPU compiler's reports; the compiler itself if libtpu is installed."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests import programs
from tests.generation import cascades
from walt_t5x import plan_sampling
from walt_t5x.planning import tpu_compile

ROOT = Path(__file__).resolve().parents[2]


def test_an_unknown_slice_is_named():
  for name in ("v9:2x2", "v5p"):
    with pytest.raises(ValueError, match=r"expected <chip>:<shape> with a chip of \['7x', 'v4'"):
      tpu_compile.topology_devices(name)


def test_required_memory_is_read_from_the_compilers_error():
  message = (
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 139.5G of 95.74G hbm. Exceeded hbm capacity by "
    "43.8G."
  )
  assert tpu_compile.memory_wanted(message) == (int(139.5 * 1024**3), int(95.74 * 1024**3))
  temporaries = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (24.20G) exceeds available HBM (15.75G). HLO module: jit__merge."
  )
  assert tpu_compile.memory_wanted(temporaries) == (int(24.2 * 1024**3), int(15.75 * 1024**3))
  assert tpu_compile.memory_wanted("RESOURCE_EXHAUSTED: vmem") is None


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_the_extra_is_named():
  result = programs.run("walt_t5x.plan", "--gin_file=gin/tiny/base.gin", "--topology=v5p:2x2x1")
  assert result.returncode != 0 and "requirements-tpu.lock" in result.stderr
  assert "Traceback" not in result.stderr


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra [tpu]")
def test_the_toy_step_compiles_for_a_slice():
  import gin
  from walt_t5x import engine
  from walt_t5x.config import gin_config
  from walt_t5x.planning.run_plan import plan_gin, topologies_gin

  sys.modules["__main__"].train = engine.train
  gin.clear_config()
  gin_config.parse([str(ROOT / "gin/tiny/base.gin")], [], [str(ROOT)], finalize=False)
  (report,) = topologies_gin(plan_gin(), ["v5p:2x2x1"]).values()
  assert report["fits"] and 0 < report["hbm_bytes_per_chip"] < 1024**3
  assert report["collective_bytes"]["all-reduce"] > 0 and report["estimated_step_seconds"] > 0


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra [tpu]")
def test_a_sampling_chain_compiles_for_a_slice_whose_chips_split_the_weights():
  wide = cascades.model(steps=2, width=64, mlp_dim=256, num_heads=4, num_layers=4, scan_layers=True)
  (config,) = cascades.config(Path("/nowhere"), stages=("base",), base=wide).stages
  name = "v5p:2x2x1"
  complete, split = (
    plan_sampling.plan_stage(config, text_length=8, batch_size=2, topologies={name: sharded})
    for sharded in (False, True)
  )
  assert complete.chip_weight_bytes[name] == complete.weight_bytes == split.weight_bytes
  assert split.chip_weight_bytes[name] < 0.3 * split.weight_bytes
  assert split.topologies[name].fits
  more = split.topologies[name].temporaries - complete.topologies[name].temporaries
  assert more < split.weight_bytes / 2
  assert "temporaries" in plan_sampling.table([split], batch_size=2)
