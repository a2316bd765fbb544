"""Files that FFmpeg's command line encodes, and what it shows of them, against what the reader shows.

A cell is one file: a container, a codec, and what its name says. The source is smooth, so that filters of chroma
differ little, and gets brighter with each frame, so that a frame cannot be taken for another. Pictures are in
`picture_cells`.
"""

import dataclasses
import functools
import io
import itertools
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """A file and what the reader is expected to make of it.

  Args:
    encode: arguments between FFmpeg's input and output.
    remux: arguments before the input and before the output of a second command, which copies the stream.
    patch: makes the file of the bytes of an MP4.
    decode: arguments before the input of the command that shows the file.
    show: arguments before the output of that command.
    deinterlace: whether the reader deinterlaces.
    rejected: the reason of the error with which the reader rejects the file; empty if it shows the file.
    tolerance: of times in seconds.
  """

  name: str
  suffix: str
  codec: str
  encode: tuple[str, ...] = ()
  rate: float = 12
  count: int = COUNT
  remux: tuple[tuple[str, ...], tuple[str, ...]] | None = None
  patch: Callable[[bytes], bytes] | None = None
  decode: tuple[str, ...] = ()
  show: tuple[str, ...] = ()
  deinterlace: bool = False
  rejected: str = ""
  tolerance: float = 0.0025


def cells() -> list[Cell]:
  """All cells, in an order that mixes their kinds."""
  made = [
    *(*_streams(), *_colors(), *_hdr(), *_geometry(), *_times(), *_tracks(), *_rates()),
    *(*_interlaced(), *_others()),
  ]
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
        encode = (*reorder, *options)
        yield Cell(name=name, suffix=suffix, codec=codec, encode=encode, rate=RATES.get(codec, 12))


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
    yield Cell(name=name, suffix=".mkv", codec=codec, encode=("-vf", scaled, *tags), count=4)
  deep = (
    "yuv420p12le",
    "yuv422p12le",
    "yuv444p12le",
    "gray10le",
    "gray12le",
    "yuv444p16le",
    "rgb24",
  )
  for form in (*deep, "gbrp10le", "rgb48le", "yuv410p", "yuv411p", "yuv440p"):
    encode = ("-vf", f"format={form}")
    yield Cell(name=f"format: ffv1 {form}", suffix=".mkv", codec="ffv1", encode=encode, count=4)
  for form in ("yuv420p12le", "yuv444p12le", "gray12le"):
    encode = ("-vf", f"format={form}")
    yield Cell(name=f"format: x265 {form}", suffix=".mp4", codec="libx265", encode=encode, count=4)


def _hdr() -> Iterator[Cell]:
  codecs = {".mp4": ("libx265", "libx264", "libsvtav1"), ".webm": ("libvpx-vp9", "libsvtav1")}
  codecs |= {".mkv": ("libx265", "libvpx-vp9", "ffv1"), ".ts": ("libx265",)}
  for curve, suffix in itertools.product(("smpte2084", "arib-std-b67"), codecs):
    for codec in codecs[suffix]:
      scaled = "scale=out_color_matrix=bt2020nc,format=yuv420p10le"
      # Older releases of FFmpeg take the tags from the options, newer ones from the frames.
      tags = ("-colorspace", "bt2020nc", "-color_primaries", "bt2020", "-color_trc", curve)
      marked = f"{scaled},setparams=color_primaries=bt2020:color_trc={curve}:colorspace=bt2020nc"
      name, encode = f"HDR: {curve} {codec} {suffix}", ("-vf", marked, *tags)
      yield Cell(name=name, suffix=suffix, codec=codec, encode=encode, count=4, rejected="hdr")

  tagged = {"suffix": ".mp4", "codec": "libx265", "encode": ("-tag:v", "hvc1"), "count": 4}
  dolby = lambda content: content.replace(b"hvc1", b"dvh1")  # noqa: E731
  yield Cell(name="HDR: Dolby Vision", patch=dolby, rejected="hdr", **tagged)


