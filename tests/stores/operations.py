"""What the file layer can do, as functions of a folder whose results are the same on every store."""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

from walt_t5x.files import locks, patterns, storage

SMALL = b"0123456789" * 20
# Above the sizes from which the clients of GCS and S3 upload in parts, if `retries.CHUNK` is `CHUNK`.
CHUNK = 5 * 2**20
LARGE = random.Random(0).randbytes(2 * CHUNK + 1000)


@dataclasses.dataclass(frozen=True)
class Operation:
  """An operation of the file layer.

  Attributes:
    files: name -> content of the files before it.
    act: what it does with a folder; the result is compared.
  """

  act: Callable[[str], Any]
  files: dict[str, bytes] = dataclasses.field(default_factory=dict)


def _stream(folder: str) -> Any:
  with storage.open_raw(f"{folder}/a") as stream:
    found = [stream.read(1000)]
    for position in (CHUNK - 10, 100, 2 * CHUNK):
      stream.seek(position)
      found.append(stream.read(3000))
    return found


def _locked(folder: str) -> Any:
  with locks.held(f"{folder}/lock", program="test", instead="wait"):
    try:
      with locks.held(f"{folder}/lock", program="test", instead="wait"):
        return "two holders"
    except locks.Held:
      return storage.exists(f"{folder}/lock")


def _matches(folder: str) -> Any:
  return [path.removeprefix(folder) for path in patterns.match(f"{folder}/*/*.txt")]


_TREE = {"a": SMALL, "b/c.txt": b"c", "b/d.txt": b"d", "b/e/f.txt": b"f", "g.txt": b"g"}
_ONE = {"a": SMALL}
OPERATIONS = {
  "write": Operation(lambda f: storage.write(f"{f}/a", SMALL)),
  "write over another": Operation(lambda f: storage.write(f"{f}/a", b"new"), _ONE),
  "write, empty": Operation(lambda f: storage.write(f"{f}/a", b"")),
  "write, large": Operation(lambda f: storage.write(f"{f}/a", LARGE)),
  "write_json": Operation(lambda f: storage.write_json(f"{f}/a", {"b": [1]}, seal=True)),
  "read": Operation(lambda f: storage.read(f"{f}/a"), _ONE),
  "read, empty": Operation(lambda f: storage.read(f"{f}/a"), {"a": b""}),
  "read, large": Operation(lambda f: storage.read(f"{f}/a"), {"a": LARGE}),
  "read, limited": Operation(lambda f: storage.read(f"{f}/a", max_bytes=len(SMALL)), _ONE),
  "read, limited, empty": Operation(lambda f: storage.read(f"{f}/a", max_bytes=9), {"a": b""}),
  "read, no file": Operation(lambda f: storage.read(f"{f}/a")),
  "read_range": Operation(lambda f: storage.read_range(f"{f}/a", 7, 150), _ONE),
  "read_json": Operation(lambda f: storage.read_json(f"{f}/a"), {"a": b'{"b": [1]}'}),
  "open_raw": Operation(_stream, {"a": LARGE}),
  "exists": Operation(lambda f: storage.exists(f"{f}/a"), _ONE),
  "exists, folder": Operation(lambda f: storage.exists(f"{f}/b"), _TREE),
  "exists, no file": Operation(lambda f: storage.exists(f"{f}/z"), _TREE),
  "size": Operation(lambda f: storage.size(f"{f}/a"), _ONE),
  "names": Operation(storage.names, _TREE),
  "names, no folder": Operation(lambda f: storage.names(f"{f}/z"), _TREE),
  "folders": Operation(lambda f: storage.folders(f"{f}/b"), _TREE),
  "match": Operation(_matches, _TREE),
  "delete": Operation(lambda f: storage.delete(f"{f}/a"), _ONE),
  "delete, no file": Operation(lambda f: storage.delete(f"{f}/a")),
  "rename": Operation(lambda f: storage.rename(f"{f}/a", f"{f}/g.txt"), _TREE),
  "rename, no file": Operation(lambda f: storage.rename(f"{f}/a", f"{f}/b")),
  "rename_folder": Operation(lambda f: storage.rename_folder(f"{f}/b", f"{f}/h"), _TREE),
  "create": Operation(lambda f: storage.create(f"{f}/a", SMALL)),
  "create, exists": Operation(lambda f: storage.create(f"{f}/a", b"other"), _ONE),
  "lock": Operation(_locked),
}


def result(act: Callable[[str], Any], folder: str) -> Any:
  """What it returns, or the kind of its error."""
  try:
    return act(folder)
  except FileNotFoundError:
    return "FileNotFoundError"


def contents(folder: str) -> dict[str, bytes]:
  """Name -> content of the files below a folder."""
  found = {name: storage.read(f"{folder}/{name}") for name in storage.names(folder)}
  for below in storage.folders(folder):
    found |= {f"{below}/{name}": c for name, c in contents(f"{folder}/{below}").items()}
  return found


def put(folder: str, files: dict[str, bytes]) -> None:
  """Writes the files that an operation expects."""
  storage.make_folder(folder)
  for name, content in files.items():
    storage.write(f"{folder}/{name}", content)


def storm(folder: str, count: int, seed: int) -> list[str]:
  """The results of operations on a few names, drawn with a seed, and the contents at the end."""
  draws = random.Random(seed)
  found = [repr(result(_drawn(draws, str(number)), folder)) for number in range(count)]
  if storage.names(f"{folder}/a"):
    storage.rename_folder(f"{folder}/a", f"{folder}/moved")
  return [*found, repr(sorted(contents(folder).items()))]


def _drawn(draws: random.Random, mark: str) -> Callable[[str], Any]:
  """An operation, which writes a content that no other writes."""
  one, two = (f"{draws.choice('abc')}/{draws.randrange(3)}" for _ in range(2))
  content = draws.randbytes(draws.choice((0, 10, 2000))) + mark.encode()

  def paths(folder: str) -> tuple[str, str, str]:
    for name in (one, two):  # Local files need it.
      storage.make_folder(storage.parent(f"{folder}/{name}"))
    return f"{folder}/{one}", f"{folder}/{two}", storage.parent(f"{folder}/{one}")

  acts: list[Callable[[str, str, str], Any]] = [
    lambda one, two, here: storage.write(one, content),
    lambda one, two, here: storage.write(two, content),
    lambda one, two, here: storage.write_json(one, {"mark": mark}),
    lambda one, two, here: storage.create(one, content),
    lambda one, two, here: storage.read(one),
    lambda one, two, here: storage.read(one, max_bytes=5000),
    lambda one, two, here: storage.read_range(one, 0, 9),
    lambda one, two, here: storage.exists(one),
    lambda one, two, here: storage.exists(f"{one}/below"),
    lambda one, two, here: storage.size(one),
    lambda one, two, here: storage.names(here),
    lambda one, two, here: [p[-3:] for p in patterns.match(f"{storage.parent(here)}/*/1")],
    lambda one, two, here: storage.delete(one),
    lambda one, two, here: storage.rename(one, two) if one != two else None,
  ]
  act = draws.choice(acts)
  return lambda folder: act(*paths(folder))
