"""Generates videos: from prompts, from an image, or as a continuation of a clip.

  python -m walt_t5x.generate --run=runs/base --run=runs/sr1 --prompt="a red square moves right"
  python -m walt_t5x.generate --preset=FOLDER --prompt="a red square moves right"
  python -m walt_t5x.generate --gin_file=gin/tiny/generate.gin --prompt="a red square moves right" \\
    --gin.BASE_CHECKPOINT=\\"runs/base\\" --output=samples

Writes a file per stage and format, a JSON sidecar per sample, a manifest, and an HTML gallery that opens from disk.
After an interruption the same command generates the missing samples with the same bytes; another command is rejected.
Errors are reported before a stage's weights are read. See docs/generation.md.
"""

import dataclasses
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from walt_t5x.config import gin_flags, programs, usage
from walt_t5x.config.waiting import waiting
from walt_t5x.files.paths import AnyPath, as_path
from walt_t5x.generation import cascade_flags

_GALLERY_SAMPLES = 200
_TENSORBOARD_SAMPLES = 8
_CUT_SHOWN = 3
_FOLDER = "samples"

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags of the program."""
  cascade_flags.define_flags()
  with gin_flags.group("what to generate"):
    flags.DEFINE_multi_string("prompt", [], "A prompt; may be repeated.")
    flags.DEFINE_string("prompts_file", None, "Text file with one prompt per line.")
    flags.DEFINE_string("requests", None, "JSON lines with prompt, label, image or video each.")
    flags.DEFINE_integer("num_samples", 1, "Clips per prompt.", lower_bound=1)
    flags.DEFINE_list("stages", [], "The cascade's first stages, such as base,sr1; all by default.")
    flags.DEFINE_integer("extensions", 0, "0 makes the trained length; each one adds frames.", 0)
    flags.DEFINE_integer("seed", 0, "The same command and seed give the same bytes.", 0, 2**31 - 1)
  with gin_flags.group("conditioning on frames"):
    flags.DEFINE_string("image", None, "Image that every clip starts from.")
    flags.DEFINE_string("video", None, "Clip that every clip continues.")
    flags.DEFINE_string(
      "fit", "exact", "'crop' crops and resizes conditioning media; 'exact' rejects."
    )
    flags.DEFINE_boolean(
      "decoded_conditioning", False, "Start with the reconstruction of the conditioning frames."
    )
  with gin_flags.group("output"):
    flags.DEFINE_string(
      "output",
      None,
      "Folder of the samples; required with --gin_file, otherwise samples by default.",
    )
    flags.DEFINE_list("formats", ["mp4"], "Some of mp4, webm, gif, png, latents.")
    flags.DEFINE_float(
      "fps", None, "Frame rate of the files; that of the training data by default.", 0.1
    )
    flags.DEFINE_boolean(
      "stream",
      False,
      "Write each stage's clips as soon as the stage has made them, with a line of JSON on stdout for each.",
    )
    flags.DEFINE_string("tensorboard", None, "TensorBoard folder for clips and timings.")
  with gin_flags.group("the work of this job"):
    flags.DEFINE_integer("batch_size", 32, "Clips generated together, at most.", lower_bound=1)
    flags.DEFINE_string("shard", "0/1", "This job's part of the samples, such as 3/8.")


def read_shard(text: str) -> tuple[int, int]:
  """(number, count) from '3/8'; raises ValueError for another form."""
  number, slash, count = text.partition("/")
  if not (slash and number.isdigit() and count.isdigit() and int(number) < int(count)):
    raise ValueError(f"--shard={text}: expected NUMBER/COUNT with 0 <= NUMBER < COUNT, such as 3/8")
  return int(number), int(count)


def run(
  config: Any,
  requests: Sequence[Any],
  settings: Any,
  *,
  output: str | None,
  shard: tuple[int, int] = (0, 1),
  log_dir: str | None = None,
  described: str = "",
  details: Mapping[str, Any] | None = None,
  streamed: Callable[[int, str, AnyPath], None] | None = None,
) -> dict[str, Any]:
  """Generates the missing samples in the folder `output`; returns a summary.

  Args:
    config: the cascade, a `generation.loading.CascadeConfig`.
    requests: what to generate, `generation.requests.Request`s.
    settings: `generation.prepared_requests.SamplingSettings`.
    output: folder of the samples; None for `samples`, or `samples_2` and so on if that has those of another command.
    shard: (number, count) of this job.
    log_dir: TensorBoard folder; None writes no events.
    described: what tells the cascade from others; stored with the samples.
    details: entries of every sample's record, such as the identity of a preset.
    streamed: called for each clip of each stage as soon as it exists, see `generation.sampling_run.make_samples`.

  Raises:
    ValueError, OSError: parts are incompatible or missing; raised before a stage's weights are read.
  """
  from walt_t5x.generation import run_identity
  from walt_t5x.generation.loading import load_cascade, read_infos
  from walt_t5x.generation.prepared_requests import prepare
  from walt_t5x.generation.sample_folder import SampleFolder
  from walt_t5x.generation.sampling_run import make_samples

  details = dict(details or {})
  prepared = prepare(requests, config, settings)
  with waiting("generate", "reading what the checkpoints contain"):
    infos = read_infos(config)
  trained_fps = infos[0].provenance.fps
  if trained_fps and abs(settings.fps - trained_fps) > 0.01 * trained_fps:
    logging.warning(
      "--fps=%g, but the stages were trained on clips with %g fps: motion will look %s.",
      settings.fps,
      trained_fps,
      "fast" if settings.fps > trained_fps else "slow",
    )
  identity = prepared.identity(infos, described) | details
  if output is None:
    folder = SampleFolder(run_identity.begin_free(_FOLDER, identity))
  else:
    folder = SampleFolder(output)
    run_identity.begin(folder.path, identity)
  started = time.monotonic()
  count = len(requests) * settings.num_samples
  shown: dict[str, Any] = {}
  made = 0
  if not all(folder.finished(i) for i in range(count)):
    with run_identity.begun(folder.path, identity) as confirm:
      with waiting("generate", "loading the stages"):
        cascade = load_cascade(config, infos, batch_size=settings.batch_size)
      cut = cascade.cut_prompts(request.prompt for request in requests)
      for prompt, tokens in list(cut.items())[:_CUT_SHOWN]:
        logging.warning(
          "The prompt %r has %d tokens; the stages read the first %d (%d such prompts).",
          prompt if len(prompt) < 80 else f"{prompt[:77]}...",
          tokens,
          config.text_length,
          len(cut),
        )
      details = {"gin_sha256": hashlib.sha256(described.encode()).hexdigest(), **details}
      for sample in make_samples(
        cascade,
        prepared,
        folder,
        details=details,
        shard=shard,
        before_writing=confirm,
        streamed=streamed,
      ):
        made += 1
        if log_dir and len(shown) < _TENSORBOARD_SAMPLES:
          shown[f"samples/{sample.index}"] = sample
  result = {"videos": count, "made": made, "seconds": round(time.monotonic() - started, 1)}
  if log_dir and shown:
    _log(log_dir, shown, step=infos[0].step, fps=settings.fps)
  left = sum(not folder.finished(i) for i in range(count))
  if left:
    # Other shards have the rest; the last job to finish writes the manifest.
    return result | {"left_to_other_shards": left}
  manifest = folder.write_manifest()
  gallery = folder.write_gallery(limit=_GALLERY_SAMPLES)
  first = list(next(folder.samples()).files.values())[-1]
  return result | {"first_clip": str(first), "manifest": str(manifest), "gallery": str(gallery)}


def _log(log_dir: str, samples: dict[str, Any], *, step: int, fps: float) -> None:
  from walt_t5x.generation.training_samples import write_clips

  last = {tag: list(sample.videos.values())[-1] for tag, sample in samples.items()}
  seconds = next(iter(samples.values())).seconds
  scalars = {f"seconds/{s}/{what}": v for s, times in seconds.items() for what, v in times.items()}
  write_clips(log_dir, last, step=step, fps=fps, scalars=scalars)


def _print_clip(index: int, stage: str, file: AnyPath) -> None:
  print(json.dumps({"sample": index, "stage": stage, "file": str(file)}), flush=True)


def main(argv: Sequence[str]) -> None:
  """Reads flags and gin, and generates samples."""
  cascade_flags.check(argv, *(() if FLAGS.preset or FLAGS.run else ("output=samples",)))
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  if not FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  from walt_t5x.generation import requests as reading

  with programs.user_errors("generate", exit_code=usage.EXIT_CODE):
    shard = read_shard(FLAGS.shard)
    prompts = reading.read_prompts(FLAGS.prompt, FLAGS.prompts_file)
    if FLAGS.requests and (prompts or FLAGS.image or FLAGS.video):
      raise ValueError(
        "--requests replaces --prompt, --prompts_file, --image and --video: remove them"
      )
    requests = (
      reading.read_requests(FLAGS.requests)
      if FLAGS.requests
      else reading.make_requests(prompts, image=FLAGS.image, video=FLAGS.video)
    )

  with waiting("generate", "importing JAX"):
    from walt_t5x.generation.loading import trained_fps
    from walt_t5x.generation.prepared_requests import SamplingSettings

  fields: Any = {
    field.name: FLAGS[field.name].value for field in dataclasses.fields(SamplingSettings)
  }
  fields["batch_size"] = min(FLAGS.batch_size, len(requests) * FLAGS.num_samples)
  # SIGINT too: a shell starts background jobs with it ignored.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.default_int_handler)
  try:
    with programs.user_errors("generate"):
      cascade = cascade_flags.read(FLAGS.stages)
      fields["fps"] = FLAGS.fps or trained_fps(cascade.config)
      result = run(
        cascade.config,
        requests,
        SamplingSettings(**fields),
        output=FLAGS.output,
        shard=shard,
        log_dir=FLAGS.tensorboard,
        described=cascade.described,
        details=cascade.details,
        streamed=_print_clip if FLAGS.stream else None,
      )
  except KeyboardInterrupt:
    where = ""
    if FLAGS.output:
      done = sum(1 for _ in as_path(FLAGS.output).glob("[0-9]*.json"))
      total = len(requests) * FLAGS.num_samples
      where = f"; {done} of {total} samples are finished in {FLAGS.output}"
    print(
      f"\ngenerate: interrupted{where}. The same command generates the rest.",
      file=sys.stderr,
    )
    sys.exit(130)
  print(json.dumps(result))


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=gin_flags.parse_args)