def _geometry() -> Iterator[Cell]:
  for aspect, suffix in itertools.product(("2/1", "4/3", "8/9"), (".mp4", ".mkv", ".avi")):
    name, encode = f"pixel aspect {aspect} {suffix}", ("-vf", f"setsar={aspect}")
    yield Cell(name=name, suffix=suffix, codec="libx264", encode=encode)
  odd = ("-vf", "crop=91:51:3:5:exact=1,format=yuv444p")
  for (turn, matrix), suffix in itertools.product(TURNS.items(), (".mp4", ".mov")):
    turned = {"suffix": suffix, "codec": "libx264", "patch": functools.partial(_turned, matrix)}
    yield Cell(name=f"{turn} {suffix}", **turned)
    yield Cell(name=f"{turn} {suffix} 91x51", encode=odd, **turned)
  for turn, matrix in TURNS.items():
    made = {"suffix": ".mkv", "codec": "libx264", "encode": odd}
    patch = functools.partial(_turned_matroska, matrix)
    yield Cell(name=f"{turn} .mkv 91x51", patch=patch, **made)
  for suffix, codec in ((".webm", "libvpx-vp9"), (".webm", "libvpx"), (".mkv", "ffv1")):
    name, encode = f"odd 4:2:0 {codec}", ("-vf", "crop=91:51:3:5:exact=1,format=yuv420p")
    yield Cell(name=name, suffix=suffix, codec=codec, encode=encode)
  sides = "crop_left=4:crop_right=10:crop_top=2:crop_bottom=8"
  for suffix, kind in itertools.product((".mp4", ".mkv", ".ts"), ("h264", "hevc")):
    codec = {"h264": "libx264", "hevc": "libx265"}[kind]
    name, encode = f"crop rectangle {kind} {suffix}", ("-bsf:v", f"{kind}_metadata={sides}")
    # FFmpeg 5 leaves the left side as it is stored without the flag, FFmpeg 9 does not.
    shown = ("-flags", "unaligned")
    yield Cell(name=name, suffix=suffix, codec=codec, encode=encode, decode=shown)


def _times() -> Iterator[Cell]:
  for suffix, b_frames in itertools.product((".mp4", ".mov"), (0, 3)):
    made = {"suffix": suffix, "codec": "libx264", "encode": ("-bf", str(b_frames))}
    words = f"{suffix} {b_frames} B-frames"
    yield Cell(name=f"edit list: copied from 0.4 s {words}", remux=(("-ss", "0.4"), ()), **made)
    yield Cell(name=f"edit list: trimmed {words}", patch=_trimmed, **made)
    both = ("-output_ts_offset", "1.5")
    yield Cell(name=f"edit list: empty, copied {words}", remux=(("-ss", "0.4"), both), **made)
  kept = ("-avoid_negative_ts", "disabled", "-muxdelay", "0", "-muxpreload", "0")
  kinds = ((".ts", "libx264", 3), (".ts", "mpeg2video", 3), (".mpg", "mpeg2video", 3))
  for suffix, codec, b_frames in (*kinds, (".ts", "libx265", 0), (".mkv", "libx264", 3)):
    made = {"suffix": suffix, "codec": codec, "rate": RATES.get(codec, 12)}
    reorder, words = ("-bf", str(b_frames)), f"{suffix} {codec} {b_frames} B-frames"
    encode = (*reorder, "-output_ts_offset", "-0.3", *kept)
    yield Cell(name=f"negative times {words}", encode=encode, **made)
    if suffix != ".mkv":
      # 2**33 ticks of 1/90000 s are 95443.7 s.
      encode = (*reorder, "-output_ts_offset", "95443.5", *kept)
      yield Cell(name=f"wrapped times {words}", encode=encode, **made)


