"""The rows of the paper's Tables 1 to 5 and the commands of each, from raw data to score.

`benchmarks.reproduce` prints them and writes them to docs/reproduce.md; `scripts/rehearse.sh` runs them at toy size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Benchmark:
  """A data set with its protocol: from media to a tokenizer, its cache and the requests.

  Attributes:
    title: title of the section.
    note: note before the commands.
    commands: (description, command) pairs, in order.
    protocol: protocol of `walt_t5x.evaluate`.
    networks: networks whose weights the protocol needs.
    vae: gin file of the tokenizer's network.
    sampling: further flags of `generate`.
    reference: --reference of `evaluate`.
  """

  title: str
  note: str
  commands: Sequence[tuple[str, str]]
  protocol: str
  networks: Sequence[str]
  vae: str
  sampling: str
  reference: str


@dataclass(frozen=True)
class Media:
  """A corpus: the flags of preprocessing that name it and those of a clip, and the clips that train a denoiser."""

  source: str
  clip: str
  clips: int = 1

  def pixels(self, task: str) -> tuple[str, str]:
    """The cache that a tokenizer is trained on."""
    return "pixels for the tokenizer", self._prepare(f"{task}_pixels", "--content=pixels", 1)

  def latents(
    self, task: str, vae: str, *, network: str = "vae_video", text_encoder: str | None = None
  ) -> tuple[str, str]:
    """The cache that a denoiser is trained on."""
    made_by = f"--vae_gin_file=gin/models/{network}.gin --vae_checkpoint=BUCKET/{vae} --vae_ema"
    if text_encoder is None:
      return "latents", self._prepare(task, f"{made_by} --no_text", self.clips)
    made_by += f" --text_encoder={text_encoder}"
    return "latents and text", self._prepare(task, made_by, self.clips)

  def _prepare(self, task: str, contents: str, clips: int) -> str:
    several = f" --clips_per_video={clips}" if clips > 1 else ""
    return (
      f"python -m beam_jobs.preprocess {self.source} --output=BUCKET/cache --task={task} {contents} "
      f"{self.clip}{several}"
    )


def _train_tokenizer(run: str, model_dir: str, further: str = "") -> str:
  return (
    f'python -m walt_t5x.train --gin_file=gin/{run}.gin --gin.MODEL_DIR=\\"BUCKET/{model_dir}\\" '
    '--gin.PERCEPTUAL_WEIGHTS=\\"resnet50.safetensors\\" '
    f"{further}--seqio_additional_cache_dirs=BUCKET/cache"
  )


def _image_run(channels: int) -> str:
  return "vae_images" if channels == 8 else f"vae_images_c{channels}"


def _tokenizer(run: str, channels: int = 8) -> tuple[str, str]:
  """A video tokenizer, which starts from the image tokenizer of its widths."""
  start = f'--gin.IMAGE_CHECKPOINT=\\"BUCKET/{_image_run(channels)}\\" '
  return "the tokenizer", _train_tokenizer(run, run, start)


def _image_tokenizer(channels: int = 8) -> tuple[str, str]:
  """The image tokenizer with the widths of the video tokenizer."""
  widths = '--gin.CHANNEL_MULTIPLIERS="(1, 2, 2, 4)" '
  if channels != 8:
    widths += f"--gin.LATENT_CHANNELS={channels} "
  return (
    "the image tokenizer",
    _train_tokenizer("vae_imagenet", _image_run(channels), widths),
  )


_VIDEOS = "--resolutions=128x128 --num_frames=17 --fps=25 --clip_position=random"
UCF101 = Media(
  "--manifest=UCF-101 --validation_list=ucfTrainTestlist/testlist01.txt",
  f"{_VIDEOS} --allow_upscale",
  clips=16,
)
K600 = Media(
  '--manifest="k600/train.csv" --source=kinetics --media_root=k600 '
  '--uri_template="{split}/{label}/{youtube_id}_{time_start:06d}_{time_end:06d}.mp4"',
  _VIDEOS,
  clips=4,
)
IMAGENET = Media(
  "--manifest=ILSVRC/Data/CLS-LOC --class_names=LOC_synset_mapping.txt",
  "--resolutions=256x256 --num_frames=1 --allow_upscale",
)
TEXT_VIDEO = Media(
  '--manifest="BUCKET/t2v/*.parquet" --media_root=media',
  "--resolutions=128x128 --num_frames=17 --fps=8 --clip_position=random",
)
# What all video tokenizers start from.
IMAGE_TOKENIZER = (IMAGENET.pixels("imagenet"), _image_tokenizer())
BENCHMARKS = {
  "ucf101": Benchmark(
    title="UCF-101",
    note="13,320 videos in class folders; the 9,537 of `trainlist01.txt` train. Assumption: 25 frames per second, as "
    "in the files; the paper names none. 60,000 steps of 256 see each video 1,611 times: its latents are those of 16 "
    "clips (3 GB in all), and training visits a clip of every video before the next.",
    commands=(
      UCF101.pixels("ucf101"),
      _tokenizer("vae_ucf101"),
      UCF101.latents("ucf101", "vae_ucf101"),
      (
        "labels to sample, and the real videos",
        "python -m walt_t5x.evaluation.benchmark_requests --protocol=ucf101_class_conditional --media=UCF-101 "
        "--list=ucfTrainTestlist/trainlist01.txt --output=requests/ucf101",
      ),
    ),
    protocol="ucf101_class_conditional",
    networks=("i3d", "c3d"),
    vae="vae_ucf101",
    sampling="--requests=requests/ucf101/requests.jsonl --fps=25 --formats=png",
    reference="requests/ucf101/reference.jsonl",
  ),
  "k600": Benchmark(
    title="Kinetics-600",
    note="Frame prediction from 5 frames. Assumption: 25 frames per second; 4 clips of each video.",
    commands=(
      K600.pixels("k600"),
      _tokenizer("vae_k600"),
      K600.latents("k600", "vae_k600"),
      (
        "the conditioning frames, and the real videos",
        "python -m walt_t5x.evaluation.benchmark_requests --protocol=k600_frame_prediction --media=k600/validate "
        "--output=requests/k600",
      ),
    ),
    protocol="k600_frame_prediction",
    networks=("i3d",),
    vae="vae_k600",
    sampling="--requests=requests/k600/requests.jsonl --fps=25 --decoded_conditioning --formats=png",
    reference="requests/k600/reference.jsonl",
  ),
  "imagenet": Benchmark(
    title="ImageNet 256 x 256",
    note="The reference statistics are those of ADM's evaluation suite, an `.npz` with `mu` and `sigma`.",
    commands=(
      IMAGENET.pixels("imagenet"),
      ("the tokenizer", _train_tokenizer("vae_imagenet", "vae_imagenet")),
      IMAGENET.latents("imagenet", "vae_imagenet", network="vae_image"),
      (
        "labels to sample",
        "python -m walt_t5x.evaluation.benchmark_requests --protocol=imagenet256 --output=requests/imagenet",
      ),
    ),
    protocol="imagenet256",
    networks=("inception",),
    vae="vae_imagenet",
    sampling="--requests=requests/imagenet/requests.jsonl --formats=png",
    reference="VIRTUAL_imagenet256_labeled.npz",
  ),
  "text_video": Benchmark(
    title="Text to video, scored on UCF-101 without training on it",
    note="The paper's 970M images and 89M videos are not public: the corpus is your own. `LONG_VIDEOS.parquet` names "
    "long videos, which are cut into the clips of `BUCKET/t2v/clips.parquet`; `BUCKET/t2v/MANIFEST.parquet` names "
    "images, and videos that need no cuts. The files are in the folder `media`. Needs PySceneDetect "
    "(`requirements-curate.lock`) or `--shot_weights`. Filters, and captions by a model for each clip: "
    "[curation.md](curation.md).",
    commands=(
      (
        "the text encoder",
        "python -m walt_t5x.text.import_encoder --source=t5-v1_1-xl --output=BUCKET/t5_xl",
      ),
      (
        "clips of long videos",
        "python -m beam_jobs.curate --manifest=LONG_VIDEOS.parquet --media_root=media --output=BUCKET/t2v "
        '--duplicates=near --filter="seconds>=2.2" --filter="motion>=0.001" --filter="black<=0.5"',
      ),
      TEXT_VIDEO.pixels("t2v"),
      _tokenizer("vae_t2v"),
      TEXT_VIDEO.latents("text_video", "vae_t2v", text_encoder="BUCKET/t5_xl"),
      (
        "prompts, and the real videos",
        "python -m walt_t5x.evaluation.benchmark_requests --protocol=ucf101_zero_shot --media=UCF-101 "
        "--list=ucfTrainTestlist/trainlist01.txt --output=requests/zero_shot",
      ),
    ),
    protocol="ucf101_zero_shot",
    networks=("i3d", "c3d"),
    vae="vae_t2v",
    sampling='--requests=requests/zero_shot/requests.jsonl --gin.SAMPLE_TEXT_ENCODER=\\"BUCKET/t5_xl\\" '
    "--gin.SAMPLE_EMA=False --formats=png",
    reference="requests/zero_shot/reference.jsonl",
  ),
}


@dataclass(frozen=True, kw_only=True)
class Row:
  """A row of a table: gin file below gin/ without suffix, and its benchmark.

  `channels` of Table 3f differ from the 8 of the other rows. `published` is set if the paper states another figure for
  a run that is in several tables.
  """

  table: str
  name: str
  gin: str
  benchmark: str = "ucf101"
  channels: int = 8
  published: str = ""

  @property
  def vae(self) -> str:
    """Run of the row's tokenizer."""
    suffix = "" if self.channels == 8 else f"_c{self.channels}"
    return BENCHMARKS[self.benchmark].vae + suffix

  def commands(self) -> list[tuple[str, str]]:
    """Training, sampling, scoring, in order."""
    benchmark, run = BENCHMARKS[self.benchmark], Path(self.gin).name
    network = "vae_image" if self.benchmark == "imagenet" else "vae_video"
    network += "" if self.channels == 8 else f"_c{self.channels}"
    found = []
    if self.channels != 8:
      task = f"ucf101_c{self.channels}"
      found = [
        _image_tokenizer(self.channels),
        _tokenizer(self.vae, self.channels),
        UCF101.latents(task, self.vae, network=network),
      ]
    weights = " ".join(f"--{name}_weights={name}.safetensors" for name in benchmark.networks)
    return [
      *found,
      (
        "training",
        f'python -m walt_t5x.train --gin_file=gin/{self.gin}.gin --gin.MODEL_DIR=\\"BUCKET/{run}\\" '
        "--seqio_additional_cache_dirs=BUCKET/cache --multiprocess",
      ),
      (
        "sampling",
        f"python -m walt_t5x.generate --gin_file=gin/{self.gin}.gin "
        f"--gin_file=gin/models/{network}.gin --gin_file=gin/runs/samples_of_run.gin "
        f'--gin.CHECKPOINT=\\"BUCKET/{run}\\" --gin.VAE_CHECKPOINT=\\"BUCKET/{self.vae}\\" '
        f"{benchmark.sampling} --output=samples/{run}",
      ),
      (
        "scoring",
        f"python -m walt_t5x.evaluate --protocol={benchmark.protocol} --samples=samples/{run} "
        f"--reference={benchmark.reference} {weights}",
      ),
    ]


