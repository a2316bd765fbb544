"""Offline checks of a Dataflow job: its flags, and the graph that it would submit. They need no project and no network.

Sources: Beam's `PipelineOptionsValidator`, `DataflowRunner` and Dataflow client; the documentation of Compute Engine
machine families and of accelerators on Dataflow.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

# The machine family of each accelerator.
_FAMILIES = {
  "nvidia-l4": "g2-",
  "nvidia-tesla-t4": "n1-",
  "nvidia-tesla-p4": "n1-",
  "nvidia-tesla-p100": "n1-",
  "nvidia-tesla-v100": "n1-",
  "nvidia-tesla-a100": "a2-highgpu-",
  "nvidia-a100-80gb": "a2-ultragpu-",
  "nvidia-h100-80gb": "a3-highgpu-",
  "tpu-v5-lite-podslice": "ct5lp-",
  "tpu-v5p-slice": "ct5p-",
  "tpu-v6e-slice": "ct6e-",
}
_IMAGE = re.compile(
  r"(?P<path>[a-z0-9.-]+(:\d+)?(/[a-z0-9._-]+)+)(?P<version>:[\w.-]+|@sha256:[0-9a-f]{64})?"
)
_BUCKET = (re.compile(r"gs://[a-z0-9][-_a-z0-9.]+[a-z0-9](/.*)?"), "gs://BUCKET/FOLDER")
# What each of Beam's flags must match, and its description.
_FLAGS = {
  "project": (
    re.compile(r"[a-z][-a-z0-9:.]+[a-z0-9]"),
    "the id of a Google Cloud project, not its number or its name",
  ),
  "region": (re.compile(r"[a-z]+-[a-z]+\d+"), "one such as us-central1, not a zone"),
  "temp_location": _BUCKET,
  "staging_location": _BUCKET,
  "sdk_container_image": (
    _IMAGE,
    "REGION-docker.pkg.dev/PROJECT/REPOSITORY/IMAGE:TAG, which docs/dataflow.md builds: Beam's own image has neither "
    "jax nor this code",
  ),
}
# Dataflow rejects larger requests.
_LARGEST_GRAPH = 10 << 20


def is_dataflow(options: Any) -> bool:
  """Whether the runner is Dataflow."""
  from apache_beam.options.pipeline_options import StandardOptions

  return options.view_as(StandardOptions).runner.rpartition(".")[2] == "DataflowRunner"


def interrupted(options: Any, pipeline: Any) -> str:
  """What is true after Ctrl-C: the launcher has ended, and its job has not."""
  values = options.get_all_options()
  where = f"--region={values['region']} --project={values['project']}"
  result = getattr(pipeline, "result", None)
  if result is None:
    return (
      "interrupted while the job was sent to Dataflow; whether it runs there is shown by\n"
      f"  gcloud dataflow jobs list {where} --status=active"
    )
  return (
    f"interrupted; job {result.job_id()} continues on Dataflow. To cancel it:\n"
    f"  gcloud dataflow jobs cancel {result.job_id()} {where}\n"
    "Once it has ended, run the same command again: finished shards are kept, and the cache is completed."
  )


def problems(options: Any, paths: Mapping[str, str | None]) -> list[str]:
  """Flags that Dataflow would reject or that would fail on a worker; each line says what to set.

  `paths` are our flags that name files which workers read or write; None if a flag is not set.
  """
  found = []
  values = options.get_all_options()
  for name, (pattern, expected) in _FLAGS.items():
    value = values[name]
    if not pattern.fullmatch(value or "") and (value or name != "staging_location"):
      found.append(f"--{name}: got {repr(value) if value else 'nothing'}, expected {expected}")
  for name, path in paths.items():
    if path is not None and "://" not in path:
      found.append(f"--{name}: got {path!r}, a local path; expected gs://BUCKET/...")
  return found + _accelerator_problems(values)


def _accelerator_problems(values: Mapping[str, Any]) -> list[str]:
  found = []
  for service, fields in _accelerators(values):
    flag = f"--dataflow_service_options: got {service!r}"
    tpu = fields.get("type", "").startswith("tpu-")
    number, wanted = ("topology", r"\d+x\d+(x\d+)?") if tpu else ("count", r"[1-9]\d*")
    unknown = fields.keys() - {"type", "topology", "count", "install-nvidia-driver"}
    if not fields.get("type"):
      found.append(
        f"{flag}, expected worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver or "
        "worker_accelerator=type:tpu-v5-lite-podslice;topology:1x1"
      )
      continue
    if unknown:
      found.append(
        f"{flag}: unknown fields {sorted(unknown)}, expected type, count or topology, and the driver"
      )
    if not re.fullmatch(wanted, fields.get(number, "")):
      example = "topology:2x4" if tpu else "count:1"
      found.append(f"{flag}: {number} is {fields.get(number)!r}, expected e.g. {example}")
    if not tpu and "install-nvidia-driver" not in fields:
      found.append(f"{flag}: add ;install-nvidia-driver, or the workers see no GPU")
    family = _FAMILIES.get(fields["type"])
    if family and not (values["machine_type"] or "").startswith(family):
      found.append(
        f"--machine_type: got {values['machine_type']!r}, expected {family}... for {fields['type']} "
        "(with the same number of them)"
      )
    if "no_use_multiple_sdk_containers" not in (values["experiments"] or []):
      found.append(
        "--experiments: add no_use_multiple_sdk_containers, or every core starts a process that loads its own "
        "encoders onto the one accelerator"
      )
  return found


def _accelerators(values: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
  """Each option `worker_accelerator=type:T;count:N;install-nvidia-driver` with its fields."""
  for service in values["dataflow_service_options"] or []:
    name, _, fields = service.partition("=")
    if name.startswith("worker_accelerator"):
      pairs = (field.partition(":") for field in fields.split(";") if field)
      yield service, {field: value for field, _, value in pairs}


def notes(options: Any, paths: Mapping[str, str | None]) -> list[str]:
  """Warnings about flags that may be correct but are worth checking.

  `paths` are our flags that name files which the launcher and the workers read from the same path.
  """
  values = options.get_all_options()
  found = [
    f"--{name}={path} must also exist in the image, at the same path"
    for name, path in paths.items()
    if path is not None and "://" not in path
  ]
  image = _IMAGE.fullmatch(values["sdk_container_image"] or "")
  if image and image["version"] in (None, ":latest"):
    found.append("--sdk_container_image has no version; a tag keeps late workers on the same code")
  found += [
    f"accelerator {kind!r} is not one of {sorted(_FAMILIES)}: its machine type was not checked"
    for _, fields in _accelerators(values)
    if (kind := fields.get("type")) and kind not in _FAMILIES
  ]
  if (values["number_of_worker_harness_threads"] or 12) > 4:
    found.append(
      "--number_of_worker_harness_threads: each thread makes a shard; 2 threads keep decoding and encoding busy"
    )
  return found


# --- the graph ------------------------------------------------------------------------------------


def graph_of(pipeline: Any, options: Any) -> Any:
  """The pipeline proto that the service receives, with pickled code and the worker image.

  Raises:
    ValueError: if the graph is too large or fails Beam's own checks.
  """
  from apache_beam.options.pipeline_options import WorkerOptions
  from apache_beam.portability import common_urns
  from apache_beam.runners.pipeline_utils import (
    group_by_key_input_visitor,
    validate_pipeline_graph,
  )
  from apache_beam.transforms import environments

  image = options.view_as(WorkerOptions).sdk_container_image
  environment = None
  if is_dataflow(options):
    environment = environments.DockerEnvironment.from_container_image(image)
    pipeline.visit(group_by_key_input_visitor(True))
  graph = pipeline.to_runner_api(default_environment=environment)
  validate_pipeline_graph(graph)
  if is_dataflow(options):
    for found in graph.components.environments.values():
      docker = environments.resolve_anyof_environment(found, common_urns.environments.DOCKER.urn)
      found.CopyFrom(docker)
  if graph.ByteSize() > _LARGEST_GRAPH:
    raise ValueError(
      f"the job's graph has {graph.ByteSize()} bytes, Dataflow accepts {_LARGEST_GRAPH}: pass fewer --class_names "
      "or a shorter --validation_list, which are part of the graph"
    )
  return graph


def summary(graph: Any) -> dict[str, Any]:
  """Size and steps of a graph."""
  from apache_beam.portability import common_urns

  environments = graph.components.environments.values()
  leaves = [t for t in graph.components.transforms.values() if not t.subtransforms]
  urns = Counter(transform.spec.urn for transform in leaves)
  return {
    "graph_bytes": graph.ByteSize(),
    "steps": len(leaves),
    "shuffles": urns[common_urns.primitives.GROUP_BY_KEY.urn],
    "environments": sorted({one.urn.rpartition(":env:")[2] for one in environments}),
  }


def worker_pool(graph: Any, options: Any) -> dict[str, Any] | None:
  """The worker pool in the job description of Beam's Dataflow client; None without the extra `gcp`."""
  try:
    from apache_beam.runners.dataflow.internal import apiclient
  except ImportError:
    return None
  from google.protobuf import json_format

  job = apiclient.Job(options, graph)
  environment = apiclient.Environment(
    packages=[],
    options=options,
    environment_version=apiclient._FNAPI_ENVIRONMENT_MAJOR_VERSION,
    proto_pipeline_staged_url=f"{job.google_cloud_options.staging_location}/pipeline.pb",
    proto_pipeline=graph,
  )
  raw = json_format.MessageToDict(environment.proto._pb)
  (pool,) = raw["workerPools"]
  image = pool["sdkHarnessContainerImages"][0]
  return {
    "machine_type": pool.get("machineType"),
    "disk_gb": pool.get("diskSizeGb"),
    "threads": pool.get("numThreadsPerWorker"),
    "image": image["containerImage"],
    "service_options": raw.get("serviceOptions", []),
    "experiments": raw.get("experiments", []),
  }
