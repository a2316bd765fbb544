"""A corpus with broken files, small random encoders and the command line of `benchmarks.preprocess_kills`."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.beam_runners import ROOT, environment
from walt_t5x.files import storage
from walt_t5x.files.paths import AnyPath

# Kinds of damage, in turn. A file with flipped bytes may still decode: such a row is written.
DAMAGES = ("empty", "cut", "text", "flipped", "absent")
_VAE_FIELDS = {
  "latent_channels": 8,
  "base_channels": 4,
  "channel_multipliers": (1, 2, 4),
  "num_res_blocks": 1,
  "temporal_downsample": (True, True),
}


def make_corpus(folder: Path, rows: int, seed: int) -> dict[str, int]:
  """Writes media, every tenth file broken, and manifest.jsonl; returns the numbers of rendered, real and broken rows.

  Contains all installed real clips and photographs; the rest is rendered.
  """
  subprocess.run(
    [sys.executable, "-m", "data.samples", f"--output={folder}", "--require_real"],
    cwd=ROOT,
    env=environment(),
    check=True,
    capture_output=True,
  )
  lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
  draw = random.Random(seed)
  draw.shuffle(lines)
  lines.sort(key=lambda row: row["corpus"] == "rendered")
  lines = lines[:rows]
  if len(lines) < rows:
    raise ValueError(f"--rows: got {rows}, the corpus has {len(lines)}")
  draw.shuffle(lines)
  broken = 0
  for number, row in enumerate(lines):
    if number % 10 == 3:
      _break_file(folder, row, DAMAGES[broken % len(DAMAGES)], draw)
      broken += 1
  (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
  rendered = sum(row["corpus"] == "rendered" for row in lines)
  return {"rendered": rendered, "real": rows - rendered, "broken": broken}


def _break_file(folder: Path, row: dict[str, Any], kind: str, draw: random.Random) -> None:
  """Replaces the file of a row by a damaged copy."""
  source = folder / row["uri"]
  target = source.with_name(f"{kind}-{source.name}")
  content = bytearray(source.read_bytes())
  if kind == "flipped":
    start = draw.randrange(max(1, len(content) // 2))
    for i in range(start, min(len(content), start + 200)):
      content[i] ^= 0xFF
  if kind != "absent":
    changed = {"empty": b"", "cut": content[: len(content) // 2], "text": b"no media\n" * 40}
    target.write_bytes(changed.get(kind, bytes(content)))
  row["uri"] = str(target.relative_to(folder))


def make_encoders(folder: Path, manifest: Path, *, base_channels: int = 4) -> list[str]:
  """Writes a small VAE and a small T5 with random weights; returns the flags that name them."""
  fields = _VAE_FIELDS | {"base_channels": base_channels}
  import jax
  import jax.numpy as jnp
  import numpy as np
  import orbax.checkpoint as ocp

  from walt_t5x.vae.autoencoder import CausalVae

  lines = ["from __gin__ import dynamic_registration", "from walt_t5x.vae import autoencoder"]
  lines += [f"autoencoder.CausalVae.{name} = {value!r}" for name, value in fields.items()]
  gin, vae, text = folder / "vae.gin", folder / "vae", folder / "text"
  gin.write_text("\n".join(lines) + "\n")
  clip = jax.ShapeDtypeStruct((1, 5, 16, 16, 3), jnp.float32)
  shapes = jax.eval_shape(CausalVae(**fields).init, jax.random.key(0), clip)["params"]
  draw = np.random.default_rng(0)

  def weights(leaf: Any) -> np.ndarray:
    # Kernels preserve the scale of activations; biases and scales are near one.
    if len(leaf.shape) < 2:
      return (1 + 0.1 * draw.normal(size=leaf.shape)).astype(np.float32)
    values = draw.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
    return values.astype(np.float32)

  tree = {
    "target": jax.tree.map(weights, shapes),
    "state": {"step": np.int32(0), "param_states": {}},
  }
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
    writer.save(
      (vae / "checkpoint_0").resolve(), args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree))
    )
  command = ["-m", "walt_t5x.text.init_encoder", f"--captions={manifest}", f"--output={text}"]
  subprocess.run(
    [sys.executable, *command], cwd=ROOT, env=environment(), check=True, capture_output=True
  )
  return [f"--vae_gin_file={gin}", f"--vae_checkpoint={vae}", f"--text_encoder={text}"]


def command(corpus: AnyPath, output: storage.PathLike, flags: Sequence[str]) -> list[str]:
  """The job."""
  return [
    sys.executable,
    "-m",
    "beam_jobs.preprocess",
    f"--manifest={corpus / 'manifest.jsonl'}",
    f"--output={output}",
    "--task=kills",
    "--resolutions=32x32",
    "--num_frames=9",
    "--num_shards=12",
    "--allow_upscale",
    "--batch_size=8",
    "--image_batch_size=8",
    "--qa_samples=2",
    *flags,
  ]
