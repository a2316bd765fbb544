"""Deinterlaces decoded frames with FFmpeg's filter bwdif: one frame for each, as `ffmpeg -vf bwdif=mode=send_frame`."""

import collections
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from av import VideoFrame

# Frames that are not marked as interlaced pass unchanged.
_FILTER = ("bwdif", "mode=send_frame:deint=interlaced")


def deinterlaced(
  shown: Iterable[tuple[float, "VideoFrame"]],
) -> Iterator[tuple[float, "VideoFrame"]]:
  """(seconds, frame) with the same times; a frame is known one frame later, because it depends on its neighbors."""
  # A filter accepts a single size and pixel format; both may change within a stream.
  for _, alike in itertools.groupby(shown, key=lambda pair: _layout(pair[1])):
    yield from _filtered(alike)


def _layout(frame: "VideoFrame") -> tuple[int, int, str]:
  return frame.width, frame.height, frame.format.name


def _filtered(
  shown: Iterator[tuple[float, "VideoFrame"]],
) -> Iterator[tuple[float, "VideoFrame"]]:
  graph, times = None, collections.deque[float]()
  for seconds, frame in shown:
    graph = graph or _graph(frame)
    times.append(seconds)
    graph.vpush(frame)
    yield from _pulled(graph, times)
  if graph:
    graph.vpush(None)
    yield from _pulled(graph, times)


def _graph(frame: "VideoFrame") -> Any:
  from av.filter import Graph

  graph = Graph()
  graph.threads = 1
  source = graph.add_buffer(
    width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
  )
  graph.link_nodes(source, graph.add(*_FILTER), graph.add("buffersink")).configure()
  return graph


def _pulled(graph: Any, times: collections.deque[float]) -> Iterator[tuple[float, "VideoFrame"]]:
  """The frames that are complete, each with the time of the frame it was made from."""
  from av.error import BlockingIOError, EOFError

  while times:
    try:
      frame = graph.vpull()
    except (BlockingIOError, EOFError):
      return
    yield times.popleft(), frame
