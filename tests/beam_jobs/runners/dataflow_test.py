"""A dry run names every flag that Dataflow would reject, and builds the job's graph without a network."""

import importlib.util
import pathlib
import re
import shlex

import pytest

from beam_jobs import preprocess
from beam_jobs.runners import dataflow, running

ROOT = pathlib.Path(__file__).resolve().parents[3]
JOB = {
  "manifest": "gs://bucket/rows/*.jsonl",
  "output": "gs://bucket/cache",
  "task": "corpus",
  "content": "pixels",
  "resolutions": "32x32",
}
FLAGS = {
  "runner": "DataflowRunner",
  "project": "my-project",
  "region": "us-central1",
  "temp_location": "gs://bucket/tmp",
  "sdk_container_image": "us-central1-docker.pkg.dev/my-project/media/walt_t5x:1",
  "machine_type": "g2-standard-8",
  "experiments": "no_use_multiple_sdk_containers",
  "dataflow_service_options": "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver",
}


def argv(**changes):
  values = {name: v for name, v in (JOB | FLAGS | changes).items() if v is not None}
  return ["--dry_run", *(f"--{name}={value}" for name, value in values.items())]


def test_the_graph_has_the_steps_of_a_local_run_and_its_workers_run_in_the_image(tmp_path):
  # Nothing here can access gs://: no client for it is installed, so access would fail.
  result = preprocess.run(argv())
  (tmp_path / "rows.jsonl").write_text('{"uri": "a.mp4", "caption": "x"}\n')
  local = {"manifest": tmp_path / "*.jsonl", "output": tmp_path / "out"}
  here = preprocess.run(["--dry_run", *(f"--{k}={v}" for k, v in (JOB | local).items())])
  assert not (tmp_path / "out").exists()
  assert result["steps"] == here["steps"] and result["shuffles"] == here["shuffles"]
  assert result["environments"] == ["docker:v1"] and "docker:v1" not in here["environments"]
  if importlib.util.find_spec("apitools"):  # The extra `gcp`.
    pool = result["worker_pool"]
    assert pool["machine_type"] == FLAGS["machine_type"]
    assert pool["image"] == FLAGS["sdk_container_image"]
    assert pool["service_options"] == [FLAGS["dataflow_service_options"]]
  else:
    assert result["worker_pool"] is None


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"project": None}, "--project: got nothing, expected the id"),
    ({"project": "123456"}, "--project: got '123456', expected the id .* not its number"),
    ({"region": None}, "--region: got nothing, expected one such as us-central1"),
    ({"region": "us-central1-a"}, "--region: got 'us-central1-a', .* not a zone"),
    ({"temp_location": None}, "--temp_location: got nothing, expected gs://BUCKET/FOLDER"),
    ({"temp_location": "/tmp"}, "--temp_location: got '/tmp', expected gs://BUCKET/FOLDER"),
    ({"staging_location": "gs://B!"}, "--staging_location: got 'gs://B!', expected gs://"),
    ({"sdk_container_image": None}, "--sdk_container_image: got nothing, .* docs/dataflow.md"),
    (
      {"sdk_container_image": "My Image"},
      "--sdk_container_image: got 'My Image', expected REGION-",
    ),
    ({"output": "/data/cache"}, "--output: got '/data/cache', a local path"),
    ({"manifest": "rows.jsonl"}, "--manifest: got 'rows.jsonl', a local path"),
    ({"media_root": "/media"}, "--media_root: got '/media', a local path"),
    ({"machine_type": "n1-standard-8"}, "--machine_type: got 'n1-standard-8', expected g2-"),
    ({"machine_type": None}, "--machine_type: got None, expected g2-"),
    ({"experiments": None}, "every core starts a process that loads its own encoders"),
    ({"num_workers": 9, "max_num_workers": 2}, r"num_workers \(9\) cannot exceed"),
    *(
      ({"dataflow_service_options": f"worker_accelerator{text}"}, message)
      for text, message in (
        ("=nvidia-l4", "expected worker_accelerator=type:nvidia-l4;count:1"),
        ("=type:nvidia-l4;install-nvidia-driver", "count is None, expected e.g. count:1"),
        ("=type:nvidia-l4;count:0;install-nvidia-driver", "count is '0', expected"),
        ("=type:nvidia-l4;count:1", "add ;install-nvidia-driver, or the workers see no GPU"),
        (
          "=type:nvidia-l4;count:1;install-nvidia-drivers",
          r"unknown fields \['install-nvidia-drivers'\]",
        ),
        ("=type:tpu-v5-lite-podslice;count:1", "topology is None, expected e.g. topology:2x4"),
        ("=type:tpu-v5-lite-podslice;topology:2x4", "--machine_type: .* expected ct5lp-"),
      )
    ),
  ],
)
def test_a_flag_that_dataflow_would_reject_is_named(changes, message):
  with pytest.raises(ValueError, match=message):
    preprocess.run(argv(**changes))


def test_all_problems_are_reported_at_once():
  with pytest.raises(ValueError) as error:
    preprocess.run(argv(project=None, region=None, temp_location=None, sdk_container_image=None))
  assert len(str(error.value).splitlines()) == 5


def test_a_tpu_and_a_plain_machine_pass():
  tpu = "worker_accelerator=type:tpu-v5-lite-podslice;topology:1x1"
  for changes in (
    {"dataflow_service_options": tpu, "machine_type": "ct5lp-hightpu-1t"},
    {"dataflow_service_options": None, "machine_type": "n2-standard-8", "experiments": None},
  ):
    options = running.beam_options(
      [f"--{k}={v}" for k, v in (FLAGS | changes).items() if v is not None]
    )
    assert dataflow.problems(options, {}) == []


def test_the_command_of_the_docs_passes(monkeypatch):
  text = (ROOT / "docs" / "dataflow.md").read_text()
  (block,) = re.findall(r"(?:^    .*\n)+", text[text.index("## The command") :], re.M)[:1]
  command = block.replace("\\\n", " ").replace("REGION", "us-central1").replace("PROJECT", "proj-1")
  command = command.replace("BUCKET", "bucket").replace("REPO", "repo")
  words = shlex.split(command)
  assert words[:3] == ["python", "-m", "beam_jobs.preprocess"]
  flags = [word.replace("vae.gin", "gin/models/vae_tiny.gin") for word in words[3:]]
  monkeypatch.chdir(ROOT)
  assert preprocess.run([*flags, *([] if "--dry_run" in flags else ["--dry_run"])])["steps"] > 10
