"""Files that match a pattern, on local disks and in object stores."""

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Sequence

from walt_t5x.files import storage


def literal(pattern: storage.PathLike) -> str:
  """A pattern for libraries to which `[` and `?` are special too, which may be parts of names."""
  return re.sub(r"[\[?]", r"[\g<0>]", os.fspath(pattern))


def match(pattern: storage.PathLike) -> Iterator[str]:
  """Sorted paths of the files that match a pattern with `*`; other characters are themselves."""
  pattern = os.fspath(pattern)
  if storage.is_local(pattern):
    found = glob.iglob(literal(pattern), include_hidden=True)
    yield from sorted(filter(os.path.isfile, found))
    return
  # Folder by folder: gcsfs's own `glob` lists everything below the first folder, at any depth.
  scheme, _, rest = pattern.partition("://")
  bucket, *parts = rest.split("/")
  yield from sorted(_matching(f"{scheme}://{bucket}", parts))


def _matching(folder: str, parts: Sequence[str]) -> Iterator[str]:
  """Files below a folder of a store whose path matches the parts of a pattern."""
  depth = next((at for at, part in enumerate(parts) if "*" in part), len(parts))
  folder, rest = storage.join(folder, *parts[:depth]), parts[depth + 1 :]
  if depth == len(parts):
    yield from [folder] if storage.is_file(folder) else []
    return
  listed = storage.folders(folder) if rest else storage.names(folder)
  for name in fnmatch.filter(listed, literal(parts[depth])):
    yield from _matching(storage.join(folder, name), rest) if rest else [storage.join(folder, name)]
