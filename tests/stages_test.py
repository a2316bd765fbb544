"""The runner of scripted stages: results and failures, and what an interrupted sequence runs again."""

import json
import os

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


def test_lanes_run_side_by_side_on_their_own_cores_and_resume_each_by_itself(tmp_path, capfd):
  log, record = tmp_path / "log", tmp_path / "finished.json"
  # Each lane waits for a file of the other one: this ends only if both run at the same time.
  meet = (
    "import json, os, sys, time; from pathlib import Path; me, other = map(Path, sys.argv[1:]); me.touch()\n"
    "while not other.exists(): time.sleep(0.01)\n"
    "print('met', file=sys.stderr); cores = getattr(os, 'sched_getaffinity', lambda _: {me.name})(0)\n"
    "print(json.dumps({'cores': sorted(cores)}))"
  )

  def meeting(me, other):
    command = ["python", "-c", meet, str(tmp_path / me), str(tmp_path / other)]
    return stages.Stage(me, command, lambda printed: str(printed["cores"]))

  steps = [([meeting("a", "b")], [meeting("b", "a"), _stage(log, "c")]), _stage(log, "d")]
  done, printed = stages.run_all(steps, record, lambda stage: 1)
  assert [d.name for d in done] == ["a", "b", "c", "d"] and log.read_text() == "cd"
  if len(os.sched_getaffinity(0)) > 1:
    assert not set(printed["a"]["cores"]) & set(printed["b"]["cores"])
  assert {"a | met", "b | met"} <= set(capfd.readouterr().out.splitlines())
  seconds = {"a": 5.0, "b": 1.0, "c": 2.0, "d": 1.0}
  assert stages.duration(steps, lambda stage: seconds[stage.name]) == 6
  # A changed stage runs again with what follows in its lane and after the lanes, the other lane does not.
  steps[0][1][1] = _stage(log, "c", OTHER="1")
  stages.run_all(steps, record, lambda stage: 1)
  assert log.read_text() == "cdcd" and capfd.readouterr().out.count("| met") == 0


def test_a_failing_lane_stops_the_others(tmp_path):
  sleeper = stages.Stage("sleeper", ["python", "-c", "import time; time.sleep(300)"], str)
  steps = [([sleeper, _stage(tmp_path / "log", "after")], [_stage(tmp_path / "log", "bad")])]
  with pytest.raises(SystemExit, match=r"bad failed \(status 1\)"):
    stages.run_all(steps, tmp_path / "finished.json", lambda stage: 1)
  assert (tmp_path / "log").read_text() == "bad"
