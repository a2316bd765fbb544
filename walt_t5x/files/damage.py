"""Detects that a file changed after it was written, by a digest inside the file."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

FIELD = "content_sha256"


class Damaged(ValueError):
  """A file that changed after it was written. The message names it and says what to do."""


def sealed(tree: Mapping[str, Any], *, field: str = FIELD) -> dict[str, Any]:
  """The tree with the sha256 of its other fields in `field`; in whatever order and layout they are written."""
  rest = {name: value for name, value in tree.items() if name != field}
  return {**rest, field: hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def parsed(content: bytes | str, *, name: str) -> Any:
  """The JSON content of a file without its digest; a file without one is read as it is.

  Raises:
    Damaged: the content is not JSON, or differs from its digest; names the file.
  """
  try:
    tree = json.loads(content)
  except ValueError as error:
    raise Damaged(
      f"{name} is not JSON ({error}): it was damaged or written in part. Copy it again, or delete it and run the "
      "command that wrote it again."
    ) from error
  if isinstance(tree, dict) and FIELD in tree:
    if sealed(tree)[FIELD] != tree[FIELD]:
      raise Damaged(
        f"{name} was changed after it was written: its content does not match its {FIELD}. Copy it again, or run the "
        f"command that wrote it again. If the change was intended, delete the line with {FIELD}."
      )
    del tree[FIELD]
  return tree


def is_sealed(content: bytes) -> bool:
  """Whether the content of a JSON file has a digest; files of earlier versions have none."""
  return f'"{FIELD}"'.encode() in content


def sealed_json(tree: Any, *, indent: int = 2, sort_keys: bool = True) -> bytes:
  """The content of a JSON file with a digest."""
  tree = sealed(json.loads(json.dumps(tree)))
  return json.dumps(tree, indent=indent, sort_keys=sort_keys).encode() + b"\n"
