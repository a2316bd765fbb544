"""Copies of public corpora with planted faults: a job and the preflight find each of them, and nothing else."""

import collections
import contextlib
import io
import json
import pathlib
import tarfile

import pyarrow.parquet as pq
import pytest

from beam_jobs import preflight, preprocess
from beam_jobs.shards.remedies import remedy
from data import schema, tfrecord
from data.lookalikes import corpora, ucf101
from data.lookalikes.corpus import NO_ROW, WRITTEN

# The flags of docs/reproduce.md that decide which rows are written; t2v has shorter clips here.
FLAGS = {
  "ucf101": ("--fps=25", "--num_frames=17", "--allow_upscale"),
  "k600": ("--fps=25", "--num_frames=17"),
  "imagenet": ("--num_frames=1", "--allow_upscale"),
  "t2v": ("--fps=8", "--num_frames=5"),
}
COMMON = ("--content=pixels", "--resolutions=32x32", "--decode_isolation=thread")
# Kind of a name that is not a row -> the reason of the preflight.
NAMES = {
  "hidden_file": "hidden",
  "hidden_folder": "hidden",
  "hidden_member": "hidden",
  "other_extension": "other_extension",
  "listed_but_missing": "listed_but_missing",
}


@pytest.fixture
def folder(request, tmp_path, monkeypatch):
  """A look-alike with faults; the current folder, so that flags are those of the documentation."""
  corpora.write_corpus(request.param, tmp_path / "corpus", faults=True, seconds=0.8)
  monkeypatch.chdir(tmp_path / "corpus")
  return request.param, tmp_path


@pytest.mark.parametrize("folder", corpora.CORPORA, indirect=True)
def test_every_planted_fault_is_found_and_every_other_row_is_written(folder, capsys):
  name, tmp_path = folder
  odd = json.loads((tmp_path / "corpus" / "faults.json").read_text())
  for number, (manifest, flags) in enumerate(corpora.CORPORA[name].SOURCES.items()):
    mine = [one for one in odd if one["manifest"] == manifest]
    # A cache of pixels needs no captions.
    mine = [one | {"expect": WRITTEN} if one["expect"] == "no_caption" else one for one in mine]
    argv = [f"--manifest={manifest}", *flags, *FLAGS[name], *COMMON]
    output = tmp_path / f"out{number}"
    result = preprocess.run([*argv, f"--output={output}", "--task=t", "--num_shards=1"])
    lost = _ledgers(output)
    labels = _labels(output)
    assert result["rows"] == _rows_of(name, manifest, mine)
    assert len(labels) == result["written"] == result["rows"] - len(lost)
    for one in mine:
      assert one["expect"] != WRITTEN or any(one["where"] in uri for uri in labels), one
    if name == "ucf101":
      classes = sorted(ucf101.CLASSES)
      assert all(classes.index(uri.split("/")[0]) == label for uri, label in labels.items())
    _check_places(lost, [one for one in mine if one["expect"] not in (WRITTEN, NO_ROW)])

    report = preflight.run([*argv, "--rows=1000", "--examples=100", f"--json={tmp_path}/r.json"])
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == report
    assert json.loads((tmp_path / "r.json").read_text()) == report
    _check_report(report, printed, result, mine)


def _rows_of(name, manifest, odd):
  """Number of rows of a manifest, by other readers."""
  root = pathlib.Path(manifest)
  if root.is_dir():
    patterns = {"ucf101": ["[!.]*/[!.]*.avi"], "imagenet": ["train/[!.]*/[!.]*.JPEG", "val/*.JPEG"]}
    return sum(len(list(root.glob(pattern))) for pattern in patterns[name])
  if manifest.endswith(".parquet"):
    return pq.read_metadata(manifest).num_rows
  if manifest.endswith(".csv"):
    return len(root.read_bytes().splitlines()) - 1
  keys = set()
  for path in root.parent.glob("*.tar"):
    with contextlib.suppress(tarfile.ReadError), tarfile.open(path) as tar:
      for member in tar:
        keys.add((path, member.name.partition(".")[0]))
  # A hidden member has no key. A sample in two parts and a damaged file are dead letters as well.
  more = sum(one["kind"] in ("members_apart", "truncated_tar") for one in odd)
  return len({key for key in keys if key[1]}) + more


def _labels(output):
  """Label by uri of the records that were written."""
  found = {}
  for path in output.glob("*/*.tfrecord-?????-of-?????"):
    records = map(schema.decode, tfrecord.read_records(io.BytesIO(path.read_bytes())))
    found |= {record.uri: record.label for record in records}
  return found


def _ledgers(output):
  """(reason, uri) of every row that was not written."""
  files = [*output.glob("*/*.dead.jsonl"), *output.glob("*/*.rejected.jsonl")]
  entries = [json.loads(line) for file in files for line in file.read_text().splitlines()]
  return [(entry["reason"], entry["uri"]) for entry in entries]


def _check_places(found, expected):
  """Each (reason, place) that was found is one that was planted, and the reverse."""
  left = list(found)
  for one in expected:
    matches = [pair for pair in left if pair[0] == one["expect"] and one["where"] in pair[1]]
    assert len(matches) == 1, one
    left.remove(matches[0])
  assert left == []


def _check_report(report, printed, result, mine):
  """The preflight names each fault and its place, and counts the rows that the job wrote."""
  rows = [fault for fault in report["faults"] if fault["of"] != "names"]
  places = [(fault["reason"], one["where"]) for fault in rows for one in fault["examples"]]
  _check_places(places, [one for one in mine if one["expect"] not in (WRITTEN, NO_ROW)])
  assert sum(fault["count"] for fault in rows) == len(places)
  reasons = collections.Counter()
  for fault in rows:
    reasons[fault["reason"]] += fault["count"]
  assert reasons == collections.Counter(result["rejected_by_reason"] | result["dead_by_reason"])
  assert report["rows"] == {"count": result["rows"], "exact": True, "read": result["rows"]}
  assert report["expected"]["written"] == result["written"]
  names = [fault for fault in report["faults"] if fault["of"] == "names"]
  for one in mine:
    if one["expect"] == NO_ROW:
      found = [fault for fault in names if fault["reason"] == NAMES[one["kind"]]]
      shown = [example["where"] for fault in found for example in fault["examples"]]
      assert any(one["where"] in s or one["where"].startswith(f"{s}/") for s in shown), one
  kinds = {NAMES[one["kind"]] for one in mine if one["expect"] == NO_ROW}
  assert {fault["reason"] for fault in names} == kinds
  for fault in report["faults"]:
    assert f"  {fault['reason']}: {fault['count']}" in printed
    assert fault["remedy"] == remedy(fault["stage"], fault["reason"]) and fault["remedy"] in printed
