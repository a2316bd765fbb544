"""Tables and tar files damaged by planted faults and random bytes, and readers that are independent of ours."""

import gzip
import io
import itertools
import json
import os
import random
import re
import tarfile
import zlib

# Fragments that are special to some reader of tables, JSON or UTF-8.
FRAGMENTS = (
  *(b'"', b'""', b'",', b',"', b",", b"\t", b";", b"\\", b"\0", b"\r", b"\n", b"\r\n", b"\x1a"),
  *(b"\xef\xbb\xbf", b"\xff", b"caf\xe9", "\u2028\x0c\x85".encode(), '"a"\r\n'.encode("utf-16")),
  *(b"[", b"{", b"}", b"[1, 2]", b"[" * 2000, b'{"uri": 1, "uri": 2}', b"x" * 140_000, b" " * 99),
)


def damaged(draw: random.Random, content: bytes, *, start: int = 0, times: int = 2) -> bytes:
  """Bytes flipped, inserted, removed, doubled or cut off after `start`."""
  found = bytearray(content)
  for _ in range(draw.randrange(1, times + 1)):
    at = draw.randrange(start, max(start + 1, len(found)))
    size = draw.choice((1, 1, 2, 7, 30, 300))
    kind = draw.choice(("flip", "insert", "fragment", "remove", "double", "cut"))
    if kind == "flip":
      found[at : at + 1] = bytes([draw.randrange(256)])
    elif kind == "insert":
      found[at:at] = draw.randbytes(size)
    elif kind == "fragment":
      found[at:at] = draw.choice(FRAGMENTS)
    elif kind == "remove":
      del found[at : at + size]
    elif kind == "double":
      found[at:at] = found[at : at + size]
    else:
      del found[at:]
  return bytes(found)


