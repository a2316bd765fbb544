"""The model card says what the files of its preset say, and the Hugging Face hub can read it."""

import hashlib
import json

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load_file

from data.provenance import read_provenance
from tests.generation import cascades
from walt_t5x.generation import model_card, presets
from walt_t5x.generation.preset_export import export


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  return cascades.written(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module", params=["shapes", "bfloat16", "float32"])
def preset(request, made, tmp_path_factory):
  if request.param == "shapes":
    if "shapes" not in presets.shipped():
      pytest.skip("the package has no preset")
    return presets.find("shapes")
  return export(
    made,
    output=tmp_path_factory.mktemp("presets") / "noise",
    name="noise",
    description="Noise.",
    license_name="Apache-2.0",
    trained_by="bash train.sh --all",
    dtype=request.param,
  )


def _rows(text):
  """The cells of the lines of tables."""
  return [
    [cell.strip(" `") for cell in line.split("|")[1:-1]]
    for line in text.splitlines()
    if line.startswith("|")
  ]


def test_the_header_is_what_the_hub_reads(preset):
  data = ModelCard.load(preset.folder / model_card.FILE_NAME).data
  assert data.license == preset.record["license"].lower()
  assert (data.library_name, data.pipeline_tag) == ("walt_t5x", "text-to-video")
  assert {"text-to-video", "jax"} <= set(data.tags)


def test_it_names_license_sizes_parameters_and_hashes_of_the_files(preset):
  text = (preset.folder / model_card.FILE_NAME).read_text()
  record = json.loads((preset.folder / presets.RECORD).read_text())
  assert f"License: {record['license']}." in text
  assert record["trained_by"] in text and record["description"] in text
  rows = _rows(text)
  for stage, size in record["stages"].items():
    assert [stage, *map(str, size)] in rows
  weights = sorted(preset.folder.rglob("*.safetensors"))
  assert len(weights) == 4
  for file in weights:
    name, content = file.relative_to(preset.folder).as_posix(), file.read_bytes()
    tensors = load_file(file).values()
    (dtype,) = {tensor.dtype.name for tensor in tensors}
    count = sum(int(np.prod(tensor.shape)) for tensor in tensors)
    digest = hashlib.sha256(content).hexdigest()
    part = name.split("/")[0]
    what = {"vae": "tokenizer", "text": "text encoder"}.get(part, "denoiser")
    assert [part, what, f"{count:,}", dtype, name, f"{len(content):,}", digest] in rows
    if part != "text":
      assert [part, str(record["parts"][part]["step"])] in [row[:2] for row in rows]
  provenance = read_provenance(str(preset.folder / "base"))
  assert f"{provenance.num_frames} frames at {provenance.fps:g} frames per second" in text
  assert all(f"`{field}`" in text for field in provenance.latents)


def test_the_card_and_the_record_have_the_same_files(preset):
  """The card is hashed, and is the one that the code writes now: else run scripts/preset_card.py."""
  record = json.loads((preset.folder / presets.RECORD).read_text())
  content = (preset.folder / model_card.FILE_NAME).read_bytes()
  listed = record["files"].pop(model_card.FILE_NAME)
  assert listed == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
  provenance = read_provenance(str(preset.folder / "base"))
  assert content.decode() == model_card.model_card(record, provenance)


def test_a_license_that_the_hub_does_not_know_has_a_name_and_a_link(preset):
  record = preset.record | {"license": "TU-Berlin-2.0"}
  provenance = read_provenance(str(preset.folder / "base"))
  data = ModelCard(model_card.model_card(record, provenance)).data
  assert (data.license, data.license_name) == ("other", "tu-berlin-2.0")
  assert data.license_link == "https://spdx.org/licenses/TU-Berlin-2.0.html"


def test_a_cascade_without_text_is_not_listed_under_text_to_video(preset):
  parts = {name: part for name, part in preset.record["parts"].items() if name != "text"}
  provenance = read_provenance(str(preset.folder / "base"))
  text = model_card.model_card(preset.record | {"parts": parts}, provenance)
  assert ModelCard(text).data.pipeline_tag is None and "T5EncoderModel" not in text
