"""The stages of the quickstart and of the showcase: their commands, and what the table says about each."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from scripts.quickstart_recipes import UPSCALING, Recipe
from scripts.stages import Stage, Step
from walt_t5x.files.paths import AnyPath

# Networks this small keep one core busy: two devices of one core each share a batch instead.
TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
EXTENDED_PROMPTS = ("a red square moves right slowly", "a blue circle moves up slowly")


def last_metrics(model_dir: AnyPath, *names: str) -> str:
  """The last value of each metric in a run's metrics.jsonl."""
  values: dict[str, float] = {}
  with (model_dir / "metrics.jsonl").open(encoding="utf-8") as lines:
    for line in lines:
      values |= {k: v for k, v in json.loads(line).items() if isinstance(v, int | float)}
  found = []
  for name in names:
    full = next((key for key in values if key == name or key.endswith(f"/{name}")), None)
    if full is not None:
      found.append(f"{full} {values[full]:.4g}")
  return ", ".join([f"step {int(values['step'])}", *found])


def train_command(
  gin_file: str, model_dir: AnyPath, cache: AnyPath, *, steps: int | None = None, seed: int = 0
) -> list[str]:
  """The command of a training stage; `steps` and `seed` are printed only where the gin file has others."""
  return [
    "python",
    "-m",
    "walt_t5x.train",
    f"--gin_file={gin_file}",
    f'--gin.MODEL_DIR="{model_dir}"',
    *([f"--gin.TRAIN_STEPS={steps}"] if steps is not None else []),
    *([f"--gin.RANDOM_SEED={seed}"] if seed else []),
    f"--seqio_additional_cache_dirs={cache}",
    "--verbosity=-1",
  ]


def accuracy(scores: Mapping[str, Any]) -> str:
  """Caption accuracy of one stage from its pixels: right / total of each element."""
  found = {name.removeprefix("caption_accuracy/"): value for name, value in scores.items()}
  return ", ".join(
    f"{element} {found[f'{element}_right']:.0f}/{found[f'{element}_total']:.0f}"
    f" = {found[f'{element}_accuracy']:.0%}"
    for element in [name.removesuffix("_total") for name in found if name.endswith("_total")]
  )


def describe(result: dict[str, Any]) -> str:
  """Caption accuracy of every stage in one line."""
  return "; ".join(f"{stage}: {accuracy(scores)}" for stage, scores in result["scores"].items())


def describe_upscaling(result: dict[str, Any]) -> str:
  """The stage and bicubic upscaling of its input compared with held-out clips."""
  stage, latents, clips = (
    result["ways"][way] for way in ("the stage", "bicubic latents", "bicubic")
  )
  return (
    f"Frechet distance to {result['clips']} held-out clips {stage['frechet']:.0f}, bicubic latents "
    f"{latents['frechet']:.0f}, bicubic clips {clips['frechet']:.0f}; PSNR {stage['psnr']:.1f}, "
    f"{latents['psnr']:.1f}, {clips['psnr']:.1f} dB"
  )


