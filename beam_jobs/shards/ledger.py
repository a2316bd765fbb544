"""The end of a run: checks that every row of the plan is accounted for, then marks the folders complete."""

import dataclasses
import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from beam_jobs.shards import remedies, shard_files
from beam_jobs.shards.moments import Moments
from beam_jobs.shards.plan import plan_path
from beam_jobs.shards.shard_files import LedgerError
from data import provenance, schema
from walt_t5x.files import damage, storage


@dataclasses.dataclass
class Totals:
  """Outcomes of the rows of one split, or of all splits.

  `num_classes` is 1 + the largest label of a record, 0 without labels, and None if older sidecars do not record it.
  """

  rows: int = 0
  written: int = 0
  rejected: Counter = dataclasses.field(default_factory=Counter)
  dead: Counter = dataclasses.field(default_factory=Counter)
  quarantined: int = 0
  bytes: int = 0
  tokens: int = 0
  captions: int = 0
  captions_cut: int = 0
  longest_caption: int = 0
  without_condition: int = 0
  num_classes: int | None = 0
  psnr: Mapping[str, tuple[int, float]] = dataclasses.field(default_factory=dict)

  @classmethod
  def of(cls, sidecar: Mapping[str, Any]) -> "Totals":
    """Totals of one shard."""
    counts = ("rows", "written", "quarantined", "bytes", "tokens", "captions")
    # Older sidecars do not have these.
    added = ("captions_cut", "longest_caption", "without_condition")
    return cls(
      **{name: sidecar[name] for name in counts},
      **{name: sidecar.get(name, 0) for name in added},
      num_classes=sidecar.get("num_classes"),
      rejected=Counter(sidecar["rejected_by_reason"]),
      dead=Counter(sidecar["dead_by_reason"]),
      psnr={name: (v["count"], v["sum"]) for name, v in sidecar["psnr"].items()},
    )

  def __add__(self, other: "Totals") -> "Totals":
    apart = ("psnr", "num_classes")
    names = [field.name for field in dataclasses.fields(self) if field.name not in apart]
    sums = {name: getattr(self, name) + getattr(other, name) for name in names}
    sums["longest_caption"] = max(self.longest_caption, other.longest_caption)
    mine, theirs = self.num_classes, other.num_classes
    sums["num_classes"] = None if mine is None or theirs is None else max(mine, theirs)
    psnr = dict(self.psnr)
    for name, (count, total) in other.psnr.items():
      before = psnr.get(name, (0, 0.0))
      psnr[name] = (before[0] + count, before[1] + total)
    return Totals(**sums, psnr=psnr)

  def to_json(self) -> dict[str, Any]:
    """Plain values."""
    return {
      "rows": self.rows,
      "written": self.written,
      "rejected": self.rejected.total(),
      "dead": self.dead.total(),
      "quarantined": self.quarantined,
      "rejected_by_reason": dict(sorted(self.rejected.items())),
      "dead_by_reason": dict(sorted(self.dead.items())),
      "bytes": self.bytes,
      "captions": self.captions,
      "captions_cut": self.captions_cut,
      "longest_caption": self.longest_caption,
      "without_condition": self.without_condition,
      "num_classes": self.num_classes,
      "tokens": self.tokens,
      "psnr": {name: total / count for name, (count, total) in sorted(self.psnr.items())},
    }


@dataclasses.dataclass(frozen=True)
class Summary:
  """Totals by (task, split), the complete task folders, and the violations of each quarantined shard."""

  splits: Mapping[tuple[str, str], Totals]
  completed: tuple[str, ...]
  quarantine: Mapping[str, Sequence[str]]

  @property
  def all(self) -> Totals:
    """Totals of the run."""
    return sum(self.splits.values(), Totals())


def read_plan(output: str, task: str, replay: int = 0) -> dict[shard_files.ShardName, int]:
  """Number of rows that each shard of the job, or of a replay, must account for."""
  plan = storage.read_json(plan_path(output, task, replay))
  found = {shard: rows for name, rows in plan.items() if (shard := shard_files.parse_shard(name))}
  if len(found) < len(plan):
    raise LedgerError(
      f"{plan_path(output, task, replay)}: got {sorted(plan)[:3]}, expected names like "
      "<task>/<split>.tfrecord-<i>-of-<n>"
    )
  return found


