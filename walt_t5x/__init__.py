"""W.A.L.T: window attention latent transformers for text-to-video generation (arXiv:2312.06662)."""

__version__ = "0.2.0"
