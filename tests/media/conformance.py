"""Files that FFmpeg's command line encodes, and what it shows of them, against what the reader shows.

A cell is one file: a container, a codec, and what its name says. The source is smooth, so that filters of chroma
differ little, and gets brighter with each frame, so that a frame cannot be taken for another.
"""

import dataclasses
import itertools
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from walt_t5x.media import reading

FFMPEG = shutil.which("ffmpeg")
WIDTH, HEIGHT, COUNT = 96, 64, 12
# Suffix -> encoders.
CODECS = {
  ".mp4": ("libx264", "libx265", "mpeg4", "libvpx-vp9", "libsvtav1"),
  ".mov": ("libx264", "prores_ks", "mjpeg", "qtrle"),
  ".mkv": (
    *("libx264", "libx265", "libvpx", "libvpx-vp9", "libsvtav1", "ffv1", "libtheora", "mpeg2video"),
    *("mpeg4", "mjpeg", "wmv2", "huffyuv"),
  ),
  ".webm": ("libvpx", "libvpx-vp9", "libsvtav1"),
  ".avi": ("libx264", "mpeg4", "libxvid", "mjpeg", "msmpeg4v2", "ffv1", "huffyuv"),
  ".ts": ("libx264", "libx265", "mpeg2video"),
  ".mpg": ("mpeg2video", "mpeg1video"),
  ".3gp": ("libx264", "mpeg4"),
  ".m4v": ("libx264", "mpeg4"),
}
QUALITY = {
  "libx264": ["-crf", "6"],
  "libx265": ["-crf", "6", "-x265-params", "log-level=none"],
  "libvpx": ["-crf", "4", "-b:v", "4M"],
  "libvpx-vp9": ["-crf", "6", "-b:v", "0", "-cpu-used", "8"],
  "libsvtav1": ["-crf", "10", "-preset", "12"],
  "libtheora": ["-q:v", "9"],
}
NO_QUALITY = ("ffv1", "huffyuv", "qtrle", "prores_ks", "gif")
WITH_B_FRAMES = {
  "libx264": 3,
  "libx265": 3,
  "mpeg4": 3,
  "libxvid": 3,
  "mpeg2video": 3,
  "mpeg1video": 2,
}
# Their encoders know few rates.
RATES = {"mpeg2video": 24, "mpeg1video": 24}
MATRICES = {  # matrix -> primaries, transfer
  "bt709": ("bt709", "bt709"),
  "smpte170m": ("smpte170m", "smpte170m"),
  "bt470bg": ("bt470bg", "gamma28"),
  "bt2020nc": ("bt2020", "bt2020-10"),
}
FORMATS = ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le", "gray")
ALPHA = "geq=lum='p(X,Y)':cb='p(X,Y)':cr='p(X,Y)':a='clip(2*X+20,0,255)'"
TURNS = {  # a, b, c, d of the display matrix
  "mirrored": (-1, 0, 0, 1),
  "upside down": (1, 0, 0, -1),
  "half turn": (-1, 0, 0, -1),
  "clockwise": (0, 1, -1, 0),
  "counterclockwise": (0, -1, 1, 0),
}


@dataclasses.dataclass(frozen=True)
class Cell:
  """A file: `encode` are arguments between FFmpeg's input and output, `decode` those before its input."""

  name: str
  suffix: str
  codec: str
  encode: tuple[str, ...] = ()
  rate: float = 12
  count: int = COUNT
  decode: tuple[str, ...] = ()
  matrix: tuple[int, int, int, int] | None = None
  tolerance: float = 0.0025


def cells() -> list[Cell]:
  """All cells, in an order that mixes their kinds."""
  made = [*_streams(), *_colors(), *_geometry(), *_rates(), *_others()]
  assert len({cell.name for cell in made}) == len(made)
  return made


def _streams() -> Iterator[Cell]:
  variants = {
    "": (),
    "odd size": ("-vf", "crop=90:50:3:5"),
    "variable rate": ("-vf", r"select='not(mod(n\,3)-1)+lt(n\,4)'", "-fps_mode", "vfr"),
    "late": ("-output_ts_offset", "3.2"),
  }
  for suffix, codecs in CODECS.items():
    for codec, (variant, options) in itertools.product(codecs, variants.items()):
      if variant == "variable rate" and suffix in (".avi", ".mpg", ".ts", ".3gp"):
        continue  # They repeat frames, or need a constant rate.
      if variant == "odd size" and codec == "libsvtav1":
        continue  # It encodes no picture as small as this.
      for b_frames in sorted({0, WITH_B_FRAMES.get(codec, 0)}):
        reorder = ("-bf", str(b_frames)) if codec in WITH_B_FRAMES else ()
        words = (suffix, codec, f"{b_frames} B-frames" if reorder else "", variant)
        name = " ".join(filter(None, words))
        yield Cell(name, suffix, codec, (*reorder, *options), rate=RATES.get(codec, 12))


def _colors() -> Iterator[Cell]:
  for codec, form, matrix, levels in itertools.product(
    ("libx264", "libx265", "ffv1", "libvpx-vp9"), FORMATS, MATRICES, ("tv", "pc")
  ):
    if codec == "libvpx-vp9" and form == "gray":
      continue
    primaries, transfer = MATRICES[matrix]
    tags = ("-colorspace", matrix, "-color_range", levels)
    tags += ("-color_primaries", primaries, "-color_trc", transfer)
    scaled = f"scale=out_color_matrix={matrix}:out_range={levels},format={form}"
    name = f"color: {codec} {form} {matrix} {levels}"
    yield Cell(name, ".mkv", codec, ("-vf", scaled, *tags), count=4)


