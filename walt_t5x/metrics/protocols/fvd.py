"""FVD between any two folders: one 16-frame clip of every file, at the size of the files."""

from walt_t5x.metrics.protocols.protocol import FVD, Protocol

PROTOCOL = Protocol(
  name="fvd",
  scores=(FVD,),
  frames=16,
  size=None,
  source="network and statistics of arXiv:1812.01717; counts and sizes are the folders' own",
)
