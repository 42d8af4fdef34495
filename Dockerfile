# beit3-bench in a container.
#
#   docker build -t beit3-bench .                                              CPU
#   docker build -t beit3-bench --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .    with the libraries of a CUDA image
#   docker build -t beit3-bench --build-arg EXTRAS=captions,peers,fast .       optional packages, by the names in pyproject.toml
#
#   docker run --rm beit3-bench demo --quick --output /tmp/demo
#   docker run --rm --gpus all --shm-size 8g -v /data:/data:ro -v $PWD:/work beit3-bench run --task coco-retrieval \
#       --checkpoint weights/beit3_base_patch16_384_coco_retrieval.pth --data-root /data/coco
#
# BASE: any image of Debian or Ubuntu with Python 3.11 to 3.13 as python3, or none (Ubuntu's is installed).
# TORCH_INDEX: of the registry that torch is taken from (the one for CPUs of pytorch.org makes an image of 2 GB instead of 8).
# The dense stack (EXTRAS=dense) is compiled and needs build-essential and python3-dev in the base.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

ARG EXTRAS=captions,peers,fast
ARG TORCH_INDEX=

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH

# Java: METEOR and SPICE of the caption tasks.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends default-jre-headless \
    && (command -v python3 || apt-get install --yes --no-install-recommends python3) \
    && (python3 -c 'import ensurepip, venv' || apt-get install --yes --no-install-recommends python3-venv) \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv $VIRTUAL_ENV
COPY constraints.txt /src/
RUN pip install --constraint /src/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
COPY . /src
RUN pip install --constraint /src/constraints.txt "/src[$EXTRAS]" && rm -rf /src

RUN useradd --create-home bench
USER bench
WORKDIR /work
ENTRYPOINT ["beit3-bench"]
CMD ["--help"]
