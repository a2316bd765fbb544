"""Writes a preset folder from a trained cascade; the same cascade gives the same bytes.

Adapters are merged into the weights, which are rounded to bfloat16, or kept in float32. The parts refer to each other
by fingerprints of weights, so those of the rounded tokenizer and text encoder replace the trained ones in the stages'
provenance; preset.json has both.
"""

import copy
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

import walt_t5x
from data.provenance import Provenance, read_provenance
from walt_t5x.denoiser import adapters
from walt_t5x.engine import run_record, weights_file
from walt_t5x.engine.checkpoints import checkpoint_folder, checkpoint_step, load_params
from walt_t5x.files import local_folders, storage
from walt_t5x.files.fingerprint import weights_fingerprint
from walt_t5x.generation import model_card, presets
from walt_t5x.generation.cascade import stage_size
from walt_t5x.generation.loading import (
  CascadeConfig,
  load_text_encoder,
  load_tokenizer,
  read_infos,
)
from walt_t5x.generation.stage import StageInfo
from walt_t5x.models import model_record
from walt_t5x.text.encoder import TextEncoder, save_encoder

VAE, TEXT = "vae", "text"
# Settings of a run's config.gin that are kept as the description of its training.
_TRAINING = re.compile(
  r"^((?:BATCH_SIZE|MIXTURE_OR_TASK_NAME|RANDOM_SEED|TRAIN_STEPS)|tasks\.\S+) = (.*[^\\\n])$",
  re.MULTILINE,
)


def export(
  config: CascadeConfig,
  *,
  output: Path,
  name: str,
  description: str,
  license_name: str,
  trained_by: str,
  dtype: str = "bfloat16",
) -> presets.Preset:
  """Writes the folder `output`, which must not exist or be empty, and returns the preset as it is read back.

  Args:
    name: name of the preset.
    description: one sentence.
    license_name: license of the weights, an SPDX identifier.
    trained_by: the command that trained the cascade.
    dtype: of the stored weights, one of `weights_file.DTYPES`; those in float32 are the trained ones.

  Raises:
    FileNotFoundError: a part is missing.
    FileExistsError: `output` is not empty.
    ValueError: the parts do not belong together, two parts have one folder name, or license or dtype are unknown.
  """
  model_card.check_license(license_name)
  names = [VAE, TEXT, *(stage.name for stage in config.stages)]
  if len(set(names)) < len(names):
    raise ValueError(f"the folders of the parts would be {names}: rename the stages")
  with local_folders.new_folder(output) as folder:
    infos = read_infos(config)
    params, encoder = load_tokenizer(config, infos), load_text_encoder(config, infos)
    parts = {
      VAE: _write_model(folder / VAE, config.vae_checkpoint, {"vae": params}, dtype, under="vae")
    }
    _write_record(folder / VAE, config.vae)
    fingerprints: dict[str, dict[str, Any]] = {"vae": parts[VAE], "text_encoder": {}}
    if config.text_encoder and encoder is not None:
      parts[TEXT] = fingerprints["text_encoder"] = _write_text(folder / TEXT, encoder, dtype)
    for info in infos:
      stage, part = info.config, folder / info.config.name
      weights, model = load_params(info.checkpoint, ema=stage.ema), stage.model
      if stage.module.adapter_rank:
        weights = adapters.merged(weights)
        model = copy.copy(model)
        model.module = stage.module.clone(adapter_rank=0)
      parts[stage.name] = _write_model(part, stage.checkpoint, weights, dtype)
      _provenance(info, fingerprints).write(part)
      _write_record(
        part,
        model,
        latents=stage.latents,
        low_resolution=stage.low_resolution,
        text_length=config.text_length if stage.module.text_dim else 0,
      )
    record = {
      "format": presets.FORMAT,
      "name": name,
      "description": description,
      "license": license_name,
      "trained_by": trained_by,
      "dtype": dtype,
      "walt_t5x": walt_t5x.__version__,
      "fps": infos[0].provenance.fps,
      "stages": {info.config.name: _size(info, config) for info in infos},
      "parts": parts,
    }
    finish(folder, record)
  return presets.read(output)


