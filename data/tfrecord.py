"""TFRecord framing without TensorFlow: length, masked crc32c of the length, payload, masked crc32c of the payload.

Source: https://www.tensorflow.org/tutorials/load_data/tfrecord ("TFRecords format details").
"""

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

_MASK_DELTA = 0xA282EAD8


class CorruptRecord(ValueError):
  """A TFRecord stream with a wrong checksum or length."""


def masked_crc32c(payload: bytes) -> int:
  """The checksum that TFRecord stores: crc32c, rotated right by 15 bits, plus a constant."""
  import google_crc32c

  crc = google_crc32c.value(payload)
  return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
  """One record with its framing, as it is stored in the file."""
  length = struct.pack("<Q", len(payload))
  length_crc, payload_crc = (struct.pack("<I", masked_crc32c(part)) for part in (length, payload))
  return b"".join((length, length_crc, payload, payload_crc))


def read_records(stream: BinaryIO, *, name: str = "stream") -> Iterator[bytes]:
  """Payloads of a TFRecord stream, each checked.

  Args:
    stream: binary file, positioned at a record.
    name: name of the stream in errors.

  Raises:
    CorruptRecord: if a checksum differs or the file ends inside a record.
  """
  index = 0
  while header := stream.read(12):
    if len(header) < 12:
      raise CorruptRecord(f"{name}: record {index} ends inside its header")
    length, length_crc = struct.unpack("<QI", header)
    if masked_crc32c(header[:8]) != length_crc:
      raise CorruptRecord(f"{name}: record {index} has a damaged length field")
    payload, footer = stream.read(length), stream.read(4)
    if len(payload) < length or len(footer) < 4:
      raise CorruptRecord(f"{name}: record {index} ends before its {length} bytes")
    if masked_crc32c(payload) != struct.unpack("<I", footer)[0]:
      raise CorruptRecord(f"{name}: record {index} does not match its checksum")
    yield payload
    index += 1


def complete_records(content: bytes, *, name: str) -> tuple[list[bytes], int]:
  """Payloads of the complete records at the beginning of `content`, each checked, and the length of these records."""
  end = 0
  while end + 12 <= len(content):
    (length,) = struct.unpack_from("<Q", content, end)
    if end + length + 16 > len(content):
      break
    end += length + 16
  return list(read_records(io.BytesIO(content[:end]), name=name)), end
