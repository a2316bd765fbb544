"""Text to video: Parquet tables of clips and of long videos, WebVid's CSV, tar files of the two downloaders."""

import io
import json
import tarfile
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from data.lookalikes import media, ucf101
from data.lookalikes.corpus import NO_ROW, WRITTEN, Corpus, broken_videos

LONG_VIDEOS = "LONG_VIDEOS.parquet"
MANIFEST, WEBVID = "MANIFEST.parquet", "webvid/results_2M_train.csv"
IMAGES, VIDEOS = "img2dataset/{00000..00001}.tar", "video2dataset/00000.tar"
SOURCES = {
  MANIFEST: (),
  WEBVID: (
    "--media_root=webvid/videos",
    "--uri_template={page_dir}/{videoid}.mp4",
    "--column=caption=name",
  ),
  IMAGES: (),
  VIDEOS: (),
}
# (rate, height, width).
_FORMS = ((24, 144, 256), (25, 176, 144), (30, 144, 176))
SECONDS = 3.0


def write(corpus: Corpus) -> None:
  """Writes the manifests, their media, and UCF-101, which the model is scored on."""
  _parquet(corpus)
  _webvid(corpus)
  _img2dataset(corpus)
  _video2dataset(corpus)
  _long_videos(corpus)
  ucf101.write(Corpus(corpus.folder, seed=corpus.seed, seconds=corpus.seconds))


def _clip(corpus: Corpus, **options: Any) -> tuple[bytes, str]:
  """A clip and its caption."""
  seed = corpus.scene()
  rate, height, width = _FORMS[seed % len(_FORMS)]
  frames = round((corpus.seconds or SECONDS) * rate)
  arguments: dict[str, Any] = {"num_frames": frames, "rate": rate, "size": (height, width)}
  return media.video(seed, **arguments | options), media.scene(seed).caption


def _still(corpus: Corpus, **options: Any) -> tuple[bytes, str]:
  seed = corpus.scene()
  content = media.picture(seed, size=(160, 144 + 16 * (seed % 3)), **options)
  return content, media.scene(seed, moving=False).caption