def finish(folder: Path, record: Mapping[str, Any]) -> None:
  """Writes the model card and preset.json of a folder with all other files of a preset; old ones are replaced.

  Args:
    folder: with the parts of `record`.
    record: the content of preset.json; sizes and hashes of files are added.
  """
  for name in (presets.RECORD, model_card.FILE_NAME):
    (folder / name).unlink(missing_ok=True)
  provenance = read_provenance(str(folder / next(iter(record["stages"]))))
  files = _files(folder)
  card = model_card.model_card({**record, "files": files}, provenance)
  storage.write(folder / model_card.FILE_NAME, card.encode())
  files = _files(folder)
  total = sum(file["bytes"] for file in files.values())
  # Last: a folder without it is not a preset.
  storage.write(
    folder / presets.RECORD, presets.encoded({**record, "files": files, "bytes": total})
  )


def _files(folder: Path) -> dict[str, dict[str, Any]]:
  """Size and hash of every file of a folder."""
  names = [f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()]
  return presets.files_of(folder, names)


def _write_model(
  folder: Path, source: str, params: Mapping[str, Any], dtype: str, *, under: str | None = None
) -> dict[str, Any]:
  """Writes a model's weights; returns its entry in preset.json. `under`: the fingerprint is of this subtree."""
  step = checkpoint_step(source)
  weights_file.write(checkpoint_folder(folder, step), params, dtype=dtype)
  trained = params[under] if under else params
  return {
    "step": step,
    "training": _training(source),
    **_described(traverse_util.flatten_dict(dict(trained), sep="/"), dtype),
  }


def _write_record(folder: Path, model: Any, **trained_on: Any) -> None:
  """Writes the model as data: a part of a preset is also a run to sample or to fine-tune."""
  record = model_record.described(model, **trained_on)
  if record is not None:
    storage.write_json(folder / run_record.MODEL_FILE, record, sort_keys=True, seal=True)


def _write_text(folder: Path, encoder: TextEncoder, dtype: str) -> dict[str, Any]:
  flat = traverse_util.flatten_dict(encoder.params, sep="/")
  weights = {name: np.asarray(array) for name, array in flat.items()}
  save_encoder(
    folder,
    config=encoder.config,
    weights=weights,
    vocabulary=encoder.vocabulary,
    dtype=dtype,
  )
  return {
    **_described(weights, dtype),
    "fingerprint": TextEncoder.load(folder).fingerprint,
    "trained_fingerprint": encoder.fingerprint,
    "vocabulary": len(encoder.vocabulary),
  }


def _described(flat: Mapping[str, Any], dtype: str) -> dict[str, Any]:
  return {
    "parameters": sum(int(np.size(array)) for array in flat.values()),
    "fingerprint": weights_fingerprint(weights_file.rounded(dict(flat), dtype=dtype)),
    "trained_fingerprint": weights_fingerprint(flat),
  }


def _training(source: str) -> dict[str, str]:
  """The settings of `_TRAINING` in the config.gin of a run, whose folder or checkpoint `source` is."""
  for folder in (source, storage.parent(source.rstrip("/"))):
    file = storage.join(folder, "config.gin")
    if storage.exists(file):
      return dict(_TRAINING.findall(storage.read(file).decode()))
  return {}


def _provenance(info: StageInfo, fingerprints: Mapping[str, Mapping[str, Any]]) -> Provenance:
  """The provenance of a stage, of whose encoders the preset has the rounded weights."""
  changed = {}
  for part, folder in (("vae", VAE), ("text_encoder", TEXT)):
    described = dict(getattr(info.provenance, part))
    # Paths of the machine that made the data.
    described |= {key: folder for key in ("checkpoint", "folder") if key in described}
    if fingerprints[part]:
      described["fingerprint"] = fingerprints[part]["fingerprint"]
    changed[part] = described
  return dataclasses.replace(info.provenance, **changed)


def _size(info: StageInfo, config: CascadeConfig) -> list[int]:
  frames = 1 + (info.latents_shape[0] - 1) * config.vae.temporal_factor
  return [frames, *stage_size(info.config, config.vae)]
