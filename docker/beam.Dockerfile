# Image of Beam workers, for Dataflow and other runners that use containers (docs/dataflow.md):
#
#   docker build --file=docker/beam.Dockerfile --tag=REGION-docker.pkg.dev/PROJECT/REPO/walt_t5x:1 .
#
# GPU workers: --build-arg=EXTRA_LOCK=requirements-gpu.lock. The tag below is the apache-beam version of
# requirements.lock. The user is root, as in Beam's own image: runners mount their staging folders for root.
FROM apache/beam_python3.11_sdk:2.77.0

# Debian drops old versions, so a pin would break the build.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends libtcmalloc-minimal4 \
  && rm -rf /var/lib/apt/lists/*
# With glibc, XLA's CPU client returns its buffers to the kernel at every step; tcmalloc keeps them. The loader finds
# the bare name on every architecture.
ENV LD_PRELOAD=libtcmalloc_minimal.so.4

WORKDIR /src
COPY requirements.lock requirements-stores.lock requirements-curate.lock requirements-gpu.lock ./
ARG EXTRA_LOCK=
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock -r requirements-stores.lock -r requirements-curate.lock \
  ${EXTRA_LOCK:+-r "$EXTRA_LOCK"}

COPY setup.py pyproject.toml README.md LICENSE ./
COPY gin gin
COPY walt_t5x walt_t5x
COPY data data
COPY beam_jobs beam_jobs
# With the lock's setuptools: build isolation would download a version without a hash.
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