def header_flipped(draw: random.Random, content: bytes) -> bytes:
  """A tar with one bit of one block changed."""
  found = bytearray(content)
  found[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
  return bytes(found)


def resized(draw: random.Random, content: bytes) -> bytes:
  """A tar of which one header states another size, with the right checksum."""
  headers = [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]
  at = draw.choice(headers)
  size = draw.choice((-(1 << 20), -512, -512, 0, 513, 1 << 62))
  header = bytearray(content[at : at + 512])
  header[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 256**11).to_bytes(11, "big")
  header[148:156] = b"%06o\0 " % _checksums(bytes(header))[0]
  return content[:at] + bytes(header) + content[at + 512 :]


def gunzipped(content: bytes) -> tuple[bytes, bool]:
  """What Python's gzip gives of a file, and whether it is damaged."""
  found = b""
  with gzip.open(io.BytesIO(content)) as stream:
    try:
      while part := stream.read1(8192):
        found += part
      return found, False
    except (EOFError, OSError, zlib.error):
      return found, True


def table_lines(content: bytes) -> list[bytes]:
  """Lines of a table with one row per line."""
  return re.split(rb"\r\n|\r|\n", content)


# --- tar files ------------------------------------------------------------------------------------


class Archive:
  """Members (name, type, content) of a tar by the POSIX description of its blocks, and why they end."""

  def __init__(self, content: bytes):
    self.members: list[tuple[str, bytes, bytes]] = []
    self.cut = self.followed = False
    at, stated, extended = 0, {}, False
    while not self.cut:
      block = content[at : at + 512]
      if block == bytes(512):
        # An extended header belongs to the member after it.
        self.cut = extended
        self.followed = not extended and any(content[at + 512 :])
        return
      size = _number(block[124:136])
      if len(block) < 512 or _number(block[148:156]) not in _checksums(block) or size is None:
        self.cut = True
        return
      kind, at = block[156:157], at + 512
      extended = kind in (b"x", b"g", b"L", b"K")
      if not extended:
        size = int(stated.get("size", size))
      stores = kind not in b"123456" or kind == b""
      end = at + -(-size // 512) * 512 if stores else at
      body, at = content[at : end if kind == b"L" else at + size], end
      self.cut = end > len(content) or size < 0
      if extended:
        self.cut = self.cut or len(content) < at + 512
        stated |= _extension(kind, body)
        continue
      name = _text(block[:100])
      if block[257:263] == b"ustar\0" and _text(block[345:500]):
        name = f"{_text(block[345:500])}/{name}"
      name = stated.get("path", name).rstrip("/")
      is_folder = kind == b"5" or (kind == b"\0" and _text(block[:100]).endswith("/"))
      if size >= 0 and not is_folder:
        self.members.append((name, kind, body))
      stated = {}

  def rows(self, uri: str) -> list[str]:
    """What each row is found by: its media, its sample if that has a fault, or the file for a damage."""
    shown = [one for one in self.members if not re.search(r"(^|/)\.(?!\.?(/|$))", one[0])]
    groups = [(key, list(group)) for key, group in itertools.groupby(shown, key=_key)]
    found, seen = [], set()
    for index, (key, members) in enumerate(groups):
      broken = key in seen or (self.cut and index == len(groups) - 1)
      seen.add(key)
      found += [f"{uri}::{key}"] if broken else _sample_rows(uri, key, members)
    return found + [uri] * (self.cut + self.followed)


def _sample_rows(uri: str, key: str, members: list[tuple[str, bytes, bytes]]) -> list[str]:
  texts = [m for m in members if re.search(r"\.(txt|caption|cls|json)\Z", m[0], re.IGNORECASE)]
  media = [m for m in members if re.search(r"\.(png|jpg|mp4)\Z", m[0], re.IGNORECASE)]
  media = [m for m in media if os.path.basename(m[0]).count(".") == 1] or media
  names = [name for name, _, _ in media]
  sound = names and len(set(names)) == len(names) and all(map(_is_sound, texts))
  sound = sound and all(kind in (b"0", b"\0") for _, kind, _ in media)
  return [f"{uri}::{name}" for name in names] if sound else [f"{uri}::{key}"]


def _is_sound(member: tuple[str, bytes, bytes]) -> bool:
  name, kind, content = member
  try:
    text = content.decode()
    fields = json.loads(text) if name.lower().endswith(".json") else {}
    return isinstance(fields, dict) and kind in (b"0", b"\0")
  except (ValueError, RecursionError):
    return False


def _key(member: tuple[str, bytes, bytes]) -> str:
  folder, _, name = member[0].rpartition("/")
  return f"{folder}/{name.partition('.')[0]}"


def _number(field: bytes) -> int | None:
  if field[:1] in (b"\x80", b"\xff"):
    return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 255 else 0)
  try:
    return int(field.split(b"\0")[0].decode("ascii").strip() or "0", 8)
  except ValueError:
    return None


def _checksums(block: bytes) -> tuple[int, int]:
  """Sums of a header's bytes without the field for it; some writers take them for signed."""
  rest = block[:148] + block[156:]
  unsigned = sum(rest) + 8 * 32
  return unsigned, unsigned - 256 * sum(byte > 127 for byte in rest)


def _text(field: bytes) -> str:
  return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _extension(kind: bytes, body: bytes) -> dict[str, str]:
  if kind == b"L":
    return {"path": _text(body)}
  found = {}
  while kind == b"x" and (match := re.match(rb"(\d+) ([^=]+)=", body)) and int(match[1]):
    value = body[match.end() : int(match[1]) - 1]
    found[match[2].decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
    body = body[int(match[1]) :]
  return found


def archive(draw: random.Random, picture: bytes, *, samples: int = 4) -> bytes:
  """A tar of samples, with planted faults: repeated, late, hidden, linked and masked members, texts that are not."""
  form = draw.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
  stream = io.BytesIO()
  files: list[tuple[str, bytes | None]] = []
  for number in range(samples):
    key = draw.choice(("a", "B.b/c", "d/" * 9 + "n" * 40, "x y#%20")) + str(number)
    if form != tarfile.USTAR_FORMAT:
      key = draw.choice((key, f"é{key}", f"日本{key}", key + "l" * 120))
    text = f"a red field {number}".encode()
    sample = [(f"{key}.png", picture), (f"{key}.txt", text), (f"{key}.json", b'{"label": 1}')]
    fault = draw.choice(("", "", "", "twice", "late", "hidden", "link", "mask", "text", "alone"))
    if fault == "twice":
      sample.append(sample[0])
    elif fault == "hidden":
      folder, _, name = key.rpartition("/")
      sample.append((f"{folder}/._{name}.png", picture))
    elif fault == "link":
      sample[0] = (f"{key}.png", None)
    elif fault == "mask":
      sample.insert(draw.randrange(3), (f"{key}.mask.png", picture))
    elif fault == "text":
      other = (b"[1]", b"{", b"\xff", b"3", b"[" * 2000, b'{"label": 1, "label": 2}')
      sample[2] = (f"{key}.json", draw.choice(other))
    elif fault == "alone":
      sample = sample[1:]
    files += sample
    if fault == "late" and number:
      files.append(files[0])
  with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
    for name, content in files:
      info = tarfile.TarInfo(name)
      if content is None:
        info.type, info.linkname = draw.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)), "a.png"
        tar.addfile(info)
      else:
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
  return stream.getvalue()
