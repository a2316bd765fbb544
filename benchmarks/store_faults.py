"""Injects single faults into requests to object stores, and compares what the file layer does with a local disk.

  python -m benchmarks.store_faults

For each fault it draws an operation of `tests.stores.operations`, a kind of `tests.stores.faults` and one of the
operation's requests that can fail in this way. The operation runs in a new folder of a store on this machine, behind
a proxy that injects the fault; result and files must be those of the same operation on a local disk. Then the same
faults meet the clients of fsspec without our retries and checks. At the end it measures what these cost without
faults, as a ratio in one process. Writes store_faults.json and .md next to this file; exit code 1 after an error or
a difference.
"""

import argparse
import collections
import contextlib
import itertools
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec

from benchmarks import results
from tests.stores import faults, operations, servers
from walt_t5x.files import clients, retries, storage

HERE = Path(__file__).parent
SAME, ERROR, DIFFERENT = "same", "error", "different"
OURS, PLAIN = "file layer", "fsspec's clients"
# Seconds: of a stall, and after which a request without an answer is repeated.
STALL, SILENCE = 6.0, 2.0
REPEATS = 9


def _plain(path: str) -> Any:
  return fsspec.core.url_to_fs(path, use_listings_cache=False)[0]


@contextlib.contextmanager
def client(name: str, server: servers.Server) -> Iterator[None]:
  """Inside the block, the file layer uses new clients, which find this server."""
  used = clients.file_system if name == OURS else _plain
  with mock.patch.dict(os.environ, server.environment), mock.patch.object(storage, "_remote", used):
    clients._client.cache_clear()
    _plain(server.address).clear_instance_cache()
    yield


def requests(server: servers.Server, name: str, client_name: str) -> list[tuple[str, str]]:
  """Method and kind of the requests of an operation without faults."""
  operation, found = operations.OPERATIONS[name], faults.Faults()
  with faults.proxied(server, found) as behind, client(client_name, behind):
    folder = f"{server.address}/requests/{client_name}/{name}"
    operations.put(folder, operation.files)
    before = found.counts.copy()
    operations.result(operation.act, folder)
    return [(key[0], key[1]) for key, n in (found.counts - before).items() for _ in range(n)]


def inject(
  server: servers.Server, name: str, kind: str, pattern: str, number: int, client_name: str
) -> dict[str, Any]:
  """The outcome of one fault."""
  operation, found = operations.OPERATIONS[name], faults.Faults(stall=STALL)
  row: dict[str, Any] = {"client": client_name, "operation": name, "kind": kind, "request": pattern}
  with (
    tempfile.TemporaryDirectory() as local,
    faults.proxied(server, found) as behind,
    client(client_name, behind),
  ):
    folder = f"{server.address}/{random.getrandbits(64):x}"
    for here in (local, folder):
      operations.put(here, operation.files)
    expected = operations.result(operation.act, local), operations.contents(local)
    found.single = kind, pattern, number
    began = time.perf_counter()
    try:
      answered = operations.result(operation.act, folder)
    except Exception as error:  # Whatever a client raises.
      return row | {
        "outcome": ERROR,
        "error": f"{type(error).__name__}: {error}"[:200],
        "seconds": time.perf_counter() - began,
        "injected": found.injected(),
      }
    row["seconds"], row["injected"] = time.perf_counter() - began, found.injected()
    found.single = None
    same = (answered, operations.contents(folder)) == expected
    return row | {"outcome": SAME if same else DIFFERENT}


def drawn(server: servers.Server, count: int, seed: int) -> list[tuple[str, str, str, int]]:
  """Operation, kind of fault, pattern of the request, and its number."""
  draws = random.Random(f"{seed} {server.address}")
  pairs = list(itertools.product(operations.OPERATIONS, faults.KINDS))
  draws.shuffle(pairs)
  asked: dict[str, list[tuple[str, str]]] = {}
  found = []
  for name, kind in itertools.cycle(pairs):
    if len(found) == count:
      return found
    if name not in asked:
      asked[name] = requests(server, name, OURS)
    possible = [(m, o) for m, o in asked[name] if faults.applies(kind, m)]
    if possible:
      method, what = draws.choice(possible)
      number = 1 + draws.randrange(possible.count((method, what)))
      found.append((name, kind, f"^{method} {what} ", number))
  raise AssertionError


def run(store: str, count: int, seed: int) -> list[dict[str, Any]]:
  """The faults in one store, each with both clients."""
  rows = []
  with servers.SERVERS[store]() as server:
    supported: dict[str, bool] = {}
    for name, kind, pattern, number in drawn(server, count, seed):
      if name not in supported:
        without = inject(server, name, kind, "no request", 1, PLAIN)
        supported[name] = without["outcome"] == SAME
      for client_name in (OURS, PLAIN) if supported[name] else (OURS,):
        row = inject(server, name, kind, pattern, number, client_name)
        rows.append({"store": store} | row)
        print(*rows[-1].values(), flush=True)
  return rows


