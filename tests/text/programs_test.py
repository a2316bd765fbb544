"""The two programs: deterministic fingerprints, error messages, and complete imports."""

import json
import re

import flax.traverse_util
import numpy as np
import pytest

from walt_t5x.text import import_encoder, init_encoder
from walt_t5x.text.encoder import TextEncoder
from walt_t5x.text.import_weights import infer_config
from walt_t5x.text.safetensors_files import SafetensorsSource

ROWS = [
  {"uri": "0.mp4", "captions": ["a red ball rolls left", "ball, red"]},
  {"uri": "1.mp4", "caption": "a blue box slides right"},
  {"uri": "2.png", "captions": [], "label": 3},
]


@pytest.fixture
def manifest(tmp_path):
  path = tmp_path / "manifest.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "\n")
  return path


def printed_fingerprint(text):
  return re.search(r"fingerprint +([0-9a-f]{64})", text)[1]


def test_init_is_deterministic_by_seed_and_says_that_weights_are_random(manifest, tmp_path, capsys):
  prints = {}
  for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
    arguments = ["--captions", manifest, "--output", tmp_path / name, "--seed", seed]
    assert init_encoder.main([str(a) for a in arguments]) == 0
    output = capsys.readouterr().out
    assert "RANDOM WEIGHTS" in output and "9 distinct words, 9 of them one piece" in output
    prints[name] = printed_fingerprint(output)
    assert TextEncoder.load(tmp_path / name).fingerprint == prints[name]
  assert prints["a"] == prints["b"] != prints["c"]


def test_init_does_not_replace_an_encoder_without_a_flag(manifest, tmp_path, capsys):
  arguments = ["--captions", str(manifest), "--output", str(tmp_path / "out")]
  init_encoder.main(arguments)
  with pytest.raises(SystemExit):
    init_encoder.main(arguments)
  assert "--overwrite" in capsys.readouterr().err
  assert init_encoder.main([*arguments, "--overwrite"]) == 0


def test_the_error_for_an_invalid_row_names_its_line(tmp_path):
  path = tmp_path / "manifest.jsonl"
  path.write_text('{"caption": "fine"}\n{"captions": [3]}\n')
  with pytest.raises(ValueError, match=r"manifest\.jsonl:2: got captions \[3\]"):
    list(init_encoder.read_captions(path))
  path.write_text("{oops\n")
  with pytest.raises(ValueError, match=r"manifest\.jsonl:1: not JSON"):
    list(init_encoder.read_captions(path))


def test_importing_a_folder_or_a_file_gives_the_same_encoder(manifest, tmp_path, capsys):
  first = tmp_path / "first"
  init_encoder.main(["--captions", str(manifest), "--output", str(first)])
  lone = tmp_path / "lone" / "t5.safetensors"
  lone.parent.mkdir()
  lone.write_bytes((first / "model.safetensors").read_bytes())
  expected = printed_fingerprint(capsys.readouterr().out)
  vocabulary = ["--vocabulary", str(first / "spiece.model")]
  for name, source in [("x", [str(first)]), ("y", [str(lone), *vocabulary])]:
    assert import_encoder.main(["--source", *source, "--output", str(tmp_path / name)]) == 0
    output = capsys.readouterr().out
    assert printed_fingerprint(output) == expected
    encoder = TextEncoder.load(tmp_path / name)
    count = sum(int(np.prod(p.shape)) for p in _leaves(encoder.params))
    assert f"parameters   {count:,}\n" in output
  assert infer_config(SafetensorsSource(lone)) == encoder.config


def test_a_t5x_checkpoint_and_safetensors_of_the_same_weights_are_the_same_encoder(
  manifest, tmp_path, capsys
):
  import tensorstore as ts

  first = tmp_path / "first"
  init_encoder.main(["--captions", str(manifest), "--output", str(first)])
  expected = printed_fingerprint(capsys.readouterr().out)
  encoder = TextEncoder.load(first)
  checkpoint = tmp_path / "checkpoint_7"

  def write(name, array):
    path = str(checkpoint / f"target.{name.replace('/', '.')}") + "/"
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": path}}
    spec["metadata"] = {
      "compressor": {"id": "gzip"},
      "chunks": [max(1, n // 2) for n in array.shape],
    }
    ts.open(spec, create=True, dtype=array.dtype.name, shape=array.shape).result()[...] = array

  for name, array in flax.traverse_util.flatten_dict(encoder.params, sep="/").items():
    write(name, np.asarray(array))
  # The decoder of an encoder-decoder is ignored.
  write("decoder/decoder_norm/scale", np.ones(64, np.float32))
  flags = ["--source", str(checkpoint), "--output", str(tmp_path / "out")]
  assert import_encoder.main([*flags, "--vocabulary", str(first / "spiece.model")]) == 0
  assert printed_fingerprint(capsys.readouterr().out) == expected
  table = checkpoint / "target.encoder.relpos_bias.rel_embedding"
  table.rename(tmp_path / "table")
  with pytest.raises(ValueError, match=r"lacks \['encoder/relpos_bias/rel_embedding'\]"):
    import_encoder.main([*flags, "--overwrite", "--vocabulary", str(first / "spiece.model")])
  (tmp_path / "table").rename(table)
  write("encoder/layers_0/extra/scale", np.zeros(3, np.float32))
  with pytest.raises(ValueError, match=r"does not use, e\.g\. encoder/layers_0/extra/scale"):
    import_encoder.main([*flags, "--overwrite", "--vocabulary", str(first / "spiece.model")])


def _leaves(tree):
  return [leaf for v in tree.values() for leaf in (_leaves(v) if isinstance(v, dict) else [v])]