def rows(result: dict[str, Any]) -> str:
  """Outcomes of the rows of a preprocessing job."""
  return (
    f"{result['written']} of {result['rows']} rows written, {result['rejected']} rejected, "
    f"{result['dead']} dead"
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
  """The stages of a recipe, whose outputs go into `folder`.

  `seed` is that of corpus, trainings and samples; `prompts` clips are generated and scored.
  """

  folder: AnyPath
  recipe: Recipe
  seed: int
  prompts: int

  def steps(self) -> list[Step]:
    """All stages, in order."""
    training = (self._train_base(), self._next_to_base())
    samples = (self._scored_samples(), self._next_to_samples())
    coarse = self._train("train base on small clips", "base_coarse", "loss", **TWO_DEVICES)
    return [
      *self._data(),
      *([coarse] if self.recipe.coarse else []),
      training,
      tuple(lane for lane in samples if lane),
      self._report(),
      *([self._preset()] if self.recipe.preset else []),
    ]

  @property
  def _corpus(self) -> AnyPath:
    return self.folder / "corpus"

  @property
  def _pixels(self) -> AnyPath:
    return self.folder / "cache" / "shapes_pixels_videos"

  @property
  def _seeded(self) -> list[str]:
    """The flag of a seed, printed only where it is not the default."""
    return [f"--seed={self.seed}"] if self.seed else []

  @property
  def _tokenizer(self) -> str:
    return f"--vae_checkpoint={self.folder / 'vae'}"

  @property
  def _cascade(self) -> list[str]:
    return [f"--run={self.folder / part}" for part in ("base", "sr1")]

  def _preprocess(self, name: str, flags: list[str], *, sizes: tuple[str, ...]) -> Stage:
    command = ["python", "-m", "beam_jobs.preprocess"]
    command += [
      f"--manifest={self._corpus / 'manifest.jsonl'}",
      f"--output={self.folder / 'cache'}",
    ]
    command += [*flags, f"--resolutions={','.join(sizes)}"]
    command += [f"--num_frames={self.recipe.num_frames}", "--fps=8", "--num_shards=4"]
    return Stage(name, command, rows)

  def _train(self, name: str, part: str, *metrics: str, **environment: str) -> Stage:
    """Trains a part: the stage in `folder / part`, with the gin file of that name."""
    recipe, model_dir = self.recipe, self.folder / part
    command = train_command(
      f"{recipe.gin}/{part.removesuffix('1')}.gin",
      model_dir,
      self.folder / "cache",
      steps=recipe.steps.get(part),
      seed=self.seed,
    )
    return Stage(name, command, lambda _: last_metrics(model_dir, *metrics), environment)

  def _data(self) -> list[Stage]:
    recipe, manifest = self.recipe, self._corpus / "manifest.jsonl"
    text = self.folder / "text"
    return [
      Stage(
        "sample corpus",
        ["python", "-m", "data.samples", f"--output={self._corpus}", *recipe.corpus]
        + [f"--num_prompts={self.prompts}", *self._seeded],
        lambda _: f"{sum(1 for _ in manifest.open())} media files",
      ),
      Stage(
        "text encoder",
        ["python", "-m", "walt_t5x.text.init_encoder", f"--captions={manifest}"]
        + [f"--output={text}", "--size=tiny", "--overwrite"],
        lambda _: "T5, tiny, random weights",
      ),
      self._preprocess(
        "pixels",
        ["--task=shapes_pixels", "--content=pixels", *self._large],
        sizes=recipe.sizes,
      ),
      self._train("train tokenizer", "vae", "psnr", **TWO_DEVICES),
      *self._latents(),
    ]

  @property
  def _large(self) -> list[str]:
    """The flag that keeps the clips of the largest size."""
    count = self.recipe.large_clips
    return [] if count is None else [f"--filter=number<{count}"]

  def _latents(self) -> list[Stage]:
    sizes = self.recipe.sizes
    encoders = [self._tokenizer, f"--text_encoder={self.folder / 'text'}"]
    encoders.append(f"--max_text_length={self.recipe.text_length}")
    if not self._large:
      return [self._preprocess("latents and text", ["--task=shapes", *encoders], sizes=sizes)]
    return [
      self._preprocess("latents and text", ["--task=shapes", *encoders], sizes=self._base_sizes),
      self._preprocess(
        "latents of super-resolution", ["--task=shapes_large", *encoders, *self._large], sizes=sizes
      ),
    ]

  @property
  def _base_sizes(self) -> tuple[str, ...]:
    return (*filter(None, [self.recipe.coarse]), self.recipe.sizes[0])

  def _train_base(self) -> list[Stage]:
    stage = self._train("train base", "base", "loss", "loss_video")
    if not self.recipe.coarse:
      return [stage]
    given = f'--gin.COARSE_CHECKPOINT="{self.folder / "base_coarse"}"'
    return [dataclasses.replace(stage, command=[*stage.command, given])]

  def _next_to_base(self) -> list[Stage]:
    found = [self._train("train super-resolution", "sr1", "loss", "loss_video")]
    found += map(self._reconstruct, self.recipe.psnr)
    if self.recipe.compare_upscaling:
      features = self.folder / "shapes.safetensors"
      command = ["python", "-m", "walt_t5x.train_surrogate", f"--output={features}"]
      found.append(Stage("feature network", command, lambda _: "a surrogate, trained on shapes"))
    return found

  def _reconstruct(self, size: str) -> Stage:
    return Stage(
      f"tokenizer at {size}",
      ["python", "-m", "walt_t5x.reconstruct", self._tokenizer, f"--cache={self._pixels}"]
      + [f"--pixels=pixels/{self.recipe.num_frames}x{size}"]
      + [f"--output={self.folder / f'reconstructions_{size}'}"],
      lambda r: (
        f"held-out clips: PSNR {r['psnr']:.1f} dB, their reconstructions read as "
        f"{accuracy(r['caption_accuracy']['reconstructions'])}"
      ),
    )

  def _generate(self, name: str, output: str, flags: list[str]) -> Stage:
    command = ["python", "-m", "walt_t5x.generate", *self._cascade, *flags]
    command += [f"--output={self.folder / output}", *self._seeded, "--verbosity=-1"]
    return Stage(name, command, lambda r: f"{r['videos']} videos")

  def _scored_samples(self) -> list[Stage]:
    score = ["python", "-m", "walt_t5x.evaluate", "--protocol=caption_accuracy"]
    score += [f"--samples={self.folder / 'samples'}", f"--log_dir={self.folder / 'eval'}"]
    # A few prompts may have none of them.
    if self.recipe.held_out or self.recipe.held_out_gap is not None:
      score += [f"--captions_apart={self._corpus / 'held_out_captions.txt'}"]
    return [
      self._generate("generate", "samples", [f"--prompts_file={self._corpus / 'prompts.txt'}"]),
      Stage("score", score, describe),
    ]

  def _next_to_samples(self) -> list[Stage]:
    found = []
    if self.recipe.compare_upscaling:
      command = ["python", "-m", "walt_t5x.compare_upscaling", *self._cascade, "--network=shapes"]
      command += [f"--weights={self.folder / 'shapes.safetensors'}", f"--cache={self._pixels}"]
      command += [f"--output={self.folder / 'upscaling.json'}", "--verbosity=-1"]
      found.append(Stage(UPSCALING, command, describe_upscaling))
    if self.recipe.frames:
      images = [f"--requests={self._corpus / 'image_requests.jsonl'}", "--fit=crop"]
      prompts = [f"--prompt={prompt}" for prompt in EXTENDED_PROMPTS]
      found += [
        self._generate("image to video", "from_images", images),
        self._generate("extension", "extended", ["--extensions=4", *prompts]),
      ]
    return found

  def _report(self) -> Stage:
    recipe = self.recipe
    return Stage(
      "report",
      ["python", "-m", "walt_t5x.report"]
      + [f"--run={self.folder / part}" for part in ("vae", "base", "sr1")]
      + [f"--samples={self.folder / 'samples'}", f"--title={recipe.name}"]
      + [f"--output={self.folder / 'report.html'}"],
      lambda r: f"{r['runs']} runs, {r['scores']} scores, {r['samples']} samples on one page",
    )

  def _preset(self) -> Stage:
    name = self.recipe.name.lower()
    return Stage(
      "preset",
      ["python", "-m", "walt_t5x.export", *self._cascade, "--license=CC0-1.0"]
      + [f"--output={self.folder / self.recipe.preset}"]
      + [f"--trained_by=bash scripts/quickstart.sh --{name}"]
      + ["--description=Clips of colored shapes that move, bounce and pass each other."],
      lambda r: f"{r['bytes'] / 1e6:.1f} MB",
    )
