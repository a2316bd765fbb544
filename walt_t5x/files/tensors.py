"""Safetensors files whose metadata has a digest of the file, which is checked before the tensors are used."""

import hashlib
import io
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

from walt_t5x.files import storage
from walt_t5x.files.damage import FIELD, Damaged

# The metadata of a safetensors file that is to be sealed.
BLANK = {FIELD: "0" * 64}
_BLANK_FIELD = f'"{FIELD}":"{BLANK[FIELD]}"'.encode()
_SEAL = re.compile(rf'"{FIELD}":"([0-9a-f]{{64}})"'.encode())
# The format's own limit.
_LONGEST_HEADER = 10**8


def save(path: storage.PathLike, tensors: Mapping[str, Any]) -> None:
  """Writes numpy arrays by name atomically."""
  from safetensors.numpy import save_file

  with storage.writer(path) as stream:
    save_file(dict(tensors), stream.name, metadata=BLANK)
    with open(stream.name, "r+b") as file:
      seal(file)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
  """The numpy arrays of a local file by name.

  Raises:
    Damaged: it changed after it was written, or is not a safetensors file.
  """
  from safetensors import SafetensorError
  from safetensors.numpy import load_file

  with ThreadPoolExecutor(1) as pool:
    checked = pool.submit(check, path)
    try:
      found = load_file(path)
    except SafetensorError as error:
      checked.result()
      raise Damaged(
        f"{os.fspath(path)} is not a safetensors file: {error}; copy it again"
      ) from error
    checked.result()
  return found


def seal(file: io.BytesIO | io.BufferedRandom) -> None:
  """Completes a safetensors file whose metadata has `BLANK`, by the sha256 of its bytes with the blank."""
  file.seek(0)
  at = _header(file).index(_BLANK_FIELD) + len(_BLANK_FIELD) - len(BLANK[FIELD]) - 1
  file.seek(0)
  digest = hashlib.file_digest(file, "sha256").hexdigest()
  file.seek(at)
  file.write(digest.encode())


def check(path: str | os.PathLike[str]) -> None:
  """Raises `Damaged` if a file differs from its digest; one without a digest, as other programs write it, passes."""
  with open(path, "rb") as file:
    header = _header(file)
    match = _SEAL.search(header)
    if match is None:
      return
    digest = hashlib.sha256(
      header[: match.start(1)] + BLANK[FIELD].encode() + header[match.end(1) :]
    )
    while part := file.read(2**20):
      digest.update(part)
  if digest.hexdigest() != match[1].decode():
    raise Damaged(
      f"{os.fspath(path)} was changed after it was written: its sha256 is not that of its metadata. Copy it again, or "
      "run the command that wrote it again."
    )


def _header(file: BinaryIO) -> bytes:
  """Length and header of a safetensors file."""
  length = file.read(8)
  return length + file.read(min(int.from_bytes(length, "little"), _LONGEST_HEADER))
