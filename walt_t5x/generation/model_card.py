"""The model card of a preset: a README.md whose header the Hugging Face hub reads.

It says what the files say: nothing in it is written by hand except the description. See
https://huggingface.co/docs/hub/model-cards.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.provenance import Provenance

FILE_NAME = "README.md"
LIBRARY = "walt_t5x"
_TAGS = ("video-generation", "latent-diffusion", "jax", "arxiv:2312.06662")
# Identifiers that the hub knows (https://huggingface.co/docs/hub/repositories-licenses) and that weights have.
_HUB_LICENSES = frozenset(
  "apache-2.0 mit openrail openrail++ creativeml-openrail-m bigscience-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd "
  "bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
  "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
  "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 "
  "epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl "
  "mpl-2.0 odc-by odbl osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl".split()
)


def check_license(name: str) -> None:
  """Raises ValueError if a name is not one word, as identifiers of SPDX are."""
  if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", name):
    raise ValueError(
      f"license {name!r}: expected an SPDX identifier, such as CC0-1.0 or Apache-2.0, see https://spdx.org/licenses"
    )


def model_card(record: Mapping[str, Any], provenance: Provenance) -> str:
  """The content of README.md; the same preset has the same card.

  Args:
    record: the content of preset.json; `files` are those next to the card.
    provenance: of the training data of the base stage.
  """
  parts, files = record["parts"], record["files"]
  reads_text = "text" in parts
  kinds = dict.fromkeys(record["stages"], "denoiser") | {"vae": "tokenizer"}
  kinds |= {"text": "text encoder"} if reads_text else {}
  weights = {part: _weights_of(part, files) for part in kinds}
  command = f"python -m {LIBRARY}.generate --preset=FOLDER"
  lines = [
    *_header(record["license"], reads_text=reads_text),
    f"# {record['name']}",
    "",
    *([record["description"], ""] if record["description"] else []),
    "A cascade of latent video diffusion (W.A.L.T, [arXiv:2312.06662](https://arxiv.org/abs/2312.06662)), written by",
    f"`python -m {LIBRARY}.export` of {LIBRARY} {record['walt_t5x']}. License: {record['license']}.",
    "",
    "## What it generates",
    "",
    *_table(
      ("stage", "frames", "height", "width"),
      [(f"`{stage}`", *size) for stage, size in record["stages"].items()],
    ),
    "",
    *([f"{record['fps']:g} frames per second.", ""] if record["fps"] else []),
    "## How to load it",
    "",
    "```bash",
    command + (' --prompt="..."' if reads_text else ""),
    "```",
    "",
    "`FOLDER` is that of this file. In Python, with every file checked against its hash:",
    "",
    "```python",
    f"from {LIBRARY}.generation import loading, presets, trained_runs",
    "",
    'config = trained_runs.cascade_of(presets.find("FOLDER").runs).config',
    "cascade = loading.load_cascade(config, loading.read_infos(config), batch_size=1)",
    "```",
    "",
    "Other frameworks need `safetensors` and `json`: `model.json` has the sizes of each network, `provenance.json` the",
    "mean and standard deviation of its latents.",
    *(
      ['The text encoder is `transformers.T5EncoderModel.from_pretrained("FOLDER/text")`.']
      if reads_text
      else []
    ),
    "",
    "## Parts",
    "",
    *_table(
      ("part", "what", "parameters", "dtype", "weights", "bytes", "sha256"),
      [
        (
          f"`{part}`",
          kinds[part],
          f"{parts[part]['parameters']:,}",
          record["dtype"],
          f"`{file}`",
          f"{files[file]['bytes']:,}",
          f"`{files[file]['sha256']}`",
        )
        for part, file in weights.items()
      ],
    ),
    "",
    "`preset.json` has size and hash of every file, and the fingerprints of the weights before and after rounding.",
    "",
    "## Training",
    "",
    *_trained_by(record["trained_by"]),
    _data(provenance),
    "",
    *_table(
      ("part", "step", "settings"),
      [
        (f"`{part}`", parts[part]["step"], _settings(parts[part]))
        for part in weights
        if part != "text"
      ],
    ),
  ]
  return "\n".join(lines) + "\n"


def _header(license_name: str, *, reads_text: bool) -> list[str]:
  """The YAML at the top."""
  known = license_name.lower()
  lines = [f"license: {known}"]
  if known not in _HUB_LICENSES:
    link = f"https://spdx.org/licenses/{license_name}.html"
    lines = ["license: other", f"license_name: {json.dumps(known)}", f"license_link: {link}"]
  lines.append(f"library_name: {LIBRARY}")
  task = ["text-to-video"] if reads_text else []
  lines += [f"pipeline_tag: {name}" for name in task]
  return ["---", *lines, "tags:", *(f"- {tag}" for tag in (*task, *_TAGS)), "---", ""]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
  lines = [head, ["---"] * len(head), *rows]
  return [
    "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
  ]


def _weights_of(part: str, files: Mapping[str, Any]) -> str:
  (name,) = [
    file for file in files if file.startswith(f"{part}/") and file.endswith(".safetensors")
  ]
  return name


def _settings(part: Mapping[str, Any]) -> str:
  return ", ".join(f"`{name} = {value}`" for name, value in sorted(part["training"].items()))


def _trained_by(command: str) -> list[str]:
  return ["```bash", command, "```", ""] if command else []


def _data(provenance: Provenance) -> str:
  """What the stages were trained on."""
  fields = ", ".join(f"`{field}`" for field in sorted(provenance.latents))
  rate = f" at {provenance.fps:g} frames per second" if provenance.fps else ""
  text = ""
  if provenance.text_encoder:
    longest = provenance.text_encoder.get("max_length")
    limit = f" of at most {longest} tokens" if longest else ""
    text = f", with captions{limit} that the text encoder encoded"
  return (
    f"The stages were trained on latents of images and of videos of {provenance.num_frames} frames{rate} ({fields}: "
    f"the posterior's {provenance.posterior}), made by the tokenizer{text}."
  )
