"""One shard on disk: its records, the ledger of rows that did not become records, and its sidecar.

The sidecar is written last. A shard without a sidecar, with one for other rows or settings, or with files that differ
from its digests, is made again.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from beam_jobs.shards import quality
from beam_jobs.shards.moments import Moments
from beam_jobs.sources.rows import Row
from data import schema, tfrecord
from walt_t5x.files import storage
from walt_t5x.files.damage import Damaged, parsed
from walt_t5x.files.fingerprint import file_sha256

SIDECAR, DEAD, REJECTED = ".sidecar.json", ".dead.jsonl", ".rejected.jsonl"
QUARANTINE = "quarantine."


class LedgerError(RuntimeError):
  """Rows that are unaccounted for, or files that do not belong to the run."""


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class ShardName:
  """Identifies a shard: cached task folder, split, index and number of shards.

  `clip` is the number of the clip of each video, from 0 (--clips_per_video). `replay` is 0 for a shard of the job
  itself. Shards of a replay have the job's `count`, whatever their number is, because SeqIO finds shards by it.
  """

  task: str
  split: str
  index: int
  count: int
  clip: int = 0
  replay: int = 0

  @property
  def file_name(self) -> str:
    """Name of the TFRecord file, as seqio expects it."""
    clip = f"clip{self.clip:02d}." if self.clip else ""
    replay = f"replay{self.replay:02d}." if self.replay else ""
    return f"{self.split}.tfrecord-{clip}{replay}{self.index:05d}-of-{self.count:05d}"

  def path(self, output: str, suffix: str = "") -> str:
    """Path of the TFRecord file, or of a file next to it."""
    return storage.join(output, self.task, self.file_name + suffix)

  def quarantine_path(self, output: str) -> str:
    """Path of the records of a quarantined shard; seqio's file pattern does not match it."""
    return storage.join(output, self.task, QUARANTINE + self.file_name)

  def __str__(self) -> str:
    return f"{self.task}/{self.file_name}"


_NAME = re.compile(
  r"(?P<task>.+)/(?P<split>\w+)\.tfrecord-(?:clip(?P<clip>\d{2,})\.)?(?:replay(?P<replay>\d{2,})\.)?"
  r"(?P<index>\d+)-of-(?P<count>\d+)"
)


def parse_shard(name: str) -> ShardName | None:
  """The inverse of `str(ShardName)`; None for any other name."""
  match = _NAME.fullmatch(name)
  if not match:
    return None
  return ShardName(
    task=match["task"],
    split=match["split"],
    index=int(match["index"]),
    count=int(match["count"]),
    clip=int(match["clip"] or 0),
    replay=int(match["replay"] or 0),
  )


class ShardWriter(contextlib.AbstractContextManager):
  """Receives each row of one shard exactly once and closes the shard with a sidecar.

  If the block raises, no shard and no sidecar is written. A shard outside the quality band is quarantined: its records
  go to `quarantine.<name>`, an empty file replaces it, and the sidecar lists the violations.
  """

  def __init__(
    self,
    output: str,
    shard: ShardName,
    *,
    settings_digest: str,
    rows_digest: str,
    band: quality.Band | None = None,
  ):
    self._output, self._shard = output, shard
    self._band = band or quality.Band()
    self._sidecar: dict[str, Any] = {
      "schema_version": schema.SCHEMA_VERSION,
      "shard": str(shard),
      "settings": settings_digest,
      "manifest_rows": rows_digest,
    }
    self._ledger: dict[str, list[dict[str, Any]]] = {DEAD: [], REJECTED: []}
    counts = ("written", "bytes", "captions", "captions_cut", "tokens", "without_condition")
    self._content = Counter[str]({name: 0 for name in (*counts, "longest_caption", "num_classes")})
    self._moments: dict[str, Moments] = {}
    self._fields: set[str] = set()
    self._psnr: dict[str, list[float]] = {}
    self._sha256 = hashlib.sha256()
    self._file = storage.writer(shard.path(output))

  def __enter__(self) -> "ShardWriter":
    # The folder is incomplete until finalize has run again.
    storage.delete(storage.join(self._output, self._shard.task, "COMPLETED"))
    for suffix in (SIDECAR, DEAD, REJECTED):
      storage.delete(self._shard.path(self._output, suffix))
    storage.delete(self._shard.quarantine_path(self._output))
    self._stream = self._file.__enter__()
    return self

  def write(self, record: schema.Record, *, token_lengths: Sequence[int] = ()) -> None:
    """Appends one record; `token_lengths` are those of its captions before they were cut."""
    framed = tfrecord.frame(schema.encode(record))
    self._stream.write(framed)
    self._sha256.update(framed)
    tokens = sum(len(ids) for ids in record.text_ids)
    self._content.update(
      written=1,
      bytes=len(framed),
      captions=len(record.captions),
      captions_cut=sum(n > len(ids) for n, ids in zip(token_lengths, record.text_ids)),
      tokens=tokens,
      without_condition=bool(record.latents)
      and not any(record.captions)
      and record.label == schema.NO_LABEL,
    )
    for name, value in (
      ("longest_caption", max([*token_lengths, 0])),
      ("num_classes", record.label + 1),
    ):
      self._content[name] = max(self._content[name], value)
    self._fields |= record.latents.keys() | record.pixels.keys()
    for name, latents in record.latents.items():
      self._moments[name] = self._moments.get(name, Moments()) + Moments.of(latents)

  def measure(self, name: str, psnr: float) -> None:
    """Adds the decode PSNR of one sampled row, in dB."""
    self._psnr.setdefault(name, []).append(psnr)

  def fail(self, row: Row, *, stage: str, reason: str, message: str) -> None:
    """Adds a row to the ledger, with the manifest row so that it can be run again.

    Rows that fail in the stage 'filter' are rejected; those of other stages are dead letters.
    """
    entry = {
      "uri": row.uri,
      "id": row.key,
      "stage": stage,
      "reason": reason,
      "error": message,
      "row": row.raw,
    }
    self._ledger[REJECTED if stage == "filter" else DEAD].append(entry)

  def __exit__(self, kind, error, trace) -> None:
    self._file.__exit__(kind, error, trace)
    if kind is not None:
      return
    ledgers = {}
    for suffix, entries in self._ledger.items():
      if entries:
        lines = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in entries)
        storage.write(self._shard.path(self._output, suffix), lines)
        ledgers[suffix] = _entries_digest(entries)
    rejected, dead = (
      Counter(entry["reason"] for entry in self._ledger[suffix]) for suffix in (REJECTED, DEAD)
    )
    measured = {
      "fields": sorted(self._fields),
      "moments": {name: moments.to_json() for name, moments in self._moments.items()},
      "psnr": {name: {"count": len(v), "sum": sum(v)} for name, v in self._psnr.items()},
    }
    violations = self._band.violations(measured)
    written = self._content["written"]
    content: dict[str, Any] = {**self._content, "sha256": self._sha256.hexdigest()}
    if violations:
      storage.rename(self._shard.path(self._output), self._shard.quarantine_path(self._output))
      storage.write(self._shard.path(self._output), b"")
      held = {"quarantine": content | {"violations": violations}, "quarantined": written}
      content = dict.fromkeys(content, 0) | {"sha256": hashlib.sha256().hexdigest()} | held
    self.sidecar = {
      **self._sidecar,
      "rows": written + rejected.total() + dead.total(),
      "rejected": rejected.total(),
      "dead": dead.total(),
      "quarantined": 0,
      "ledgers": ledgers,
      "rejected_by_reason": dict(rejected),
      "dead_by_reason": dict(dead),
      **measured,
      **content,
    }
    path = self._shard.path(self._output, SIDECAR)
    storage.write_json(path, self.sidecar, indent=2, sort_keys=True, seal=True)