def finalize(output: str, task: str, *, settings_digest: str, origin: Mapping[str, Any]) -> Summary:
  """Sums up and checks the sidecars, writes provenance, info and stats, and COMPLETED last.

  `origin` has the fields of `Provenance` except `latents`. Shards with another digest of the settings are rejected.

  Raises:
    LedgerError: if rows are unaccounted for, files do not belong to the plan, or no row was written.
  """
  plan = read_plan(output, task)
  folders = sorted({shard.task for shard in plan})
  try:
    sidecars = all_checked(output, plan, settings_digest)
    for folder in folders:
      check_folder(output, folder, plan)
  except LedgerError:
    _mark_incomplete(output, folders)
    raise
  splits, quarantine = add_up(sidecars)
  moments: dict[str, dict[str, Moments]] = {folder: {} for folder in folders}
  fields: dict[str, set[str]] = {folder: set() for folder in folders}
  for shard, sidecar in sidecars.items():
    # The statistics are those of the first clips, so that further clips do not change them.
    if not sidecar["quarantined"] and not shard.clip:
      fields[shard.task] |= set(sidecar["fields"])
      mine = moments[shard.task]
      for name, raw in sidecar["moments"].items():
        mine[name] = mine.get(name, Moments()) + Moments.from_json(raw)
  summary = Summary(splits, tuple(folder for folder in folders if fields[folder]), quarantine)
  _mark_incomplete(output, set(folders) - set(summary.completed))
  if not summary.completed:
    raise LedgerError(_nothing_written(output, summary.all))
  statistics = latent_statistics(moments)
  for folder in summary.completed:
    kept = provenance.Provenance(latents=statistics[folder], **origin)
    files = {provenance.FILE_NAME: json.loads(kept.to_json())}
    shards = [shard for shard in plan if shard.task == folder]
    for split in sorted({shard.split for shard in shards}):
      clips = {shard.clip for shard in shards if shard.split == split}
      files[f"info.{split}.json"] = {
        "num_shards": sum(shard.split == split and not shard.clip for shard in shards),
        "clips_per_video": len(clips),
        "features": schema.seqio_features(sorted(fields[folder])),
        "seqio_version": importlib.metadata.version("seqio"),
      }
    complete(output, folder, summary, files)
  return summary


def _nothing_written(output: str, totals: Totals) -> str:
  """Why no row was written, what to do about the most frequent reason, and the files that say more."""
  lost = totals.rejected + totals.dead
  text = f"none of {totals.rows} rows was written"
  if totals.quarantined:
    text += f": {totals.quarantined} are quarantined"
  if lost:
    reasons = ", ".join(f"{reason} {count}" for reason, count in lost.most_common())
    (most, _), *_ = lost.most_common(1)
    stage = "filter" if most in totals.rejected else "decode"
    text += f": {reasons}\n  {most}: {remedies.remedy(stage, most)}"
  ledgers = [(totals.rejected, "*" + shard_files.REJECTED), (totals.dead, "*" + shard_files.DEAD)]
  ledgers += [(totals.quarantined, shard_files.QUARANTINE + "*")]
  paths = [storage.join(output, "*", name) for count, name in ledgers if count]
  return f"{text}\n  then run the corrected command: the folder keeps nothing of this run; see {' and '.join(paths)}"


def add_up(
  sidecars: Mapping[shard_files.ShardName, Mapping[str, Any]],
) -> tuple[dict[tuple[str, str], Totals], dict[str, Sequence[str]]]:
  """Totals by (task, split), and the violations of each quarantined shard."""
  splits: dict[tuple[str, str], Totals] = {}
  quarantine: dict[str, Sequence[str]] = {}
  for shard, sidecar in sidecars.items():
    where = (shard.task, shard.split)
    splits[where] = splits.get(where, Totals()) + Totals.of(sidecar)
    if sidecar["quarantined"]:
      quarantine[str(shard)] = sidecar["quarantine"]["violations"]
  return splits, quarantine


def latent_statistics(
  moments: Mapping[str, Mapping[str, Moments]],
) -> dict[str, dict[str, provenance.LatentStatistics]]:
  """Mean and standard deviation of each latents field, per task folder.

  Fields of the same height and width share their statistics over all folders: images and videos of one resolution are
  normalized alike.
  """
  merged: dict[tuple[int, int], Moments] = {}
  for fields in moments.values():
    for name, part in sorted(fields.items()):
      size = schema.latents_shape(name)[1:]
      merged[size] = merged.get(size, Moments()) + part

  def statistics(name: str) -> provenance.LatentStatistics:
    mean, std = merged[schema.latents_shape(name)[1:]].mean_std()
    return provenance.LatentStatistics(channels=len(mean), mean=mean, std=std)

  return {
    folder: {name: statistics(name) for name in sorted(fields)}
    for folder, fields in moments.items()
  }


