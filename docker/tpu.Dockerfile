# Image for training on TPU hosts, and on hosts with only GPUs or CPUs (docs/pods.md):
#
#   docker build --file=docker/tpu.Dockerfile --tag=walt_t5x:1 .
#   docker run --privileged --network=host walt_t5x:1 keep_training.sh walt-train --gin_file=gin/walt_3b.gin ...
#
# GPU hosts: --build-arg=EXTRA_LOCK=requirements-gpu.lock. CPU hosts: --build-arg=EXTRA_LOCK=.
# The default user is root, because TPU devices (/dev/vfio) belong to root; nothing in the image needs it, so use
# `docker run --user` on other hosts.
FROM python:3.11.14-slim-bookworm

# Debian drops old versions, so a pin would break the build.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends libtcmalloc-minimal4 \
  && rm -rf /var/lib/apt/lists/*
# With glibc, XLA's CPU client returns its buffers to the kernel at every step; tcmalloc keeps them. TPU VM images
# preload it on the host, but not in containers. The loader finds the bare name on every architecture.
ENV LD_PRELOAD=libtcmalloc_minimal.so.4

WORKDIR /src
COPY requirements.lock requirements-stores.lock requirements-tpu.lock requirements-gpu.lock ./
ARG EXTRA_LOCK=requirements-tpu.lock
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock -r requirements-stores.lock \
  ${EXTRA_LOCK:+-r "$EXTRA_LOCK"}

COPY setup.py pyproject.toml README.md LICENSE ./
COPY gin gin
COPY walt_t5x walt_t5x
COPY data data
COPY beam_jobs beam_jobs
# With the lock's setuptools: build isolation would download a version without a hash.
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
COPY --chmod=755 scripts/keep_training.sh scripts/allocator.sh /usr/local/bin/

# Not /src: its modules would take precedence over the installed ones.
WORKDIR /work
CMD ["walt-train", "--help"]