def _geometry() -> Iterator[Cell]:
  for aspect, suffix in itertools.product(("2/1", "4/3", "8/9"), (".mp4", ".mkv", ".avi")):
    yield Cell(f"pixel aspect {aspect} {suffix}", suffix, "libx264", ("-vf", f"setsar={aspect}"))
  for (turn, matrix), suffix in itertools.product(TURNS.items(), (".mp4", ".mov")):
    yield Cell(f"{turn} {suffix}", suffix, "libx264", matrix=matrix)


def _rates() -> Iterator[Cell]:
  for rate, suffix in itertools.product((1, 23.976, 59.94, 60, 90, 1000), (".mp4", ".mkv", ".ts")):
    yield Cell(f"{rate} frames per second {suffix}", suffix, "libx264", rate=rate)


def _others() -> Iterator[Cell]:
  yield Cell(
    "animated gif", ".gif", "gif", tolerance=0.006
  )  # Its times are hundredths of a second.
  for codec, options in (("libvpx", ("-auto-alt-ref", "0")), ("libvpx-vp9", ())):
    encode = ("-vf", f"format=yuva420p,{ALPHA}", "-pix_fmt", "yuva420p", *options)
    yield Cell(f"alpha {codec}", ".webm", codec, encode, decode=("-c:v", codec))
  encode = ("-vf", f"format=yuva444p,{ALPHA},format=argb")
  yield Cell("alpha qtrle", ".mov", "qtrle", encode)
  encode = ("-vf", f"format=yuva444p,{ALPHA},format=yuva444p10le", "-profile:v", "4")
  yield Cell("alpha prores_ks", ".mov", "prores_ks", encode)
  yield Cell("interlaced", ".mkv", "mpeg2video", ("-flags", "+ildct+ilme", "-top", "1"), rate=24)


def ffmpeg(*arguments: str) -> bytes:
  """Output of the command. Raises RuntimeError with its message."""
  command = [FFMPEG or "ffmpeg", "-nostdin", "-hide_banner", "-loglevel", "error", "-y"]
  done = subprocess.run([*command, *arguments], capture_output=True, check=False)
  if done.returncode:
    raise RuntimeError(done.stderr.decode(errors="replace")[-300:].strip())
  return done.stdout


def encode(cell: Cell, folder: Path) -> Path:
  """Writes the file of a cell. Raises RuntimeError if this FFmpeg cannot."""
  smooth = f"scale=12:8,scale={WIDTH}:{HEIGHT}:flags=bicubic,format=yuv444p"
  brighter = "geq=lum='clip(lum(X,Y)*0.5+10*N,16,235)':cb='cb(X,Y)':cr='cr(X,Y)'"
  source = f"testsrc2=size={WIDTH}x{HEIGHT}:rate={cell.rate}:duration={cell.count / cell.rate}"
  quality = [] if cell.codec in NO_QUALITY else QUALITY.get(cell.codec, ["-q:v", "2"])
  if cell.codec not in NO_QUALITY and "format=" not in " ".join(cell.encode):
    quality = [*quality, "-pix_fmt", "yuv420p"]
  path = folder / f"cell{cell.suffix}"
  inputs = ("-f", "lavfi", "-i", f"{source},{smooth},{brighter}")
  ffmpeg(*inputs, "-c:v", cell.codec, *quality, *cell.encode, str(path))
  if cell.matrix:
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4
    at += {0: 40, 1: 52}[content[at]]
    a, b, c, d = (v << 16 for v in cell.matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
  return path


def shown_by_ffmpeg(path: Path, cell: Cell, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
  """Frames over white and their times since the first, as the command line shows them; `shape` is of one frame."""
  stream = (*cell.decode, "-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough")
  lines = ffmpeg(*stream, "-f", "framecrc", "-").decode().splitlines()
  base = next(line for line in lines if line.startswith("#tb")).split(":")[1].strip()
  numerator, denominator = map(int, base.split("/"))
  ticks = [int(line.split(",")[2]) for line in lines if not line.startswith("#")]
  times = np.array(ticks) * numerator / denominator
  alpha = cell.name.startswith("alpha")
  raw = ffmpeg(*stream, "-pix_fmt", "rgba" if alpha else "rgb24", "-f", "rawvideo", "-")
  height, width = shape[:2]
  frames = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 4 if alpha else 3).astype(float)
  if alpha:
    opacity = frames[..., 3:] / 255
    frames = frames[..., :3] * opacity + 255 * (1 - opacity)
  return frames, times - times[0]


def difference(path: Path, cell: Cell) -> str:
  """What differs between the reader and FFmpeg's command line; empty if nothing does."""
  read = list(reading.iterate_frames(path))
  frames = np.stack([frame for _, frame in read]).astype(float)
  times = np.array([seconds for seconds, _ in read])
  try:
    expected, expected_times = shown_by_ffmpeg(path, cell, frames.shape[1:])
  except ValueError:
    return f"frames of {frames.shape[1]}x{frames.shape[2]} pixels are of another size"
  if len(frames) != len(expected):
    return f"{len(frames)} frames instead of {len(expected)}"
  if (late := np.abs(times - expected_times).max()) > cell.tolerance:
    return f"times differ by up to {late:.3f} s"
  if (far := np.abs(frames - expected).mean(axis=(1, 2, 3)).max()) > 2:
    return f"a frame differs by {far:.1f} of 255 on average"
  return ""