def _tracks() -> Iterator[Cell]:
  small = ("-filter:v:0", "crop=64:48,format=yuv420p", "-filter:v:1", "hflip,format=yuv420p")
  large = ("-filter:v:0", "hflip,format=yuv420p", "-filter:v:1", "crop=64:48,format=yuv420p")
  alike = ("-filter:v:0", "null,format=yuv420p", "-filter:v:1", "hflip,format=yuv420p")
  for words, filters in {"the first larger": large, "the second larger": small, "": alike}.items():
    for default in ("1", "0", "none", "both"):
      flags = [("default" if default in (track, "both") else "0") for track in "01"]
      encode = ("-map", "0:v", "-map", "0:v", *filters)
      encode += ("-disposition:v:0", flags[0], "-disposition:v:1", flags[1])
      for suffix in (".mkv", ".mp4"):
        name = f"two tracks: default {default} {words} {suffix}"
        yield Cell(name=name, suffix=suffix, codec="libx264", encode=encode)


def _rates() -> Iterator[Cell]:
  for rate, suffix in itertools.product((1, 23.976, 59.94, 60, 90, 1000), (".mp4", ".mkv", ".ts")):
    name = f"{rate} frames per second {suffix}"
    yield Cell(name=name, suffix=suffix, codec="libx264", rate=rate)


def _interlaced() -> Iterator[Cell]:
  flags, woven = ("-flags", "+ildct+ilme"), "interlace=scan=tff:lowpass=0,setfield=tff"
  for suffix, codec, options in (
    (".mkv", "mpeg2video", ("-top", "1", *flags)),
    (".mpg", "mpeg2video", flags),
    (".mp4", "libx264", ("-x264-params", "tff=1")),
    (".ts", "libx264", ("-x264-params", "bff=1")),
    (".avi", "mpeg4", flags),
    (".mov", "prores_ks", flags),
  ):
    # One thread: with more, FFmpeg decodes interlaced MPEG-4 otherwise.
    made = {"suffix": suffix, "codec": codec, "rate": 48, "decode": ("-threads", "1")}
    made |= {"encode": ("-vf", f"{woven},format=yuv420p", *options), "count": 24}
    yield Cell(name=f"interlaced {codec} {suffix}", **made)
    show = ("-vf", "bwdif=mode=send_frame")
    yield Cell(name=f"deinterlaced {codec} {suffix}", deinterlace=True, show=show, **made)


def _others() -> Iterator[Cell]:
  # Its times are hundredths of a second.
  yield Cell(name="animated gif", suffix=".gif", codec="gif", tolerance=0.006)
  for codec, options in (("libvpx", ("-auto-alt-ref", "0")), ("libvpx-vp9", ())):
    encode = ("-vf", f"format=yuva420p,{ALPHA}", "-pix_fmt", "yuva420p", *options)
    made = {"suffix": ".webm", "codec": codec, "encode": encode, "decode": ("-c:v", codec)}
    yield Cell(name=f"alpha {codec}", **made)
  encode = ("-vf", f"format=yuva444p,{ALPHA},format=argb")
  yield Cell(name="alpha qtrle", suffix=".mov", codec="qtrle", encode=encode)
  encode = ("-vf", f"format=yuva444p,{ALPHA},format=yuva444p10le", "-profile:v", "4")
  yield Cell(name="alpha prores_ks", suffix=".mov", codec="prores_ks", encode=encode)


