"""Speed and memory of the causal VAE. Each part prints its table and writes its figures to benchmarks/vae.json.

python benchmarks/vae.py speed      # encode and decode, native 3D / shifted 2D / the chosen convolution, three sizes
python benchmarks/vae.py length     # peak memory of a streamed decode of 17, 65 and 257 frames
python benchmarks/vae.py large      # 5 x 64 x 112 x 8 latents to 17 x 512 x 896 pixels with a decoder of width 32
python benchmarks/vae.py compiled   # the same at full width, from the compiler's memory analysis, without execution
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
SIZES = (32, 64, 128)
LENGTHS = (17, 65, 257)
MIB = 2**20


def make_vae(base: int, blocks: int, dtype: str = "float32"):
  """The published tokenizer at another width or depth."""
  import jax.numpy as jnp

  from walt_t5x.vae.autoencoder import CausalVae

  return CausalVae(base_channels=base, num_res_blocks=blocks, dtype=jnp.dtype(dtype))


def param_shapes(vae):
  """Shapes of the VAE's parameters."""
  import jax
  import jax.numpy as jnp

  video = jax.ShapeDtypeStruct((1, 1, 16, 16, 3), jnp.float32)
  return jax.eval_shape(vae.init, jax.random.key(0), video)["params"]


def make_params(vae):
  """Random parameters with unit gain; speed does not depend on their values."""
  import jax
  import numpy as np

  rng = np.random.default_rng(0)

  def draw(leaf):
    return (rng.normal(size=leaf.shape) / max(1, np.prod(leaf.shape[:-1])) ** 0.5).astype(
      np.float32
    )

  return jax.device_put(jax.tree.map(draw, param_shapes(vae)))


def buffers(compiled) -> float:
  """Temporary and output memory of the compiled function in MiB."""
  memory = compiled.memory_analysis()
  return (memory.temp_size_in_bytes + memory.output_size_in_bytes) / MIB