def tokenizer_commands(row: Row) -> list[tuple[str, str]]:
  """Reconstructions of the held-out clips by the row's tokenizer, and their scores (Table 3f's rFVD)."""
  vae, folder = row.vae, f"reconstructions/{row.vae}"
  network = "vae_video" + vae.removeprefix(BENCHMARKS[row.benchmark].vae)
  return [
    (
      "reconstructions of the held-out clips",
      f"python -m walt_t5x.reconstruct --vae_gin_file=gin/models/{network}.gin --vae_checkpoint=BUCKET/{vae} --vae_ema "
      f"--cache=BUCKET/cache/ucf101_pixels_videos --output={folder}",
    ),
    (
      "their scores",
      f"python -m walt_t5x.evaluate --protocol=tokenizer --samples={folder}/reconstructions "
      f"--reference={folder}/inputs --i3d_weights=i3d.safetensors --lpips_weights=vgg16.safetensors",
    ),
  ]


def _ablations(table: str, *rows: tuple[str, ...]) -> list[Row]:
  return [
    Row(table=table, name=name, gin=f"ablations/{file}", published="".join(figure))
    for name, file, *figure in rows
  ]


ROWS = [
  Row(table="1", name="K600, L", gin="walt_l_k600", benchmark="k600"),
  Row(table="1", name="UCF-101, L", gin="walt_l_ucf101"),
  Row(table="1", name="UCF-101, XL", gin="walt_xl_ucf101"),
  Row(table="2", name="ImageNet, L", gin="walt_l_imagenet", benchmark="imagenet"),
  *_ablations("3a", ("patch 1", "default"), ("patch 2", "patch_2"), ("patch 4", "patch_4")),
  *_ablations(
    "3b",
    ("5x4x4", "window_5x4x4"),
    ("5x8x8", "default", "FVD 59.6, IS 87.4, 2.00 steps/s"),
    ("5x16x16", "window_5x16x16"),
    ("full self-attention", "full_attention"),
  ),
  *_ablations(
    "3c",
    ("p_sc 0.0", "self_conditioning_0"),
    ("p_sc 0.3", "self_conditioning_0_3"),
    ("p_sc 0.6", "self_conditioning_0_6"),
    ("p_sc 0.9", "default", "FVD 61.4, IS 87.1"),
  ),
  *_ablations(
    "3d",
    ("r 2", "default"),
    ("r 4", "adaln_rank_4"),
    ("r 16", "adaln_rank_16"),
    ("r 64", "adaln_rank_64"),
    ("r 256", "adaln_rank_256"),
  ),
  *_ablations(
    "3e",
    ("without qk norm", "no_qk_norm"),
    ("without latent norm", "no_latent_norm"),
    ("without zero SNR", "no_zero_snr"),
    ("full method", "default"),
  ),
  *(
    Row(table="3f", name=f"c {c}", gin=f"ablations/latent_channels_{c}", channels=c)
    for c in (4, 16, 32)
  ),
  *_ablations("3f", ("c 8", "default", "rFVD 17.1, FVD 75.4, IS 86.3")),
  *_ablations("4", ("L, separate AdaLN", "adaln_separate")),
  Row(
    table="4",
    name="XL, LoRA-2",
    gin="walt_xl_ucf101",
    published="FVD 36.7, IS 89.4, 460M parameters, final loss 0.268",
  ),
  Row(
    table="5",
    name="419M, videos only",
    gin="walt_l_t2v_video_only",
    benchmark="text_video",
  ),
  Row(table="5", name="419M, videos and images", gin="walt_l_t2v", benchmark="text_video"),
  Row(table="5", name="3B, videos and images", gin="walt_3b", benchmark="text_video"),
]


def commands_of(gin_file: str) -> list[tuple[str, str]]:
  """The commands of a gin file, once for all tables that contain it."""
  rows = [row for row in ROWS if row.gin == gin_file]
  of_tokenizer = next((row for row in rows if row.table == "3f"), None)
  return [*rows[0].commands(), *(tokenizer_commands(of_tokenizer) if of_tokenizer else [])]


def all_commands(row: Row) -> list[tuple[str, str]]:
  """Every command of a row, from media to scores."""
  first = () if row.benchmark == "imagenet" else IMAGE_TOKENIZER
  return [*first, *BENCHMARKS[row.benchmark].commands, *commands_of(row.gin)]