def _turned(matrix: Sequence[int], content: bytes) -> bytes:
  """An MP4 with another display matrix."""
  changed = bytearray(content)
  at = changed.index(b"tkhd") + 4
  at += {0: 40, 1: 52}[changed[at]]
  a, b, c, d = (v << 16 for v in matrix)
  changed[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
  return bytes(changed)


def _turned_matroska(matrix: Sequence[int], content: bytes) -> bytes:
  """The same as Matroska; FFmpeg 5 writes no display matrix there."""
  copy = io.BytesIO()
  with (
    av.open(io.BytesIO(_turned(matrix, content))) as source,
    av.open(copy, "w", "matroska") as to,
  ):
    track = to.add_stream_from_template(source.streams.video[0])
    for packet in source.demux(source.streams.video[0]):
      if packet.dts is not None:
        packet.stream = track
        to.mux(packet)
  return copy.getvalue()


def _trimmed(content: bytes) -> bytes:
  """An MP4 whose edit list shows half a second from its third frame on."""
  changed = bytearray(content)
  at = changed.index(b"elst") + 12
  _, begin = struct.unpack_from(">Ii", changed, at)
  scale = struct.unpack_from(">I", changed, changed.index(b"mdhd") + 16)[0]
  struct.pack_into(">Ii", changed, at, 500, begin + scale // 6)
  return bytes(changed)


def ffmpeg(*arguments: str) -> bytes:
  """Output of the command. Raises RuntimeError with its message."""
  command = [FFMPEG or "ffmpeg", "-nostdin", "-hide_banner", "-loglevel", "error", "-y"]
  done = subprocess.run([*command, *arguments], capture_output=True, check=False)
  if done.returncode:
    raise RuntimeError(done.stderr.decode(errors="replace")[-300:].strip())
  return done.stdout


def encode(cell: Cell, folder: Path) -> Path:
  """Writes the file of a cell. Raises RuntimeError if this FFmpeg cannot."""
  return encode_together([cell], folder)[0]


def encode_together(cells: Sequence[Cell], folder: Path) -> list[Path]:
  """Writes the files of several cells with one command, whose start takes longer than the work for a file.

  Raises RuntimeError if this FFmpeg cannot write one of them.
  """
  sources = list(dict.fromkeys(map(_source, cells)))
  inputs = [part for source in sources for part in ("-f", "lavfi", "-i", source)]
  paths = [folder / f"{number}{cell.suffix}" for number, cell in enumerate(cells)]
  outputs, copies = [], []
  for number, (cell, path) in enumerate(zip(cells, paths, strict=True)):
    quality = [] if cell.codec in NO_QUALITY else QUALITY.get(cell.codec, ["-q:v", "2"])
    if cell.codec not in NO_QUALITY and "format=" not in " ".join(cell.encode):
      quality = [*quality, "-pix_fmt", "yuv420p"]
    track = f"{sources.index(_source(cell))}:v"
    options = [track if option == "0:v" else option for option in cell.encode]
    if "-map" not in options:
      options = ["-map", track, *options]
    changed = cell.patch or cell.remux
    first = folder / f"{number}_first{'.mp4' if cell.patch else cell.suffix}" if changed else path
    outputs += ["-c:v", cell.codec, *quality, *options, str(first)]
    if cell.remux:
      copies.append((cell.remux, first, path))
  ffmpeg(*inputs, *outputs)
  for number, (cell, path) in enumerate(zip(cells, paths, strict=True)):
    if cell.patch:
      path.write_bytes(cell.patch((folder / f"{number}_first.mp4").read_bytes()))
  if copies:
    inputs = [part for (before, _), first, _ in copies for part in (*before, "-i", str(first))]
    outputs = [
      part
      for number, ((_, after), _, path) in enumerate(copies)
      for part in ("-map", f"{number}:v", "-c", "copy", *after, str(path))
    ]
    ffmpeg(*inputs, *outputs)
  return paths


def _source(cell: Cell) -> str:
  smooth = f"scale=12:8,scale={WIDTH}:{HEIGHT}:flags=bicubic,format=yuv444p"
  brighter = "geq=lum='clip(lum(X,Y)*0.5+10*N,16,235)':cb='cb(X,Y)':cr='cr(X,Y)'"
  source = f"testsrc2=size={WIDTH}x{HEIGHT}:rate={cell.rate}:duration={cell.count / cell.rate}"
  return f"{source},{smooth},{brighter}"


def several_tracks(cell: Cell) -> bool:
  """Whether FFmpeg chooses what it shows, which it does for one file per command."""
  return "-map" in cell.encode


def show_together(files: Sequence[tuple[Path, Cell]]) -> list[tuple[str, bytes]]:
  """What FFmpeg's command line shows of files, with one command: lines with the times, and the pixels of the frames."""
  assert len(files) == 1 or not any(several_tracks(cell) for _, cell in files)
  inputs, outputs, made = [], [], []
  for number, (path, cell) in enumerate(files):
    inputs += [*cell.decode, "-i", str(path)]
    chosen = ["-map", f"{number}:v"] if len(files) > 1 else []
    shown = [*chosen, *cell.show, "-fps_mode", "passthrough"]
    lines, raw = (path.with_name(f"{path.name}.{kind}") for kind in ("framecrc", "raw"))
    outputs += [*shown, "-f", "framecrc", str(lines)]
    outputs += [*shown, "-pix_fmt", "rgba" if _has_alpha(cell) else "rgb24"]
    outputs += ["-f", "rawvideo", str(raw)]
    made.append((lines, raw))
  ffmpeg(*inputs, *outputs)
  return [(lines.read_text(), raw.read_bytes()) for lines, raw in made]


def _has_alpha(cell: Cell) -> bool:
  return cell.name.startswith("alpha")


def _frames_and_times(
  shown: tuple[str, bytes], cell: Cell, shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """Frames over white and their times since the first, of what FFmpeg shows; `shape` is of one frame."""
  lines, raw = shown[0].splitlines(), shown[1]
  base = next(line for line in lines if line.startswith("#tb")).split(":")[1].strip()
  numerator, denominator = map(int, base.split("/"))
  ticks = [int(line.split(",")[2]) for line in lines if not line.startswith("#")]
  times = np.array(ticks) * numerator / denominator
  alpha = _has_alpha(cell)
  height, width = shape[:2]
  frames = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 4 if alpha else 3).astype(float)
  if alpha:
    opacity = frames[..., 3:] / 255
    frames = frames[..., :3] * opacity + 255 * (1 - opacity)
  return frames, times - times[0]


def shown_by_reader(path: Path, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
  """Frames and their times since the first. Raises MediaError."""
  if cell.deinterlace:
    with reading.open_video(path) as video:
      read = [
        (seconds, f.to_ndarray(format="rgb24")) for seconds, f in video.frames(deinterlace=True)
      ]
  else:
    read = list(reading.iterate_frames(path))
  times = np.array([seconds for seconds, _ in read])
  return np.stack([frame for _, frame in read]).astype(float), times - times[0]


def difference(path: Path, cell: Cell, shown: tuple[str, bytes] | None = None) -> str:
  """What differs between the reader and what is expected of it; empty if nothing does.

  Args:
    path: of its file.
    cell: what is expected.
    shown: of `show_together`; by default the result of a command for this file.
  """
  try:
    frames, times = shown_by_reader(path, cell)
  except reading.MediaError as error:
    return "" if error.reason == cell.rejected else f"{error.reason}: {error}"
  if cell.rejected:
    return f"not rejected as {cell.rejected!r}"
  try:
    shown = shown or show_together([(path, cell)])[0]
    expected, expected_times = _frames_and_times(shown, cell, frames.shape[1:])
  except ValueError:
    return f"frames of {frames.shape[1]}x{frames.shape[2]} pixels are of another size"
  if len(frames) != len(expected):
    return f"{len(frames)} frames instead of {len(expected)}"
  if (late := np.abs(times - expected_times).max()) > cell.tolerance:
    return f"times differ by up to {late:.3f} s"
  if (far := np.abs(frames - expected).mean(axis=(1, 2, 3)).max()) > 2:
    return f"a frame differs by {far:.1f} of 255 on average"
  return ""
