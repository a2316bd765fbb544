"""A web page for a trained cascade: inputs are prompt, seed, stages, extensions and an image; shows the result.

  pip install gradio==6.31.0
  python -m walt_t5x.demo --run=runs/base --run=runs/sr1 --output=demo

The cascade is chosen as for `walt_t5x.generate`: by --run, --preset or --gin_file. Everything is checked and
loaded before the page opens. It is served on the loopback address unless --host is set, and sends no requests to other
servers. Requests of other pages, and those that are too large, are rejected. Every clip is stored in --output with its
sidecar; the page shows its number and files, and its caption accuracy if the prompt names a color and a shape.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from walt_t5x.config import gin_flags, programs
from walt_t5x.files import locks, storage
from walt_t5x.generation import cascade_flags

FLAGS = flags.FLAGS

# Bytes of any request but an image.
MAX_REQUEST = 1 << 20
# Requests that wait next to those of the running batch and of the one that forms.
MAX_WAITING = 10

# Keeps the clips of all stages at the time of the first one.
_IN_STEP = """() => setInterval(() => {
  const [leader, ...others] = [...document.querySelectorAll("video")].filter((v) => v.currentSrc && v.duration);
  for (const video of others) {
    const time = Math.min(leader.currentTime, video.duration);
    if (leader.paused !== video.paused) if (leader.paused) video.pause(); else video.play().catch(() => {});
    if (Math.abs(video.currentTime - time) > 0.1) video.currentTime = time;
  }
}, 100)"""


def define_flags() -> None:
  """Defines the flags of the program."""
  cascade_flags.define_flags()
  flags.DEFINE_string("output", None, "Folder for the clips.")
  flags.DEFINE_string("host", "127.0.0.1", "Address to serve on; 0.0.0.0 opens it to the network.")
  flags.DEFINE_integer("port", 7860, "Port to serve on.", lower_bound=0, upper_bound=65535)
  flags.DEFINE_float(
    "fps", None, "Frame rate of the clips; that of the training data by default.", 0.1
  )
  flags.DEFINE_integer("batch_size", 8, "Clips of waiting users generated together, at most.", 1)


class Studio:
  """Generates clips with a cascade and stores them in a `SampleFolder`; those of several users in one batch.

  Args:
    batch_size: most clips per batch.
    details: additional fields of every sidecar.
  """

  def __init__(
    self,
    cascade: Any,
    config: Any,
    folder: Any,
    *,
    fps: float,
    batch_size: int = 1,
    details: Mapping[str, Any] | None = None,
  ):
    from walt_t5x.generation.serving.clip_maker import ClipMaker
    from walt_t5x.generation.serving.job_queue import JobQueue

    self.cascade, self.folder = cascade, folder
    self._maker = ClipMaker(cascade, config, folder, fps=fps, details=details)
    self.stages, self.takes_frames = self._maker.stages, self._maker.takes_frames
    # The page limits the number of requests.
    self._queue = JobQueue(self._maker, folder, batch_size=batch_size, max_waiting=sys.maxsize)

  def make(
    self,
    prompt: str,
    *,
    seed: float,
    stage: str,
    extensions: float = 0,
    image: str | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
  ) -> dict[str, Any]:
    """Generates a clip up to a stage and returns its sidecar, with its "verdict": stage -> element -> right.

    Args:
      image: file of an image that the clip starts from; it is center-cropped.
      progress: called with (steps done, steps, what was done last).

    Raises:
      ValueError: the stages were not trained for the request, or a field is out of its range.
      RuntimeError: the generation failed.
    """
    from walt_t5x.generation.serving.clip_maker import read_image

    content = None if image is None else read_image(image)
    request = self._maker.checked(
      prompt, seed=seed, stage=stage, extensions=extensions, image=content
    )
    tracked = self._queue.submit(request, image=content)
    self._queue.start()
    for done, total, what in self._queue.watch(tracked):
      progress(done, total, what)
    if tracked.job.error is not None:
      raise RuntimeError(tracked.job.error)
    index = tracked.job.index
    return storage.read_json(self.folder.sidecar(index)) | {"verdict": self._judge(index)}

  def _judge(self, index: int) -> dict[str, dict[str, bool]]:
    """Whether each stage's clip shows what the prompt names; {} unless that is a color and a shape."""
    from walt_t5x.metrics.scene_captions import judge, names_shape

    sample = next(sample for sample in self.folder.samples() if sample.index == index)
    if not names_shape(sample.prompt):
      return {}
    return {
      stage: dict(judge(self.folder.read(sample, stage), sample.prompt).right)
      for stage in sample.files
    }


def describe(sidecar: Mapping[str, Any]) -> str:
  """The number of a clip, and for each stage its file and its verdict, in Markdown."""
  lines = [f"**Sample {sidecar['index']}**"]
  for stage, entry in sidecar["stages"].items():
    verdict = sidecar["verdict"].get(stage, {})
    marks = [f"{'✓' if right else '✗'} {element}" for element, right in verdict.items()]
    lines.append(" · ".join([f"{stage}: `{entry['file']}`", *marks]))
  return "  \n".join(lines)