def all_checked(
  output: str, plan: Mapping[shard_files.ShardName, int], settings_digest: str
) -> dict[shard_files.ShardName, dict[str, Any]]:
  """Every shard of a plan and its sidecar, sorted by name.

  Raises:
    LedgerError: if one does not account for its rows or has other settings, or if a shard does not exist.
  """

  def checked(shard: shard_files.ShardName) -> dict[str, Any]:
    sidecar = shard_files.read_sidecar(output, shard)
    rows = plan[shard]
    if sidecar is None:
      raise LedgerError(
        f"{shard} has no sidecar: {rows} rows are unaccounted for; run the job again"
      )
    placed = sum(sidecar[k] for k in ("written", "rejected", "dead", "quarantined"))
    if not rows == sidecar["rows"] == placed:
      raise LedgerError(
        f"{shard}: the plan has {rows} rows, the sidecar {sidecar['rows']}, and {placed} were written, "
        "rejected, dead or quarantined; delete the sidecar and run the job again"
      )
    if sidecar["settings"] != settings_digest:
      raise LedgerError(f"{shard} was made with other settings; delete its sidecar and run again")
    if sizes[shard.task].get(shard.file_name) != sidecar["bytes"]:
      raise LedgerError(
        f"{shard} does not have the {sidecar['bytes']} bytes of its sidecar; run again"
      )
    return sidecar

  names = sorted(plan)
  sizes = {task: storage.sizes(storage.join(output, task)) for task in {n.task for n in names}}
  return dict(zip(names, storage.for_each(checked, names), strict=True))


def check_folder(output: str, folder: str, plan: Mapping[shard_files.ShardName, int]) -> None:
  """Deletes temporary files of killed workers.

  Raises:
    LedgerError: if a shard is not in the plan.
  """
  expected = {shard.file_name for shard in plan if shard.task == folder}
  for name in storage.names(storage.join(output, folder)):
    if name.startswith(storage.TEMPORARY):
      storage.delete(storage.join(output, folder, name))
    elif shard_files.parse_shard(f"{folder}/{name}") and name not in expected:
      raise LedgerError(
        f"{storage.join(output, folder, name)} is not a shard of this run, but seqio would read "
        "it; delete it and its sidecar"
      )


def complete(
  output: str, folder: str, summary: Summary, files: Mapping[str, Any] = MappingProxyType({})
) -> None:
  """Writes JSON files and stats.{split}.json of a folder and, last, COMPLETED, except those that are there already.

  A folder in which nothing changes stays complete for its readers.
  """
  trees = dict(files)
  for (task, split), totals in summary.splits.items():
    if task == folder:
      held = [name for name in summary.quarantine if name.startswith(f"{folder}/{split}.")]
      stats = {"examples": totals.written, "quarantined_shards": sorted(held)} | totals.to_json()
      trees[f"stats.{split}.json"] = stats
  contents = {
    storage.join(output, folder, name): damage.sealed_json(tree) for name, tree in trees.items()
  }
  there = storage.for_each(lambda item: shard_files.has(*item), contents.items())
  changed = [item for item, same in zip(contents.items(), there, strict=True) if not same]
  if changed:
    _mark_incomplete(output, [folder])
  for path, content in changed:
    storage.write(path, content)
  shard_files.update(storage.join(output, folder, "COMPLETED"), b"")


def _mark_incomplete(output: str, folders: Iterable[str]) -> None:
  for folder in folders:
    storage.delete(storage.join(output, folder, "COMPLETED"))


def rows_on_disk(output: str, task: str, replay: int = 0) -> int:
  """Number of rows in the shards that are closed so far, for progress lines."""
  if not storage.exists(plan_path(output, task, replay)):
    return 0
  plan = read_plan(output, task, replay)
  closed = {
    f"{folder}/{name}"
    for folder in {shard.task for shard in plan}
    for name in storage.names(storage.join(output, folder))
  }
  return sum(rows for shard, rows in plan.items() if f"{shard}{shard_files.SIDECAR}" in closed)
