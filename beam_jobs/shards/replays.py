"""Replays of a cache: which dead letters each replay takes, and the present state of every row of the manifest.

Replay n takes all dead letters of its reasons that the job and the earlier replays left, and writes their rows to
shards `{split}.tfrecord-replay<n>.<i>-of-<N>` with their own sidecars and dead letters; clip k > 0 of a video goes to
`{split}.tfrecord-clip<k>.replay<n>.<i>-of-<N>`. The job's files do not change, so the counts follow from the files
alone: dead now = dead of the job - taken by replay 1 + dead of replay 1 - taken by replay 2 ... `<task>.replay<n>.json`
records what a replay takes; it is written before its first shard, and again, with `finished`, after its last.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam

from beam_jobs.shards import ledger, settings, shard_files
from beam_jobs.shards.ledger import Summary, Totals
from beam_jobs.shards.shard_files import LedgerError
from beam_jobs.sources.rows import PROBLEMS
from data import provenance
from walt_t5x.files import storage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
  """One replay.

  Args:
    number: 1, 2, ...
    reasons: reasons of the dead letters that it takes; None is all of them.
    buckets: number of shards per split that its rows are assigned to.
    settings: the job's settings with this replay's limits on media.
    finished: whether all its rows are accounted for.
  """

  number: int
  reasons: tuple[str, ...] | None
  buckets: Mapping[str, int]
  settings: Mapping[str, Any]
  finished: bool = False

  def takes(self, reason: str) -> bool:
    """Whether it takes dead letters of a reason; invalid manifest rows are never taken."""
    return reason not in PROBLEMS and (self.reasons is None or reason in self.reasons)

  def taken(self, dead: Mapping[str, int]) -> Counter:
    """Counts of the dead letters that it takes, by reason."""
    return Counter({reason: count for reason, count in dead.items() if self.takes(reason)})

  @property
  def decisive(self) -> dict[str, Any]:
    """Everything that decides the contents of its shards, as JSON values."""
    replay = {"number": self.number, "reasons": self.reasons, "buckets": dict(self.buckets)}
    return json.loads(json.dumps({**self.settings, "replay": replay}))

  @property
  def digest(self) -> str:
    """Digest of `decisive`, stored in the sidecars."""
    return settings.settings_digest(self.decisive)

  def write(self, output: str, task: str) -> None:
    """Writes its JSON file to the cache."""
    path = storage.join(output, f"{task}.replay{self.number:02d}.json")
    raw = {**self.decisive, "finished": self.finished}
    storage.write_json(path, raw, indent=2, sort_keys=True, seal=True)

  @classmethod
  def from_json(cls, raw: Mapping[str, Any]) -> "Replay":
    """The inverse of `write`."""
    replay = raw["replay"]
    return cls(
      number=replay["number"],
      reasons=None if replay["reasons"] is None else tuple(replay["reasons"]),
      buckets=replay["buckets"],
      settings={name: v for name, v in raw.items() if name not in ("replay", "finished")},
      finished=raw["finished"],
    )


def read_all(output: str, task: str) -> list[Replay]:
  """Replays of a cache in order.

  Raises:
    LedgerError: if a replay is missing, or was started before the previous one finished.
  """
  pattern = re.compile(re.escape(task) + r"\.replay\d{2,}\.json")
  found = [
    Replay.from_json(storage.read_json(storage.join(output, name)))
    for name in storage.names(output)
    if pattern.fullmatch(name)
  ]
  found.sort(key=lambda replay: replay.number)
  numbers = [replay.number for replay in found]
  if numbers != list(range(1, len(found) + 1)) or not all(r.finished for r in found[:-1]):
    raise LedgerError(
      f"{output}: got the replays {numbers} of {task!r}, expected 1, 2, ... and all but the last finished; some of "
      "their files were deleted: delete all */*replay* and *.replay* and replay again"
    )
  return found


def account(
  output: str, task: str, history: Sequence[Replay], *, folder: str | None = None
) -> Summary:
  """State of the rows of the manifest after the job and these replays, all of them finished.

  `folder` restricts the account to one task folder.

  Raises:
    LedgerError: if rows are unaccounted for.
  """

  def plan_of(number: int) -> dict[shard_files.ShardName, int]:
    plan = ledger.read_plan(output, task, number)
    return {shard: rows for shard, rows in plan.items() if folder in (None, shard.task)}

  digest = settings.settings_digest(settings.read(output, task))
  splits, quarantine = ledger.add_up(ledger.all_checked(output, plan_of(0), digest))
  for replay in history:
    sidecars = ledger.all_checked(output, plan_of(replay.number), replay.digest)
    mine, held = ledger.add_up(sidecars)
    quarantine |= held
    for where in sorted(splits.keys() | mine.keys()):
      before, now = splits.get(where, Totals()), mine.get(where, Totals())
      taken = replay.taken(before.dead)
      if taken.total() != now.rows:
        raise LedgerError(
          f"{'/'.join(where)}: replay {replay.number} accounts for {now.rows} rows, expected {taken.total()} dead "
          f"letters: {dict(taken)}; delete its files ({task}.replay{replay.number:02d}.* and "
          f"*/*replay{replay.number:02d}*) and run it again"
        )
      if now.rows:
        both = before + now
        splits[where] = dataclasses.replace(both, rows=before.rows, dead=both.dead - taken)
  completed = tuple(
    name
    for name in sorted({name for name, _ in splits})
    if storage.exists(storage.join(output, name, provenance.FILE_NAME))
  )
  return Summary(splits, completed, quarantine)


# --- the dead letters themselves ------------------------------------------------------------------


def dead_ledgers(output: str, task: str, history: Sequence[Replay]) -> list[tuple[str, int, int]]:
  """Dead letter files, each with the number of the replay that wrote it, 0 for the job, and of its clips."""
  found = []
  for number in (0, *(replay.number for replay in history)):
    names = sorted(ledger.read_plan(output, task, number))
    paths = [shard.path(output, shard_files.DEAD) for shard in names]
    there = storage.for_each(storage.exists, paths)
    marked = zip(paths, names, there, strict=True)
    found += [(path, number, shard.clip) for path, shard, is_there in marked if is_there]
  return found


def is_current(reason: str, written_by: int, history: Sequence[Replay]) -> bool:
  """Whether no later replay took a dead letter of the job (0) or of a replay."""
  return not any(replay.takes(reason) for replay in history if replay.number > written_by)


class TakenLines(beam.PTransform):
  """(clip, manifest line as bytes) of the dead letters that a replay takes; `history` are the replays before it."""

  def __init__(self, output: str, task: str, *, replay: Replay, history: Sequence[Replay]):
    super().__init__()
    self._sources = dead_ledgers(output, task, history)
    self._replay, self._history = replay, tuple(history)

  def expand(self, root):
    return (
      root
      | "DeadLetters" >> beam.Create(self._sources)
      | "Spread" >> beam.Reshuffle()
      | "Taken" >> beam.FlatMap(_taken_of, replay=self._replay, history=self._history)
    )


def _taken_of(
  source: tuple[str, int, int], *, replay: Replay, history: Sequence[Replay]
) -> Iterator[tuple[int, bytes]]:
  path, written_by, clip = source
  for entry in shard_files.read_ledger(path):
    reason = entry["reason"]
    if replay.takes(reason) and is_current(reason, written_by, history):
      yield clip, json.dumps(entry["row"], sort_keys=True).encode()


# --- the end --------------------------------------------------------------------------------------


def finalize(output: str, task: str, history: Sequence[Replay]) -> Summary:
  """Accounts for the last replay, writes stats and COMPLETED, and marks the replay finished.

  The provenance, including the latent statistics, remains that of the job.

  Raises:
    LedgerError: if rows are unaccounted for, or files are not in any plan.
  """
  summary = account(output, task, history)
  plan = dict(ledger.read_plan(output, task))
  for replay in history:
    plan |= ledger.read_plan(output, task, replay.number)
  for folder in summary.completed:
    ledger.check_folder(output, folder, plan)
    ledger.complete(output, folder, summary)
  dataclasses.replace(history[-1], finished=True).write(output, task)
  return summary


def reject_replayed(output: str, task: str) -> None:
  """Rejects a job on a cache with replays, which would count the replayed rows twice.

  Raises:
    ValueError: if there are replays; the message says what to do instead.
  """
  names = [f"{replay.number:02d}" for replay in read_all(output, task)]
  if names:
    raise ValueError(
      f"{output} holds replays {names} of task {task!r}: the job would count their rows twice. Run the dead letters "
      f"again with `python -m beam_jobs.replay`, or delete {task}.replay* and */*.tfrecord-replay* there first"
    )