def rows_digest(lines: Sequence[str]) -> str:
  """sha256 of the manifest lines of a shard, independent of their order."""
  digest = hashlib.sha256()
  for line in sorted(lines):
    digest.update(f"{len(line)}:{line}\n".encode())
  return digest.hexdigest()


def read_sidecar(output: str, shard: ShardName) -> dict[str, Any] | None:
  """A shard's sidecar, or None if it is missing or damaged: a power failure may leave an empty one."""
  try:
    return storage.read_json(shard.path(output, SIDECAR))
  except (FileNotFoundError, ValueError):
    return None


def complete_sidecar(
  output: str, shard: ShardName, *, settings_digest: str, rows_digest: str
) -> dict[str, Any] | None:
  """The sidecar of a complete shard: same settings, same rows, and files of the recorded size and digests.

  Reads all bytes of the shard, about as fast as `beam_jobs.verify`.
  """
  sidecar = read_sidecar(output, shard)
  complete = (
    sidecar is not None
    and sidecar["schema_version"] == schema.SCHEMA_VERSION
    and sidecar["settings"] == settings_digest
    and sidecar["manifest_rows"] == rows_digest
  )
  if sidecar is None or not complete:
    return None
  changed = damaged_files(output, shard, sidecar)
  if not changed:
    return sidecar
  logging.warning("%s: the shard is made again", "; ".join(changed))
  return None


def damaged_files(
  output: str, shard: ShardName, sidecar: Mapping[str, Any], *, records: bool = True
) -> list[str]:
  """What is wrong with the files of a shard whose digests its sidecar has; `records` includes its records."""
  expected = {}
  if records:
    expected[shard.path(output)] = sidecar["sha256"]
  if sidecar["quarantined"]:
    expected[shard.quarantine_path(output)] = sidecar["quarantine"]["sha256"]
  found = []
  for path, digest in expected.items():
    try:
      if file_sha256(path) != digest:
        found.append(f"{path}: sha256 differs from the sidecar's")
    except FileNotFoundError:
      found.append(f"{path} is missing")
  for suffix in sidecar.get("ledgers", ()):
    try:
      read_ledger(shard.path(output, suffix), sidecar)
    except (Damaged, FileNotFoundError) as error:
      found.append(str(error))
  return found


def read_ledger(path: str, sidecar: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
  """The entries of a file of dead letters or rejected rows; `sidecar` is that of its shard, read by default.

  Raises:
    Damaged: it changed after it was written, or a line is not JSON.
  """
  suffix = DEAD if path.endswith(DEAD) else REJECTED
  noted = sidecar or storage.read_json(path.removesuffix(suffix) + SIDECAR)
  entries = [parsed(line, name=path) for line in storage.read(path).splitlines()]
  expected = noted.get("ledgers", {}).get(suffix)
  if expected not in (None, _entries_digest(entries)):
    raise Damaged(
      f"{path} was changed after it was written: its entries are not those of its sidecar. Run the "
      "`beam_jobs.preprocess` command that made it again."
    )
  return entries


def _entries_digest(entries: Sequence[Mapping[str, Any]]) -> str:
  """sha256 of a ledger without its messages, which name places of the machine."""
  rest = [{name: value for name, value in entry.items() if name != "error"} for entry in entries]
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def update(path: str, content: bytes) -> None:
  """Writes a file unless it has this content."""
  if not has(path, content):
    storage.write(path, content)


def has(path: str, content: bytes) -> bool:
  """Whether a file exists with this content."""
  try:
    return storage.read(path, max_bytes=len(content)) == content
  except (FileNotFoundError, storage.TooLarge):
    return False
