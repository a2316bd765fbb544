"""A web page for a trained cascade: inputs are prompt, seed, stages, extensions and an image; shows the result.

  pip install gradio==6.31.0
  python -m walt_t5x.demo --run=runs/base --run=runs/sr1 --output=demo

The cascade is chosen as for `walt_t5x.generate`: by --run, --preset or --gin_file. Everything is checked and
loaded before the page opens. It is served on the loopback address unless --host is set, and sends no requests to other
servers. Requests of other pages, and those that are too large, are rejected. Every clip is stored in --output with its
sidecar; the page shows its number and files, and its caption accuracy if the prompt names a color and a shape.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from walt_t5x.config import gin_flags, programs
from walt_t5x.files import storage
from walt_t5x.generation import cascade_flags

FLAGS = flags.FLAGS

MAX_PROMPT, MAX_SEED, MAX_EXTENSIONS = 2000, 2**32 - 1, 7
# Bytes of an image, and of any other request.
MAX_UPLOAD, MAX_REQUEST = 20 << 20, 1 << 20
# Clips that wait for the one that is generated.
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


class Studio:
  """Generates one clip at a time with a cascade with batches of one, and stores it in a `SampleFolder`.

  `details` are additional fields of every sidecar.
  """

  def __init__(
    self,
    cascade: Any,
    config: Any,
    folder: Any,
    *,
    fps: float,
    details: Mapping[str, Any] | None = None,
  ):
    self.cascade, self.config, self.folder, self.fps = cascade, config, folder, fps
    self.details = dict(details or {})
    self.stages = [info.config.name for info in cascade.infos]
    self.takes_frames = all(stage.module.frame_prediction for stage in config.stages)

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
    """
    if len(prompt) > MAX_PROMPT:
      raise ValueError(f"prompt: got {len(prompt):,} characters, expected at most {MAX_PROMPT:,}")
    seed = _whole("seed", seed, MAX_SEED)
    extensions = _whole("extensions", extensions, MAX_EXTENSIONS)
    if stage not in self.stages:
      raise ValueError(f"stage: got {stage!r}, expected one of {self.stages}")
    from walt_t5x.generation.prepared_requests import SamplingSettings, prepare
    from walt_t5x.generation.requests import Request
    from walt_t5x.generation.sampling_run import write_sample

    count = self.stages.index(stage) + 1
    request = Request(prompt=prompt.strip(), image=image)
    settings = SamplingSettings(
      seed=seed, extensions=extensions, fps=self.fps, fit="crop", batch_size=1
    )
    config = dataclasses.replace(self.config, stages=self.config.stages[:count])
    # Always number 0, so that a prompt and a seed always give the same clip.
    batch = prepare([request], config, settings).batch([0])
    kept = [int(file.stem) for file in self.folder.path.glob("[0-9]*.json")]
    index = 1 + max(kept, default=-1)
    done, total = 0, count * (1 + extensions)

    def update(name: str, extension: int) -> None:
      nonlocal done
      done += 1
      progress(done, total, f"{name}, extension {extension} of {extensions}" if extension else name)

    progress(0, total, "started")
    ((sample,),) = self.cascade.run([batch], stages=count, progress=update)
    write_sample(
      self.folder,
      self.cascade,
      dataclasses.replace(sample, index=index),
      media=batch.media[0],
      request=request,
      settings=settings,
      details=self.details,
    )
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


def _whole(name: str, value: Any, most: int) -> int:
  """A number of the page, which may be a float or missing, as an integer from 0."""
  if isinstance(value, int | float) and 0 <= value <= most and value == int(value):
    return int(value)
  raise ValueError(f"{name}: got {value}, expected an integer from 0 to {most:,}")


def describe(sidecar: Mapping[str, Any]) -> str:
  """The number of a clip, and for each stage its file and its verdict, in Markdown."""
  lines = [f"**Sample {sidecar['index']}**"]
  for stage, entry in sidecar["stages"].items():
    verdict = sidecar["verdict"].get(stage, {})
    marks = [f"{'✓' if right else '✗'} {element}" for element, right in verdict.items()]
    lines.append(" · ".join([f"{stage}: `{entry['file']}`", *marks]))
  return "  \n".join(lines)


def build_page(studio: Studio) -> Any:
  """The page, a `gradio.Blocks`."""
  # Gradio is optional and not in the requirements.
  import gradio as gr  # pyright: ignore[reportMissingImports]

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
    except ValueError as error:
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
      [button.click, prompt.submit], make, inputs, outputs, concurrency_limit=1, api_name="generate"
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
  from walt_t5x.html.serving import Guard

  with programs.user_errors("demo"):
    chosen = cascade_flags.read()
    infos = read_infos(chosen.config)
    studio = Studio(
      load_cascade(chosen.config, infos, batch_size=1),
      chosen.config,
      SampleFolder(FLAGS.output),
      fps=FLAGS.fps or infos[0].provenance.fps,
      details=chosen.details,
    )
  page = build_page(studio).queue(max_size=MAX_WAITING)
  guard = Middleware(Guard, host=FLAGS.host, max_bytes=MAX_REQUEST, max_upload=MAX_UPLOAD)
  theme = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
  )
  try:
    page.launch(
      server_name=FLAGS.host,
      server_port=FLAGS.port,
      share=False,
      allowed_paths=[os.path.abspath(FLAGS.output)],
      theme=theme,
      max_file_size=MAX_UPLOAD,
      app_kwargs={"middleware": [guard]},
      footer_links=[],
    )
  except OSError as error:
    sys.exit(
      f"demo: cannot serve on {FLAGS.host}:{FLAGS.port}, set another --port or --host: {error}"
    )


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=gin_flags.parse_args)