def price(store: str) -> list[dict[str, Any]]:
  """Seconds without faults: medians of alternating calls."""
  large = operations.LARGE
  folder = ""

  def small_files() -> None:
    for number in range(20):
      storage.write(f"{folder}/{number}", operations.SMALL)
      storage.read(f"{folder}/{number}")

  calls: dict[str, Callable[[], Any]] = {
    "20 small files, written and read": small_files,
    "listing": lambda: storage.names(folder),
    f"{len(large) / 2**20:.0f} MiB, written": lambda: storage.write(f"{folder}/large", large),
    f"{len(large) / 2**20:.0f} MiB, read": lambda: storage.read(f"{folder}/large"),
  }
  seconds = collections.defaultdict[tuple[str, str], list[float]](list)
  with servers.SERVERS[store]() as server:
    folder = f"{server.address}/price"
    for repeat in range(REPEATS + 1):
      for name in (OURS, PLAIN):
        with client(name, server):
          storage.write(f"{folder}/0", b"")  # Connects.
          for what, call in calls.items():
            began = time.perf_counter()
            call()
            if repeat:
              seconds[what, name].append(time.perf_counter() - began)
  found = []
  for what in calls:
    ours, plain = (statistics.median(seconds[what, name]) for name in (OURS, PLAIN))
    found.append({"store": store, "what": what, "seconds": ours, "plain": plain})
    found[-1]["ratio"] = ours / plain
  return found


def page(rows: list[dict[str, Any]], prices: list[dict[str, Any]], seed: int) -> str:
  """The results as a page."""
  reached = [r for r in rows if r["injected"]]
  total = sum(r["client"] == OURS for r in reached)
  counts = collections.Counter((r["client"], r["kind"], r["outcome"]) for r in reached)
  names, outcomes = (OURS, PLAIN), (SAME, ERROR, DIFFERENT)
  columns = [f"{name}: {outcome}" for name in names for outcome in outcomes]

  def cells(kinds: list[str]) -> str:
    numbers = (sum(counts[c, k, o] for k in kinds) for c in names for o in outcomes)
    return " | ".join(str(number) for number in numbers)

  lines = [
    "# Faults of object stores",
    "",
    f"`python -m benchmarks.store_faults --seed={seed}`: {total} single faults, each in one request of an",
    "operation of the file layer, in SeaweedFS (S3) and fake-gcs-server (GCS) on the same machine. *Same*: result and",
    f"files are those of a local disk. A stall takes {STALL:.0f} s; a request without an answer is repeated after",
    f"{SILENCE:.0f} s. *fsspec's clients*: without our retries and checks; they make other requests, so a few faults",
    "do not reach them, and what they do not support on these stores is left out.",
    "",
    f"| fault | {' | '.join(columns)} |",
    f"| --- |{' --- |' * len(columns)}",
    *(f"| {kind}: {told} | {cells([kind])} |" for kind, told in faults.KINDS.items()),
    f"| all | {cells(list(faults.KINDS))} |",
    "",
    "What the retries and checks cost without faults, medians of "
    f"{REPEATS} alternating calls in one process, on loopback:",
    "",
    f"| store | operation | seconds | {PLAIN} | ratio |",
    "| --- | --- | --- | --- | --- |",
    *(f"| {p['store']} | {p['what']} | {p['seconds']:.4f} | {p['plain']:.4f} | {p['ratio']:.2f} |"
      for p in prices),
  ]  # fmt: skip
  return "\n".join(lines) + "\n"


def main() -> int:
  """Injects, measures, and writes the results; 1 if the file layer failed or differed."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--faults", type=int, default=200)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--output", type=Path, default=HERE, help="folder of store_faults.{md,json}")
  args = parser.parse_args()
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
  prices = [row for store in servers.SERVERS for row in price(store)]
  retries.SILENCE = retries.CONNECT = SILENCE
  retries.CHUNK = operations.CHUNK
  each = args.faults // len(servers.SERVERS)
  rows = [row for store in servers.SERVERS for row in run(store, each, args.seed)]
  # Errors name paths of this machine.
  shown = [{name: value for name, value in row.items() if name != "error"} for row in rows]
  figures = {"seed": args.seed, "faults": shown, "price": prices}
  results.write(args.output, "store_faults", page(rows, prices, args.seed), figures)
  return int(any(row["outcome"] != SAME for row in rows if row["client"] == OURS))


if __name__ == "__main__":
  sys.exit(main())
