"""A project that trains one of `recipes` from nothing: its tokenizer, then its base stage."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.class_names import class_words
from walt_t5x.files import storage
from walt_t5x.planning.projects import project_files
from walt_t5x.planning.projects.project_data import TASK, UNUSABLE, ProjectData
from walt_t5x.planning.projects.recipes import RECIPES, Recipe

# Classes that the requests of a project name.
_CLASSES = 8
_OF_LATENTS = ("vae_checkpoint", "text_encoder", "no_text", "max_text_length", "clips_per_video")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """The project of `--like`.

  Attributes:
    name: one of `RECIPES`.
    steps: steps of both trainings; None for those of the gin files.
    fps: frame rate of a clip; None for that of the recipe.
    text_encoder: folder of a T5 encoder; None if the project makes one, or reads no text.
    perceptual_weights: weights of the tokenizer's perceptual term; None trains without it.

  Raises:
    FileNotFoundError: the text encoder or the weights do not exist.
    ValueError: the text encoder has another width, or the weights would have no effect.
  """

  name: str
  steps: int | None = None
  fps: float | None = None
  text_encoder: str | None = None
  perceptual_weights: str | None = None

  def __post_init__(self):
    weights = self.perceptual_weights
    if weights and not self.recipe.perceptual:
      raise ValueError(
        f"--perceptual_weights has no effect with --like={self.name}, whose tokenizer has no perceptual term: remove it"
      )
    if weights and not storage.exists(weights):
      raise FileNotFoundError(f"--perceptual_weights: no file at {weights}")
    if not self.text_encoder:
      return
    file = storage.join(self.text_encoder, "config.json")
    if not storage.exists(file):
      raise FileNotFoundError(
        f"--text_encoder: no config.json in {self.text_encoder}, expected a folder that "
        "walt_t5x.text.import_encoder wrote"
      )
    width, expected = storage.read_json(file).get("d_model"), self.recipe.text_dim
    if width != expected:
      raise ValueError(
        f"--text_encoder: {self.text_encoder} makes embeddings of width {width}, expected {expected} for "
        f"--like={self.name}: set it to a T5 v1.1 of size {self.recipe.text_encoder}"
      )

  @property
  def recipe(self) -> Recipe:
    """What is trained."""
    return RECIPES[self.name]

  @property
  def makes_encoder(self) -> bool:
    """Whether the project begins with a random text encoder, whose vocabulary is that of all captions."""
    return self.recipe.text_encoder == "tiny" and not self.text_encoder

  def settings(self, output: Path) -> dict[str, Any]:
    """The flags of preprocessing that the recipe determines."""
    recipe, rate = self.recipe, self.fps or self.recipe.fps
    frames, height, width = recipe.shape
    found: dict[str, Any] = {"vae_checkpoint": str(output / "vae")}
    if recipe.text_encoder:
      encoder = self.text_encoder or str(output / "text")
      found |= {"text_encoder": encoder, "max_text_length": recipe.text_length}
    else:
      found["no_text"] = True
    found |= {"resolutions": f"{height}x{width}", "num_frames": frames}
    found |= {"fps": rate} if rate else {}
    return {**found, **recipe.clips}

  def fitted(self, data: ProjectData) -> ProjectData:
    """The data as the project reads them. Raises ValueError if they do not fit: got, expected, what to set."""
    wanted = self.recipe.kinds
    count = data.found["modalities"]
    got = " and ".join(f"{rows:,} {kind}s" for kind, rows in count.items()) or "no rows"
    start = f"--like={self.name}"
    if count and not set(count) & set(wanted):
      others = [name for name, recipe in RECIPES.items() if set(count) & set(recipe.kinds)]
      raise ValueError(
        f"{start} trains on {wanted[0]}s: got {got}, expected {wanted[0]}s; set the folder or table that has "
        f"them, or --like to {' or '.join(others)}"
      )
    if self.recipe.text_encoder and set(data.found["captions_per_row"]) == {"0"}:
      raise ValueError(
        f"{start} reads captions: got {got} without any; set --column=caption=COLUMN, or put NAME.txt next to "
        "NAME.mp4"
      )
    if self.recipe.label and count and not data.num_classes:
      raise ValueError(
        f"{start} reads labels: got {got} without any, expected class folders or a column; set "
        "--column=class=COLUMN with --class_names=FILE, or --column=label=COLUMN for numbers"
      )
    if "video" in set(count) & set(wanted) - set(data.kinds):
      self._explain(data)
    data.check()
    return data.only(wanted)

  def _explain(self, data: ProjectData) -> None:
    """Raises ValueError about videos, none of which can be used."""
    start, media = f"--like={self.name}", data.found["media"]
    rate, rates, seconds = self.fps or self.recipe.fps, media["fps"], media["seconds"]
    reasons = {fault["reason"] for fault in data.found["faults"]}
    if rate and rates and "low_frame_rate" in reasons:
      raise ValueError(
        f"{start} reads {rate:g} frames per second: got videos of {rates['min']:g} to {rates['max']:g}, expected at "
        f"least {0.75 * rate:g}; set --fps={rates['min']:g}"
      )
    if rate and seconds and "too_short" in reasons:
      frames, *_ = self.recipe.shape
      higher = math.ceil(frames / seconds["max"])
      raise ValueError(
        f"{start} reads clips of {frames / rate:.3g} s, which are {frames} frames at {rate:g} per second: got videos "
        f"of {seconds['min']:.3g} to {seconds['max']:.3g} s; set longer ones, or --fps={higher}"
      )
    raise ValueError(f"none of the videos can be used: {UNUSABLE}")

  def files(self, data: ProjectData, output: Path) -> dict[str, str]:
    """Name -> text of the project's files but README.md."""
    recipe, rows, made = self.recipe, data.rows(), self.settings(output)
    if data.kinds == ["image"]:
      made["num_frames"] = 1
    if recipe.clips_per_video > 1:
      made["clips_per_video"] = recipe.clips_per_video
    found = {}
    if recipe.label and data.class_names:
      found["class_names.txt"] = "".join(
        f"{name}\t{class_words(name)}\n" for name in data.class_names
      )
      rows["class_names"] = str(output / "class_names.txt")
    if self.makes_encoder:
      found["captions.jsonl"] = _json_lines([{"caption": caption} for caption in data.captions])
    if requests := self._requests(data):
      found["requests.jsonl"] = _json_lines(requests)
    cache = {"output": str(output / "cache")}
    pixels = {name: value for name, value in made.items() if name not in _OF_LATENTS}
    pixels = {**cache, "task": f"{TASK}_pixels", "content": "pixels", **rows, **pixels}
    latents = {**cache, "task": TASK, **rows, **made}
    return {
      **found,
      "pixels.toml": project_files.toml(pixels, file=output / "pixels.toml"),
      "vae.gin": self._tokenizer(data, output),
      "data.toml": project_files.toml(latents, file=output / "data.toml"),
      "base.gin": self._base(data, output),
    }

  def _tokenizer(self, data: ProjectData, output: Path) -> str:
    """The gin file of the tokenizer's training."""
    images = data.kinds == ["image"]
    frames, height, width = self.recipe.shape
    fields = {
      "task": f"{TASK}_pixels",
      "pixels": f"pixels/{1 if images else frames}x{height}x{width}",
      "images": images,
    }
    fields |= {"crops_of": []} if self.recipe.crops else {}
    perceptual = [
      "",
      "# A safetensors file of ResNet-50 (docs/vae.md). None trains without the perceptual term, which the published",
      "# tokenizers have.",
      f"PERCEPTUAL_WEIGHTS = {self.perceptual_weights!r}",
    ]
    return project_files.gin(
      f"Trains the tokenizer of {self.recipe.tokenizer} on the cache of pixels.toml.",
      file=output / "vae.gin",
      imports=self._imports(),
      body=[
        *self._head(self.recipe.tokenizer, output / "vae"),
        *(perceptual if self.recipe.perceptual else []),
        *self._data(project_files.cached("pixel_task", output / "cache", fields)),
      ],
    )

  def _base(self, data: ProjectData, output: Path) -> str:
    """The gin file of the base stage's training."""
    recipe, model, imports = self.recipe, [], self._imports()
    latents = recipe.latents
    if recipe.label:
      model = ["", f"transformer.WaltDenoiser.num_classes = {data.num_classes}"]
    elif recipe.text_encoder and data.kinds == ["image"]:
      latents = f"latents/1x{latents.partition('x')[2]}"
      imports = [*imports, "from walt_t5x.models import denoiser_model"]
      model = [
        "",
        "# Images alone: latents of one frame.",
        "base/denoiser_model.DenoiserModel.rows = 'images'",
        "base/transformer.WaltDenoiser:",
        f"  spatiotemporal_window = {(1, *recipe.window[1:])}",
        "  frame_prediction = False",
      ]
    task = project_files.latents_task(
      data,
      output / "cache",
      latents=latents,
      text_length=recipe.text_length,
      label=recipe.label,
    )
    return project_files.gin(
      f"Trains the base stage of {recipe.base} on the cache of data.toml.",
      file=output / "base.gin",
      imports=[*imports, *(["from walt_t5x.denoiser import transformer"] if model else [])],
      body=[*self._head(recipe.base, output / "base"), *self._data(task), *model],
    )

  def _head(self, included: str, run: Path) -> list[str]:
    return [
      f"include {included!r}",
      "",
      "# Where the run goes.",
      f"MODEL_DIR = {str(run)!r}",
    ]

  def _data(self, bindings: Sequence[str]) -> list[str]:
    """The bindings of the data, after those of the steps if they are not those of the included file."""
    steps = []
    if self.steps is not None:
      warmup = project_files.warmup_steps(self.steps)
      steps = [
        "",
        "# How long.",
        f"TRAIN_STEPS = {self.steps}",
        f"schedules.warmup_cosine.warmup_steps = {warmup}",
        *project_files.periods(self.steps),
      ]
    return [*steps, "", "# The data.", *bindings]

  def _imports(self) -> list[str]:
    return ["from walt_t5x.engine import schedules"] if self.steps is not None else []

  def _requests(self, data: ProjectData) -> list[dict[str, Any]]:
    """What to generate, for a model that reads no text: some classes, or a clip to continue."""
    if self.recipe.label:
      return [{"label": label} for label in range(min(_CLASSES, data.num_classes))]
    video = data.found["media"]["examples"].get("video", "")
    return [] if self.recipe.text_encoder or not Path(video).is_file() else [{"video": video}]

  def commands(self, data: ProjectData, output: Path) -> list[str]:
    """The next commands."""
    what: dict[str, Any] = {"formats": "png"} if data.kinds == ["image"] else {}
    if self.recipe.text_encoder:
      what["prompt"] = project_files.prompt(data)
    else:
      asked = self._requests(data)
      what |= {"requests": output / "requests.jsonl"} if asked else {"video": "..."}
      what |= {} if self.recipe.label else {"decoded_conditioning": True, "fit": "crop"}
    encoder = project_files.command(
      "walt_t5x.text.init_encoder",
      captions=output / "captions.jsonl",
      output=output / "text",
      size="tiny",
      overwrite=True,
    )
    return [
      *([encoder] if self.makes_encoder else []),
      project_files.preprocess(output / "pixels.toml"),
      project_files.train(output / "vae.gin"),
      project_files.preprocess(output / "data.toml"),
      project_files.train(output / "base.gin"),
      *project_files.last_commands(
        output, runs=[output / "base"], shown=[output / "vae", output / "base"], **what
      ),
    ]

  def title(self) -> str:
    """What the project is."""
    return f"A model like {self.recipe.base}"

  def notes(self, output: Path) -> list[str]:
    """Further lines of README.md."""
    plan = project_files.command("walt_t5x.plan", gin_file=output / "base.gin")
    found = ["", "What the training of the base stage costs:", "", f"    {plan}"]
    if self.recipe.perceptual and not self.perceptual_weights:
      found += [
        "",
        "The tokenizer trains without its perceptual term: PERCEPTUAL_WEIGHTS in `vae.gin` is None.",
      ]
    return found


def _json_lines(rows: Sequence[Any]) -> str:
  return "".join(json.dumps(row) + "\n" for row in rows)
