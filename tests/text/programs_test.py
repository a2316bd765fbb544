"""The two programs: quick help, plain words, the same fingerprint twice, and a whole import."""

import json
import re
import subprocess
import sys
import time

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


@pytest.mark.parametrize("program", ["init_encoder", "import_encoder"])
def test_help_answers_within_two_seconds(program):
  start = time.monotonic()
  command = [sys.executable, "-m", f"walt_t5x.text.{program}", "--help"]
  output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
  assert time.monotonic() - start < 2
  assert "--output" in output


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


def test_init_refuses_to_replace_an_encoder(manifest, tmp_path, capsys):
  arguments = ["--captions", str(manifest), "--output", str(tmp_path / "out")]
  init_encoder.main(arguments)
  with pytest.raises(SystemExit):
    init_encoder.main(arguments)
  assert "--overwrite" in capsys.readouterr().err
  assert init_encoder.main([*arguments, "--overwrite"]) == 0


def test_a_bad_row_is_named(tmp_path):
  path = tmp_path / "manifest.jsonl"
  path.write_text('{"caption": "fine"}\n{"captions": [3]}\n')
  with pytest.raises(ValueError, match=r"manifest\.jsonl:2: got captions \[3\]"):
    list(init_encoder.read_captions(path))
  path.write_text("{oops\n")
  with pytest.raises(ValueError, match=r"manifest\.jsonl:1: not JSON"):
    list(init_encoder.read_captions(path))


def test_import_of_a_folder_and_of_a_lone_file_give_the_same_encoder(manifest, tmp_path, capsys):
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


def _leaves(tree):
  return [leaf for v in tree.values() for leaf in (_leaves(v) if isinstance(v, dict) else [v])]
