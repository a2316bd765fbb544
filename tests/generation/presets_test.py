"""Presets: weights as trained or rounded to bfloat16 and nothing else, the same bytes each time; damage is named."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from data.provenance import FILE_NAME, read_provenance
from tests.generation import cascades, random_cascade
from walt_t5x.denoiser import adapters
from walt_t5x.engine.checkpoints import load_params, read_arrays, state_metadata
from walt_t5x.files import storage
from walt_t5x.generation import presets, trained_runs
from walt_t5x.generation.cascade import Batch
from walt_t5x.generation.loading import (
  load_cascade,
  load_text_encoder,
  load_tokenizer,
  read_infos,
)
from walt_t5x.generation.prepared_requests import SamplingSettings, prepare
from walt_t5x.generation.preset_export import export
from walt_t5x.generation.requests import make_requests
from walt_t5x.text.encoder import TextEncoder, save_encoder

MOST_BYTES = 25_000_000
PROMPT = "a red square moves right"
QUICK = cascades.model(steps=1, guidance=None)


def _rounded(array):
  """To the nearest bfloat16, ties to even, by the bits of float32."""
  bits = np.asarray(array, np.float32).view(np.uint32)
  bits = bits + 0x7FFF + ((bits >> 16) & 1)
  return (bits & 0xFFFF0000).view(np.float32)


def _export(config, output, **settings):
  settings = {"license_name": "CC0-1.0", "trained_by": "nothing"} | settings
  return export(config, output=output, name="random", description="Noise.", **settings)


def _in_preset(preset):
  """The cascade of the preset."""
  return trained_runs.cascade_of(preset.runs).config


def _rounded_cascade(config, folder):
  """Checkpoints of the rounded weights in the engines' format, and a text encoder of the rounded weights in float32."""
  made = cascades.config(folder, base=QUICK)
  vae = jax.tree.map(_rounded, load_params(config.vae_checkpoint, ema=True))
  random_cascade._save(made.vae_checkpoint, vae, ema=True)
  encoder = TextEncoder.load(config.text_encoder)
  flat = traverse_util.flatten_dict(encoder.params, sep="/")
  weights = {name: _rounded(array) for name, array in flat.items()}
  save_encoder(
    made.text_encoder, config=encoder.config, weights=weights, vocabulary=encoder.vocabulary
  )
  for stage, rounded in zip(config.stages, made.stages):
    params = jax.tree.map(_rounded, load_params(stage.checkpoint, ema=stage.ema))
    random_cascade._save(rounded.checkpoint, params, ema=rounded.ema)
  return made


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A cascade with random weights, whose base stage has another average."""
  made = cascades.written(tmp_path_factory.mktemp("trained"), base=QUICK)
  base = made.stages[0].checkpoint
  params = load_params(base)
  shutil.rmtree(f"{base}/checkpoint_0")
  average = jax.tree.map(lambda p: p + 0.01, params)
  random_cascade._save(base, params, ema=True, average=average)
  return made


@pytest.fixture(scope="module")
def preset(made, tmp_path_factory):
  return _export(made, tmp_path_factory.mktemp("presets") / "random")


@pytest.fixture(scope="module")
def infos(made):
  return read_infos(made)


@pytest.fixture(scope="module")
def clip(made, infos):
  """Samples with the weights of a cascade of this shape: its latents, and the fingerprint of the weights."""
  cascade = load_cascade(made, infos, batch_size=1)
  batch = Batch(indices=[0], prompts=[PROMPT], media=[None], seed=3)

  def sampled(infos):
    # The compiled programs are the same.
    cascade.infos = infos
    cascade._loaded.clear()
    ((sample,),) = cascade.run([batch], stages=1)
    return sample.latents["base"], cascade.fingerprints["base"]

  return sampled


@pytest.fixture
def copy(preset, tmp_path):
  """The preset in another folder."""
  shutil.copytree(preset.folder, tmp_path / "moved")
  return tmp_path / "moved"


def _same_weights(config, expected):
  """Every part has the expected weights, bit for bit."""
  pairs = [(config.vae_checkpoint, expected.vae_checkpoint, True)]
  pairs += [(a.checkpoint, b.checkpoint, b.ema) for a, b in zip(config.stages, expected.stages)]
  for ours, theirs, ema in pairs:
    got, wanted = (load_params(path, ema=ema) for path in (ours, theirs))
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
      assert a.dtype == b.dtype == np.float32
      np.testing.assert_array_equal(a, b)
  texts = [TextEncoder.load(folder) for folder in (config.text_encoder, expected.text_encoder)]
  assert texts[0].fingerprint == texts[1].fingerprint


def test_in_float32_weights_and_samples_are_those_of_the_runs(made, infos, clip, tmp_path):
  exact = _export(made, tmp_path / "exact", dtype="float32")
  config = _in_preset(exact)
  _same_weights(config, made)
  exported = read_infos(config)
  for ours, theirs in zip(exported, infos, strict=True):
    found, trained = ours.provenance, theirs.provenance
    assert found.latents == trained.latents
    for part in ("vae", "text_encoder"):
      assert getattr(found, part)["fingerprint"] == getattr(trained, part)["fingerprint"]
  np.testing.assert_equal(clip(exported), clip(infos))
  for part in exact.record["parts"].values():
    assert part["fingerprint"] == part["trained_fingerprint"]


def test_unknown_dtypes_and_licenses_are_named_and_leave_nothing(made, tmp_path):
  with pytest.raises(ValueError, match=r"got dtype='float16', expected one of \('bfloat16', 'fl"):
    _export(made, tmp_path / "new", dtype="float16")
  for name in ("", "my own", "cc0\n"):
    with pytest.raises(ValueError, match=r"license '.*': expected an SPDX identifier, such as CC0"):
      _export(made, tmp_path / "new", license_name=name)
  assert not (tmp_path / "new").exists()


def test_weights_and_samples_are_those_of_a_cascade_of_rounded_weights(
  made, infos, preset, clip, tmp_path
):
  rounded = _rounded_cascade(made, tmp_path)
  config = _in_preset(preset)
  _same_weights(config, rounded)
  # The provenance of the rounded cascade names the same encoders; nothing else of it was changed.
  for stage, ours in zip(rounded.stages, config.stages):
    shutil.copy(f"{storage.run_folder(ours.checkpoint)}/{FILE_NAME}", stage.checkpoint)
  trained = read_provenance(made.stages[0].checkpoint)
  mine = read_provenance(storage.run_folder(config.stages[0].checkpoint))
  assert mine.latents == trained.latents and mine.vae != trained.vae
  np.testing.assert_array_equal(mine.null_embedding, trained.null_embedding)
  fingerprint = TextEncoder.load(config.text_encoder).fingerprint
  exported = read_infos(config)
  assert exported[0].provenance.text_encoder["fingerprint"] == fingerprint
  ours = clip(exported)
  np.testing.assert_equal(ours, clip(read_infos(rounded)))
  assert not np.array_equal(ours[0], clip(infos)[0])


def test_the_same_cascade_gives_the_same_bytes(made, preset, tmp_path):
  again = _export(made, tmp_path / "again")
  files = _files(again.folder)
  assert files == _files(preset.folder) and len(files) == 13
  # No path of the machine that trained it.
  trained_in = str(Path(made.vae_checkpoint).parent).encode()
  assert [name for name, content in files.items() if trained_in in content] == []


def test_its_parts_are_runs_wherever_the_folder_is(copy, tmp_path, monkeypatch):
  # Another tokenizer with the name of the preset's is in the working folder.
  (tmp_path / "vae").mkdir()
  monkeypatch.chdir(tmp_path)
  runs = [str(copy / part) for part in ("sr1", "base")]
  config = trained_runs.cascade_of(runs).config
  assert (config.vae_checkpoint, config.text_encoder) == (str(copy / "vae"), str(copy / "text"))
  infos = read_infos(config)
  load_tokenizer(config, infos)
  load_text_encoder(config, infos)


def test_adapters_are_merged(made, tmp_path):
  base = dataclasses.replace(
    made.stages[0],
    model=cascades.model(steps=1, guidance=None, adapter_rank=2),
    checkpoint=str(tmp_path / "adapted"),
  )
  params = random_cascade.random_params(base, text_length=made.text_length, seed=1, spread=0.05)
  random_cascade._save(base.checkpoint, params, ema=True)
  shutil.copy(f"{made.stages[0].checkpoint}/{FILE_NAME}", base.checkpoint)
  config = _in_preset(
    _export(dataclasses.replace(made, stages=[base]), tmp_path / "preset"),
  )
  assert config.stages[0].module.adapter_rank == 0
  merged = load_params(config.stages[0].checkpoint)
  expected = jax.tree.map(_rounded, adapters.merged(params))
  jax.tree.map(np.testing.assert_array_equal, merged, expected)
  # Its network is that of a cascade without adapters, and is checked against the weights.
  load_cascade(config, read_infos(config), batch_size=1)


def test_a_changed_byte_in_any_file_is_named(preset, copy):
  for name, intact in _files(copy).items():
    for at in (0, len(intact) // 2, len(intact) - 1):
      damaged = bytearray(intact)
      damaged[at] ^= 1
      (copy / name).write_bytes(damaged)
      with pytest.raises(ValueError, match=rf"preset moved: {name} (is damaged|was changed)"):
        presets.find(str(copy))
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=str(name)):
      presets.find(str(copy))
    (copy / name).write_bytes(intact)
  assert presets.find(str(copy)).identity == preset.identity


def test_a_moved_preset_is_the_same_command(preset, copy):
  settings = SamplingSettings(batch_size=1)

  def identity(preset):
    config = _in_preset(preset)
    return prepare(make_requests([PROMPT]), config, settings).identity(read_infos(config), "gin")

  assert identity(presets.find(str(copy))) == identity(preset)


def test_unknown_presets_name_those_that_exist(preset, copy, monkeypatch, tmp_path):
  monkeypatch.setattr(presets, "SHIPPED", tmp_path)
  assert presets.find("moved").identity == preset.identity
  with pytest.raises(FileNotFoundError, match=r"--preset=other: .*\(moved\) or a folder"):
    presets.find("other")


def test_parts_of_the_packages_presets_have_short_names(preset, copy, monkeypatch):
  monkeypatch.setattr(presets, "SHIPPED", copy.parent)
  place = presets.place("moved/base")
  assert place == str(copy / "base") and presets.named(place) == "moved/base"
  # Paths stay as they are, also those that look like a part.
  for path in ("moved", "other/base", str(preset.folder / "base")):
    assert presets.place(path) == presets.named(path) == path
  monkeypatch.chdir(copy.parent)
  assert presets.place("moved/base") == "moved/base"


def test_parts_of_another_cascade_and_existing_folders_are_rejected(made, preset, tmp_path):
  with pytest.raises(FileExistsError, match="is not empty, expected a new folder"):
    _export(made, preset.folder)
  other = dataclasses.replace(made, vae_ema=True, vae=cascades.vae(base_channels=8))
  with pytest.raises(ValueError, match="does not have the network that gin describes"):
    _export(other, tmp_path / "other")
  assert not (tmp_path / "other").exists()


def test_no_run_starts_from_weights_alone(preset):
  checkpoint = preset.folder / "base/checkpoint_0"
  metadata = state_metadata(checkpoint)
  name = next(iter(metadata))
  with pytest.raises(ValueError, match="no training state"):
    read_arrays(checkpoint, {name: metadata[name]}, {name: None})


def _files(folder):
  return {
    f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()
  }


def _faults(preset):
  """What keeps a preset out of the package."""
  needed = ("license", "trained_by", "description")
  found = [field for field in needed if not preset.record[field]]
  if preset.record["name"] != preset.folder.name:
    found.append("name")
  unlisted = _files(preset.folder).keys() - preset.record["files"].keys() - {presets.RECORD}
  return found + sorted(unlisted)


def test_presets_of_the_package_are_complete_and_small(copy):
  found = [presets.find(name) for name in presets.shipped()]
  assert [_faults(preset) for preset in found] == [[] for _ in found]
  assert sum(len(c) for preset in found for c in _files(preset.folder).values()) <= MOST_BYTES
  # The faults of one that is not the package's.
  (copy / "notes.txt").write_text("")
  record = storage.read_json(copy / presets.RECORD) | {"license": ""}
  (copy / presets.RECORD).write_bytes(presets.encoded(record))
  assert _faults(presets.find(str(copy))) == ["license", "name", "notes.txt"]