def peak_mib() -> float:
  """Peak resident memory of this process."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def speed(repeats: int) -> list[dict]:
  """Frames per second of each implementation, in turns."""
  import jax
  import jax.numpy as jnp

  from walt_t5x.vae import convolution

  def native(x, kernel, *, strides=(1, 1, 1), padding=((0, 0),) * 3):
    return jax.lax.conv_general_dilated(
      x, kernel, strides, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )

  implementations = {
    "native 3D": native,
    "shifted 2D": convolution.convolve_by_frames,
    "chosen": convolution.convolve,
  }
  vae = make_vae(32, 1)
  params = make_params(vae)
  rows = []
  for side in SIZES:
    inputs = {
      "encode": jnp.ones((1, 17, side, side, 3)),
      "decode": jnp.ones((1, 5, side // 8, side // 8, 8)),
    }
    compiled, seconds = {}, {}
    for name, function in implementations.items():
      convolution.convolve = function
      for what, x in inputs.items():
        run = jax.jit(lambda p, x, what=what: vae.apply({"params": p}, x, method=what))
        compiled[name, what] = run.lower(params, x).compile()
        seconds[name, what] = []
    convolution.convolve = implementations["chosen"]
    for turn in range(repeats + 1):
      for (name, what), run in compiled.items():
        started = time.perf_counter()
        jax.block_until_ready(run(params, inputs[what]))
        if turn:  # The first run warms up.
          seconds[name, what].append(time.perf_counter() - started)
    for name in implementations:
      row = {"size": f"17x{side}x{side}", "convolution": name}
      for what in inputs:
        row[f"{what}_fps"] = 17 / statistics.median(seconds[name, what])
        row[f"{what}_mib"] = buffers(compiled[name, what])
      rows.append(row)
      print(row, file=sys.stderr, flush=True)
  return rows


def stream_decode(
  frames: int, height: int, width: int, *, base: int, blocks: int, group: int
) -> dict:
  """Decodes latents of a clip group by group, discarding the output; returns seconds and peak memory."""
  import numpy as np

  from walt_t5x.vae.streaming import VaeStream

  vae = make_vae(base, blocks)
  stream = VaeStream(vae, make_params(vae), group=group)
  latents = ((frames - 1) // 4 + 1, height // 8, width // 8, 8)

  def frames_of_latents():
    rng = np.random.default_rng(0)
    for _ in range(latents[0]):
      yield rng.normal(size=(1, *latents[1:])).astype(np.float32)

  before, started, seen = peak_mib(), time.perf_counter(), 0
  for video in stream.decode(frames_of_latents()):
    pixels = np.asarray(video)
    assert np.isfinite(pixels).all()
    seen += pixels.shape[1]
  assert seen == frames
  return {
    "frames": frames,
    "size": f"{height}x{width}",
    "latents": "x".join(map(str, latents)),
    "seconds": time.perf_counter() - started,
    "peak_mib": peak_mib(),
    "before_mib": before,
  }


def one_pass_decode_mib(frames: int, height: int, width: int, *, base: int, blocks: int) -> float:
  """Buffers in MiB of a decode in one pass, from the compiler."""
  import jax
  import jax.numpy as jnp

  vae = make_vae(base, blocks)
  z = jax.ShapeDtypeStruct((1, (frames - 1) // 4 + 1, height // 8, width // 8, 8), jnp.float32)
  run = jax.jit(lambda p, z: vae.apply({"params": p}, z, method="decode"))
  return buffers(run.lower(param_shapes(vae), z).compile())


def compiled_decode(dtype: str, topology: str) -> list[dict]:
  """Memory of a full-width 17 x 512 x 896 decode: in one pass, and of the two programs of a stream.

  Args:
    dtype: data type of activations.
    topology: a TPU slice such as "v5p:2x2x1", to compile for one of its chips (needs libtpu, no TPU); "" for the CPU.
  """
  import jax
  import jax.numpy as jnp

  from walt_t5x.vae.streaming import run_group

  vae = make_vae(128, 4, dtype)
  params = param_shapes(vae)

  where = None
  if topology:
    from jax.experimental import topologies

    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    where = jax.sharding.SingleDeviceSharding(chips[0])

  def latents(t: int):
    return jax.ShapeDtypeStruct((1, t, 64, 112, 8), jnp.float32)

  def first(p, z):
    return run_group(vae, p, z, None, method="decode")

  def following(p, z, context):
    return run_group(vae, p, z, context, method="decode")

  _, context = jax.eval_shape(first, params, latents(1))
  programs = {
    "one pass, 17 frames": (lambda p, z: vae.apply({"params": p}, z, method="decode"), latents(5)),
    "stream, first frame": (first, latents(1)),
    "stream, 4 frames": (following, latents(1), context),
  }
  rows = []
  for name, (function, *arguments) in programs.items():
    started = time.perf_counter()
    placed = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
      (params, *arguments),
    )
    compiled = jax.jit(function).lower(*placed).compile()
    memory = compiled.memory_analysis()
    rows.append(
      {
        "program": name,
        "compiled for": topology or "CPU",
        "dtype": dtype,
        "arguments_mib": memory.argument_size_in_bytes / MIB,
        "temporary_mib": memory.temp_size_in_bytes / MIB,
        "output_mib": memory.output_size_in_bytes / MIB,
        "compile_seconds": time.perf_counter() - started,
      }
    )
    print(rows[-1], file=sys.stderr, flush=True)
  return rows


def in_own_process(*arguments: str) -> dict:
  """The JSON line of one part, run in a separate process so that peaks do not mix."""
  done = subprocess.run(
    [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True
  )
  return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict]) -> str:
  """Rows as Markdown."""
  names = list(rows[0])

  def cell(value) -> str:
    return (
      f"{value:.3g}"
      if isinstance(value, float) and value < 100
      else (f"{value:.0f}" if isinstance(value, float) else str(value))
    )

  lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
  lines += ["| " + " | ".join(cell(row[name]) for name in names) + " |" for row in rows]
  return "\n".join(lines)


def keep(part: str, rows: list[dict]) -> None:
  """Adds the rows to vae.json and prints them."""
  path = HERE / "vae.json"
  report = json.loads(path.read_text()) if path.exists() else {}
  machine = f"{os.cpu_count()} cores, {platform.machine()}, jax on CPU"
  report[part] = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "rows": rows}
  path.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
  print(table(rows))


def main() -> None:
  """Runs one part."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("part", choices=("speed", "length", "large", "compiled", "_stream"))
  parser.add_argument("--repeats", type=int, default=3, help="timed runs per case (speed)")
  parser.add_argument("--dtype", default="bfloat16", help="activations (compiled)")
  parser.add_argument("--topology", default="", help="TPU slice, such as v5p:2x2x1 (compiled)")
  parser.add_argument(
    "--one_pass", action="store_true", help="also one pass, not only the stream (length)"
  )
  parser.add_argument("--frames", type=int, default=17, help=argparse.SUPPRESS)
  parser.add_argument("--size", default="512x896", help=argparse.SUPPRESS)
  parser.add_argument("--base", type=int, default=32, help=argparse.SUPPRESS)
  parser.add_argument("--blocks", type=int, default=4, help=argparse.SUPPRESS)
  options = parser.parse_args()
  height, width = (int(n) for n in options.size.split("x"))

  if options.part == "_stream":
    shape = {"base": options.base, "blocks": options.blocks, "group": 1}
    print(json.dumps(stream_decode(options.frames, height, width, **shape)))
  elif options.part == "speed":
    keep("speed", speed(options.repeats))
  elif options.part == "length":
    settings = ("--size=64x64", "--base=16", "--blocks=1")
    rows = []
    for frames in LENGTHS:
      row = in_own_process("_stream", f"--frames={frames}", *settings)
      if options.one_pass:
        row["one_pass_buffers_mib"] = one_pass_decode_mib(frames, 64, 64, base=16, blocks=1)
      rows.append(row)
      print(row, file=sys.stderr, flush=True)
    keep("length", rows)
    peaks = [row["peak_mib"] for row in rows]
    print(f"\nlargest / smallest peak: {max(peaks) / min(peaks):.3f} (bar 1.1)")
  elif options.part == "large":
    row = in_own_process("_stream", "--frames=17", "--size=512x896", "--base=32", "--blocks=4")
    keep("large", [row])
    print(f"\npeak {row['peak_mib'] / 1024:.2f} GiB (bar 8)")
  else:
    name = f"compiled for {options.topology}" if options.topology else "compiled"
    keep(name, compiled_decode(options.dtype, options.topology))


if __name__ == "__main__":
  main()