def _parquet(corpus: Corpus) -> None:
  """LAION's columns, and two of ours: `uri`, the local file, and `caption`."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  rows: list[tuple[str | None, Any, float | None]] = []

  def add(
    name: str | None, caption: Any, content: bytes | None, start: float | None = None
  ) -> None:
    if content is not None and name is not None:
      corpus.write(name, content)
    rows.append((name, caption, start))

  for number in range(16):
    content, caption = _clip(corpus)
    add(f"videos/{number:05d}.mp4", caption, content, 0.25 if number % 4 == 0 else None)
  for number in range(12):
    content, caption = _still(corpus)
    add(f"images/{number:05d}.jpg", caption, content)
  if corpus.faults:
    _plant_rows(corpus, add)
  uris, captions, starts = zip(*rows)
  count = len(rows)
  columns = {
    "uri": pa.array(uris, pa.string()),
    "caption": pa.array(captions, pa.string()),
    # Spark writes such columns as decimals.
    "start_seconds": pa.array(
      [None if s is None else Decimal(f"{s:.2f}") for s in starts], pa.decimal128(8, 2)
    ),
    "URL": pa.array([f"https://example.com/{k}" for k in range(count)]),
    "WIDTH": pa.array([320] * count, pa.int32()),
    "HEIGHT": pa.array([240] * count, pa.int32()),
    "similarity": pa.array([0.3 + k % 10 / 100 for k in range(count)], pa.float32()),
    "punsafe": pa.array([k % 10 / 100 for k in range(count)], pa.float32()),
    "pwatermark": pa.array([k % 7 / 10 for k in range(count)], pa.float32()),
    "aesthetic": pa.array([4 + k % 30 / 10 for k in range(count)], pa.float64()),
    "hash": pa.array([7919 * k for k in range(count)], pa.int64()),
  }
  target = corpus.folder / MANIFEST
  pq.write_table(pa.table(columns), target, row_group_size=20)
  corpus.note("decimal_column", MANIFEST, "videos/00000.mp4", WRITTEN)


def _long_videos(corpus: Corpus) -> None:
  """Videos of four scenes, the last of which is short, and their captions."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  uris, captions = [], []
  for number in range(4):
    seeds = [corpus.scene() for _ in range(4)]
    rate, height, width = _FORMS[number % len(_FORMS)]
    frames = round((corpus.seconds or SECONDS) * rate)
    first, *then = zip(seeds, (frames, frames, frames, frames // 3))
    options: dict[str, Any] = {"rate": rate, "size": (height, width), "then": then}
    content = media.video(first[0], num_frames=first[1], **options)
    uris.append(corpus.write(f"long_videos/{number:05d}.mp4", content))
    captions.append(", then ".join(media.scene(seed).caption for seed in seeds))
  table = {"uri": pa.array(uris, pa.string()), "caption": pa.array(captions, pa.string())}
  pq.write_table(pa.table(table), corpus.folder / LONG_VIDEOS)


def _plant_rows(corpus: Corpus, add: Any) -> None:
  def plant(kind: str, name: str, caption: Any, content: bytes | None, expect: str, **more):
    corpus.note(kind, MANIFEST, name, expect)
    add(name, caption, content, **more)

  clip, caption = _clip(corpus)
  for kind, (content, reason) in broken_videos(clip, corpus.scene()).items():
    plant(kind, f"videos/{kind}.mp4", caption, content, reason)
  slow = _clip(corpus, num_frames=16, rate=4)[0]
  plant("low_frame_rate", "videos/slow.mp4", caption, slow, "low_frame_rate")
  longer = _clip(corpus, sound_seconds=9.0)[0]
  plant("sound_longer_than_picture", "videos/sound.mp4", caption, longer, WRITTEN)
  webm = _clip(corpus, container="webm", sound_seconds=9.0)[0]
  plant("sound_longer_in_webm", "videos/sound.webm", caption, webm, WRITTEN)
  plant("brackets_in_path", "videos/clip [1080p].mp4", caption, _clip(corpus)[0], WRITTEN)
  plant("late_start", "videos/start.mp4", caption, _clip(corpus)[0], "too_short", start=60.0)
  plant("missing", "videos/missing.mp4", caption, None, "missing")
  for kind, text in (("no_caption", None), ("blank_caption", " \n ")):
    plant(kind, f"videos/{kind}.mp4", text, _clip(corpus)[0], "no_caption")
  listed = "['a red square', \"the square's path\"]"
  plant("list_as_text", "videos/list.mp4", listed, _clip(corpus)[0], WRITTEN)
  corpus.note("no_uri", MANIFEST, f"{MANIFEST}:row group ", "bad_source_row")
  add(None, "a row without a file", None)
  add("videos/twice.mp4", caption, _clip(corpus)[0])
  plant("duplicate_row", "videos/twice.mp4", caption, None, "duplicate")
  still = _still(corpus)[0]
  plant("corrupt_jpeg", "images/corrupt.jpg", caption, still[:3] + bytes(range(256)), "corrupt")
  plant("html_page", "images/html.jpg", caption, media.HTML, "not_media")


def _webvid(corpus: Corpus) -> None:
  header = ("videoid", "contentUrl", "duration", "page_dir", "name")
  rows, lines = [], []

  def row(number: int, name: str) -> tuple[Any, ...]:
    page = f"{number // 50 * 50 + 1:06d}_{number // 50 * 50 + 50:06d}"
    url = f"https://ak.picdn.net/shutterstock/videos/{number}/preview/stock.mp4"
    return number, url, "PT00H00M03S", page, name

  def uri(cells: tuple[Any, ...]) -> str:
    return f"{cells[3]}/{cells[0]}.mp4"

  def add(number: int, content: bytes | None, name: str, kind: str = "", expect: str = "") -> None:
    cells = row(number, name)
    rows.append(cells)
    if content is not None:
      corpus.write(f"webvid/videos/{uri(cells)}", content)
    if kind:
      corpus.note(kind, WEBVID, uri(cells), expect)

  first = 1_066_674_784
  for number in range(8):
    content, caption = _clip(corpus)
    add(first + 17 * number, content, f"{caption}, seen from above" if number % 2 else caption)
  if corpus.faults:
    content, caption = _clip(corpus)
    add(2001, None, caption, "missing", "missing")
    add(2002, media.HTML, caption, "html_page", "not_media")
    add(2003, content[: len(content) // 8], caption, "truncated_video", "truncated")
    add(2004, content, "", "no_caption", "no_caption")
    add(2005, _clip(corpus)[0], 'a square, 6" wide', "quote_in_caption", WRITTEN)
    for number, kind, end in (
      (2006, "unclosed_quote", '"a square moves'),
      (2007, "comma_in_caption", "red, green and blue"),
      (2008, "not_utf8", "a caf\udce9 at night"),
    ):
      lines.append(",".join(map(str, row(number, end))))
      corpus.note_line(kind, WEBVID, lines, "bad_source_row")
  corpus.write_table(WEBVID, [header, *rows], lines)


def _tar(
  corpus: Corpus,
  path: str,
  members: Iterable[tuple[str, bytes | str]],
  form: int = tarfile.PAX_FORMAT,
) -> None:
  """Writes members; PAX is Python's default, so that of `webdataset.TarWriter`."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w", format=form) as tar:
    for name, content in members:
      data = content.encode() if isinstance(content, str) else content
      info = tarfile.TarInfo(name)
      info.size, info.mode = len(data), 0o444
      tar.addfile(info, io.BytesIO(data))
  corpus.write(path, file.getvalue())


def _sample(key: str, caption: str, content: bytes, suffix: str, **fields: Any) -> list:
  described = {"caption": caption, "url": f"https://example.com/{key}", "key": key}
  described |= {"status": "success", "error_message": None} | fields
  text = json.dumps(described)
  return [(f"{key}.{suffix}", content), (f"{key}.json", text), (f"{key}.txt", caption)]


def _img2dataset(corpus: Corpus) -> None:
  import pyarrow as pa
  import pyarrow.parquet as pq

  for shard in range(2):
    members, keys = [], [f"{shard:05d}{number:04d}" for number in range(6)]
    size = {"width": 160, "height": 160, "original_width": 640, "original_height": 640}
    for key in keys:
      content, caption = _still(corpus)
      exif = {"exif": "{}", "sha256": "0" * 64}
      members += _sample(key, caption, content, "jpg", **size, **exif)
    name = f"img2dataset/{shard:05d}"
    # A download that failed is a row of the table only.
    statuses = ["success"] * len(keys) + ["failed_to_download"]
    table = {"key": [*keys, f"{shard:05d}0006"], "status": statuses, "caption": [""] * 7}
    (corpus.folder / "img2dataset").mkdir(exist_ok=True)
    pq.write_table(pa.table(table), corpus.folder / f"{name}.parquet")
    stats = {"count": 7, "successes": 6, "failed_to_download": 1, "failed_to_resize": 0}
    stats |= {"duration": 1.5, "start_time": 0.0, "end_time": 1.5, "status_dict": {"success": 6}}
    corpus.write(f"{name}_stats.json", json.dumps(stats, indent=4))
    if corpus.faults and shard == 0:
      members += _odd_samples(corpus)
    _tar(corpus, f"{name}.tar", members)
    if corpus.faults and shard == 1:
      target = corpus.folder / f"{name}.tar"
      content = target.read_bytes()
      # In the text of the last sample, whose other members are complete.
      cut = content.rindex(f"{keys[-1]}.txt".encode()) + tarfile.BLOCKSIZE + 5
      target.write_bytes(content[:cut])
      corpus.note("interrupted_sample", IMAGES, f"{shard:05d}.tar::", "bad_source_row")
      corpus.note("truncated_tar", IMAGES, f"{shard:05d}.tar", "bad_source_row")


def _odd_samples(corpus: Corpus) -> list:
  content, caption = _still(corpus)
  members = []

  def plant(kind: str, sample: list, expect: str) -> None:
    name = sample[0][0]
    corpus.note(kind, IMAGES, name.partition(".")[0] or name, expect)
    members.extend(sample)

  # Too long for the header of a member.
  plant("long_name", _sample("9" * 120, caption, _still(corpus)[0], "jpg"), WRITTEN)
  plant("name_not_ascii", _sample("été_日本", caption, _still(corpus)[0], "jpg"), WRITTEN)
  for suffix in ("jpg", "txt"):
    plant("hidden_member", [(f"._000000000.{suffix}", bytes(163))], NO_ROW)
  plant("corrupt_jpeg", _sample("000000101", caption, content[:3] + bytes(99), "jpg"), "corrupt")
  plant("zero_bytes", _sample("000000102", caption, b"", "jpg"), "empty")
  plant("blank_caption", _sample("000000103", "", _still(corpus)[0], "jpg"), "no_caption")
  plant("broken_json", [("000000104.json", "{"), ("000000104.jpg", content)], "bad_source_row")
  plant("double_member", [("000000105.jpg", content)] * 2, "bad_source_row")
  apart = _sample("000000106", caption, _still(corpus)[0], "jpg")
  other = _sample("000000107", caption, _still(corpus)[0], "jpg")
  members.extend([*apart[:1], *apart[2:], *other])
  plant("members_apart", apart[1:2], "bad_source_row")
  plant("no_picture", [("000000108.txt", caption)], "bad_source_row")
  return members


def _video2dataset(corpus: Corpus) -> None:
  members = []
  for number in range(6):
    content, caption = _clip(corpus)
    members += _video_sample(f"{number:09d}", caption, content)
  if corpus.faults:
    content, caption = _clip(corpus)
    mask = _still(corpus, kind="PNG")[0]
    members += [*_video_sample("000000201", caption, content), ("000000201.mask.png", mask)]
    corpus.note("mask_beside_video", VIDEOS, "000000201.mp4", WRITTEN)
    # As GNU tar writes long names.
    members += _video_sample("8" * 120, caption, content)
    corpus.note("long_name", VIDEOS, "8" * 120, WRITTEN)
    members += _video_sample("000000202", caption, media.HTML)
    corpus.note("html_page", VIDEOS, "000000202.mp4", "not_media")
  _tar(corpus, VIDEOS, members, tarfile.GNU_FORMAT)
  stats = {"count": 7, "successes": 6, "failed_to_download": 1, "failed_to_subsample": 0}
  corpus.write("video2dataset/00000_stats.json", json.dumps(stats, indent=4))


def _video_sample(key: str, caption: str, content: bytes) -> list:
  information = {"title": caption, "duration": 3.0, "fps": 25, "width": 256, "height": 144}
  streams = [{"codec_type": "video", "codec_name": "h264", "width": 256, "height": 144}]
  return _sample(
    key,
    caption,
    content,
    "mp4",
    clips=[[0.0, 3.0]],
    yt_meta_dict={"info": information, "subtitles": None},
    video_metadata={"streams": streams, "format": {"format_name": "mov,mp4", "duration": "3.0"}},
  )