def build_page(studio: Studio, *, at_once: int) -> Any:
  """The page, a `gradio.Blocks`, on which `at_once` clips are requested at a time."""
  # Gradio is optional and not in the requirements.
  import gradio as gr  # pyright: ignore[reportMissingImports]

  from walt_t5x.generation.serving.clip_maker import MAX_EXTENSIONS, MAX_PROMPT, MAX_SEED

  def make(prompt, seed, stage, extensions, image, progress=gr.Progress()):  # noqa: B008 - gradio's way
    for tokens in studio.cascade.cut_prompts([prompt]).values():
      gr.Warning(f"{tokens} tokens: the model reads the first {studio.cascade.text_length}")
    try:
      sidecar = studio.make(
        prompt,
        seed=seed,
        stage=stage,
        extensions=extensions,
        image=image,
        progress=lambda done, total, what: progress((done, total), desc=what, unit="parts"),
      )
    except (ValueError, RuntimeError) as error:
      raise gr.Error(str(error), duration=None, print_exception=False) from error
    files = {name: entry["file"] for name, entry in sidecar["stages"].items()}
    players = [
      gr.Video(value=str(studio.folder.path / files[name]), visible=True)
      if name in files
      else gr.Video(value=None, visible=False)
      for name in studio.stages
    ]
    return [describe(sidecar), *players, sidecar]

  with gr.Blocks(title="W.A.L.T", analytics_enabled=False) as page:
    gr.Markdown("# W.A.L.T: text to video")
    with gr.Row():
      with gr.Column(scale=1, min_width=280):
        prompt = gr.Textbox(
          label="Prompt",
          lines=2,
          max_length=MAX_PROMPT,
          autofocus=True,
          elem_id="prompt",
          buttons=["copy"],
        )
        seed = gr.Number(
          label="Seed", value=0, precision=0, minimum=0, maximum=MAX_SEED, elem_id="seed"
        )
        stage = gr.Radio(
          studio.stages, value=studio.stages[-1], label="Last stage", elem_id="stage"
        )
        extensions = gr.Slider(
          0,
          MAX_EXTENSIONS,
          value=0,
          step=1,
          label="Extensions",
          visible=studio.takes_frames,
          elem_id="extensions",
        )
        image = gr.Image(
          type="filepath",
          label="Image to start from",
          sources=["upload", "clipboard"],
          visible=studio.takes_frames,
          elem_id="picture",
        )
        button = gr.Button("Generate", variant="primary", elem_id="generate")
      with gr.Column(scale=2):
        described = gr.Markdown(elem_id="described")
        with gr.Row():
          players = [
            gr.Video(
              label=name, autoplay=True, loop=True, interactive=False, elem_id=f"video_{name}"
            )
            for name in studio.stages
          ]
        with gr.Accordion("Details", open=False):
          sidecar = gr.JSON(elem_id="sidecar")
    inputs = [prompt, seed, stage, extensions, image]
    outputs = [described, *players, sidecar]
    gr.on(
      [button.click, prompt.submit],
      make,
      inputs,
      outputs,
      concurrency_limit=at_once,
      api_name="generate",
    )
    page.load(None, js=_IN_STEP)
  return page


def main(argv: Sequence[str]) -> None:
  """Reads flags and gin, loads the cascade, and opens the page."""
  cascade_flags.check(argv, "output=demo")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  if not FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  # Set before gradio is imported: otherwise it sends analytics and checks for updates.
  os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
  try:
    # Optional, as above.
    import gradio as gr  # pyright: ignore[reportMissingImports]
    from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]
  except ImportError:
    sys.exit("demo: gradio is not installed: pip install gradio==6.31.0 (the extra [demo])")

  from walt_t5x.generation.loading import load_cascade, read_infos
  from walt_t5x.generation.sample_folder import SampleFolder
  from walt_t5x.generation.serving.clip_maker import MAX_IMAGE_BYTES
  from walt_t5x.generation.serving.jobs import FOLDER
  from walt_t5x.html.serving import Guard

  jobs = storage.join(FLAGS.output, FOLDER)
  lock = storage.join(jobs, "lock")
  with (
    programs.user_errors("demo"),
    locks.held(lock, program="demo", instead="set another --output"),
  ):
    chosen = cascade_flags.read()
    infos = read_infos(chosen.config)
    studio = Studio(
      load_cascade(chosen.config, infos, batch_size=FLAGS.batch_size, short_batches=True),
      chosen.config,
      SampleFolder(FLAGS.output),
      fps=FLAGS.fps or infos[0].provenance.fps,
      batch_size=FLAGS.batch_size,
      details=chosen.details,
    )
    # While a batch is generated, the next one forms.
    at_once = 2 * FLAGS.batch_size
    page = build_page(studio, at_once=at_once).queue(max_size=MAX_WAITING)
    guard = Middleware(Guard, host=FLAGS.host, max_bytes=MAX_REQUEST, max_upload=MAX_IMAGE_BYTES)
    theme = gr.themes.Default(
      font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    try:
      page.launch(
        server_name=FLAGS.host,
        server_port=FLAGS.port,
        share=False,
        allowed_paths=[os.path.abspath(FLAGS.output)],
        blocked_paths=[os.path.abspath(jobs)],
        theme=theme,
        max_file_size=MAX_IMAGE_BYTES,
        max_threads=at_once + MAX_WAITING,
        app_kwargs={"middleware": [guard]},
        footer_links=[],
      )
    except OSError as error:
      sys.exit(
        f"demo: cannot serve on {FLAGS.host}:{FLAGS.port}, set another --port or --host: {error}"
      )
    # After Ctrl-C. The interpreter would abort, because the other thread may be computing.
    locks.leave(128 + signal.SIGINT)


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=gin_flags.parse_args)
