"""A preset: a folder with a trained cascade, which generates clips wherever the folder is.

README.md         the model card
preset.json       name, license, the command that trained it, sizes, what each part was trained on, sha256 of each file
vae, base, sr1    runs with weights only (`engine.weights_file`): the model, and the provenance of the training data
text              text encoder folder

Presets of the package are in `walt_t5x/presets`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import walt_t5x
from walt_t5x.files import damage, storage
from walt_t5x.files.fingerprint import file_sha256

SHIPPED = Path(walt_t5x.__file__).parent / "presets"
RECORD = "preset.json"
FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Preset:
  """A preset whose files were checked.

  Attributes:
    record: the content of preset.json.
    sha256: hash of preset.json, which has the hashes of all other files.
  """

  folder: Path
  record: Mapping[str, Any]
  sha256: str

  @property
  def runs(self) -> list[str]:
    """The runs of the stages, base stage first."""
    return [str(self.folder / stage) for stage in self.record["stages"]]

  @property
  def identity(self) -> dict[str, str]:
    """Name and hash, for the record of a sample."""
    return {"name": self.record["name"], "sha256": self.sha256}


def shipped() -> list[str]:
  """Names of the package's presets."""
  return [name for name in storage.folders(SHIPPED) if (SHIPPED / name / RECORD).is_file()]


def place(run: str) -> str:
  """Path of a run: a part of one of the package's presets, such as `shapes/base`, or the path itself."""
  name, _, part = run.partition("/")
  if part and name in shipped() and not Path(run).exists():
    return str(SHIPPED / name / part)
  return run


def named(run: str) -> str:
  """The inverse of `place`: the short name of a part of one of the package's presets, or the path itself."""
  path = Path(storage.absolute(run))
  return str(path.relative_to(SHIPPED)) if path.is_relative_to(SHIPPED) else run


def find(name: str) -> Preset:
  """The preset of the package with this name, or in the folder of this path.

  Raises:
    FileNotFoundError: there is none, or one of its files is missing.
    Damaged: a file is damaged; names it.
    ValueError: it has another format.
  """
  if name in shipped():
    return read(SHIPPED / name)
  if (Path(name) / RECORD).is_file():
    return read(Path(name))
  raise FileNotFoundError(
    f"--preset={name}: expected one of the package's presets ({', '.join(shipped()) or 'it has none'}) or a folder "
    f"with a {RECORD}, which `python -m walt_t5x.export` writes"
  )


def read(folder: Path) -> Preset:
  """Reads and checks a preset folder; raises as `find` does."""
  what = f"preset {folder.name}"
  again = f"export it or copy {folder} again, or install the package again"
  content = storage.read(folder / RECORD)
  try:
    record = json.loads(content)
    intact = content == encoded(record)
  except ValueError:
    record, intact = {}, False
  if not intact:
    raise damage.Damaged(f"{what}: {RECORD} was changed after it was written; {again}")
  if record["format"] != FORMAT:
    raise ValueError(
      f"{what}: got format {record['format']}, expected {FORMAT}; export it with this version of walt_t5x"
    )
  for name, expected in record["files"].items():
    if not (folder / name).is_file():
      raise FileNotFoundError(f"{what}: {name} is missing; {again}")
    got = file_sha256(folder / name)
    if got != expected["sha256"]:
      raise damage.Damaged(
        f"{what}: {name} is damaged: its sha256 is {got}, expected {expected['sha256']}; {again}"
      )
  return Preset(folder=folder, record=record, sha256=hashlib.sha256(content).hexdigest())


def encoded(record: Mapping[str, Any]) -> bytes:
  """The bytes of preset.json, with the hash of its other fields in `sha256`."""
  sealed = damage.sealed(record, field="sha256")
  return (json.dumps(sealed, indent=1, sort_keys=True) + "\n").encode()


def files_of(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
  """Size and hash of files of a folder, by name, as in preset.json."""
  return {
    name: {"bytes": storage.size(folder / name), "sha256": file_sha256(folder / name)}
    for name in sorted(names)
  }
