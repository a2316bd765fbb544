"""The runner of scripted stages: results and failures, and what an interrupted sequence runs again."""

import json

import pytest

from scripts import stages

_PROGRAM = (
  "import json, os, sys; from pathlib import Path; open(sys.argv[1], 'a').write(sys.argv[2]); "
  "assert sys.argv[2] != 'bad' or os.environ.get('MENDED'), 'broken'; "
  "print(json.dumps({'said': sys.argv[2]}))"
)


def _stage(log, name, **environment):
  command = ["python", "-c", _PROGRAM, str(log), name]
  return stages.Stage(name, command, lambda printed: f"{printed['said']}!", environment)


def test_an_interrupted_sequence_runs_only_what_is_missing(tmp_path, monkeypatch, capfd):
  log, record = tmp_path / "log", tmp_path / "finished.json"
  todo = [_stage(log, name) for name in ("a", "bad", "c")]
  with pytest.raises(SystemExit, match=r"(?s)bad failed \(status 1\).*python -c"):
    stages.run_all(todo, record, lambda stage: 1)
  assert log.read_text() == "abad" and list(json.loads(record.read_text())) == ["a"]
  monkeypatch.setenv("MENDED", "1")
  done, printed = stages.run_all(todo, record, lambda stage: 1)
  assert log.read_text() == "abad" + "badc"
  assert [d.result for d in done] == ["a!", "bad!", "c!"]
  assert printed["c"] == {"said": "c"} and all(d.peak_mib > 1 for d in done)
  assert stages.run_all(todo, record, lambda stage: 1) == (done, printed)
  assert log.read_text() == "abad" + "badc"
  # Another command runs again, and so does what follows.
  todo[1] = _stage(log, "bad", OTHER="1")
  stages.run_all(todo, record, lambda stage: 1)
  assert log.read_text() == "abad" + "badc" + "badc"
  assert "OTHER=1 python -c" in capfd.readouterr().out
