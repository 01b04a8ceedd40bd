# One image for heads, workers and laptops, for `ray up`, KubeRay and `docker run`:
#   docker build --tag fmwsss:0.1.0 .                                     # CUDA: the host gives the driver, nothing else
#   docker build --tag fmwsss:0.1.0-cpu --build-arg TORCH_INDEX=URL .     # CPU alone: URL of PyTorch's index of CPU wheels
# Sizes and what was tried of it: docs/cluster.md.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:${PYTHON}-slim-bookworm
# Extras of pyproject.toml; `s3` alone would do for AWS.
ARG EXTRAS=segmenter,s3,gcs,azure
# Empty: the registry's own wheels of torch, which bring CUDA's libraries.
ARG TORCH_INDEX=
LABEL org.opencontainers.image.title="fmwsss" org.opencontainers.image.licenses="Apache-2.0"
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# rsync: `ray up` copies files through it. wget: KubeRay's probes.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends rsync wget && rm -rf /var/lib/apt/lists/*

# torch first: it is most of the image, and stays the same from one release of the product to the next.
COPY constraints.txt /tmp/
RUN if [[ -n "$TORCH_INDEX" ]]; then \
      grep -E '^(torch|torchvision)==' /tmp/constraints.txt > /tmp/torch.txt \
      && pip install --no-cache-dir --index-url "$TORCH_INDEX" --requirement /tmp/torch.txt; \
    else pip install --no-cache-dir --constraint /tmp/constraints.txt torch torchvision; fi

COPY --from=wheel /wheel /tmp/wheel
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt "$(ls /tmp/wheel/*.whl)[$EXTRAS]" \
    && rm -rf /tmp/wheel /tmp/torch.txt
COPY LICENSE NOTICE /usr/share/doc/fmwsss/

# 1000 is also the first user of cloud images, whose files (the token) are read in the container. Everything is in
# /usr/local, because `ray up` starts login shells, which set PATH anew.
RUN useradd --create-home --uid 1000 --shell /bin/bash ray
USER 1000
WORKDIR /home/ray
ENV RAY_USAGE_STATS_ENABLED=0 PYTHONUTF8=1
CMD ["fmwsss", "--help"]
