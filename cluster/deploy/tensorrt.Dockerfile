# syntax=docker/dockerfile:1
# trtfleet with TensorRT, ONNX Runtime on CUDA and JPEG decoding on NVIDIA GPUs; nodes need a driver for CUDA 13
# and the NVIDIA container runtime. From the root of the checkout:
#   docker build -f cluster/deploy/tensorrt.Dockerfile -t trtfleet:0.1.0-tensorrt .
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS build

# All nodes of a cluster need one version; manifests name it as rayVersion.
ARG RAY_VERSION=2.60.0

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
# Ubuntu keeps only the newest version of a package, so none is pinned. PyCUDA is compiled: it comes as source.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/trtfleet

# What it depends on changes less often than its code: a layer of its own. onnxruntime-gpu holds the same module as
# onnxruntime, so it stands in for it.
COPY pyproject.toml ./
RUN python3 -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; e = p["optional-dependencies"]; print(*[d.replace("onnxruntime>", "onnxruntime-gpu>") for d in p["dependencies"]], *e["gpu"], *e["jpeg"], sep="\n")' > requirements.txt \
    && /opt/trtfleet/bin/pip install --no-cache-dir "ray[default]==${RAY_VERSION}" -r requirements.txt

COPY LICENSE README.md __init__.py errors.py py.typed ./
COPY datasets/ datasets/
COPY trt_actors/ trt_actors/
COPY cluster/ cluster/
COPY jobs/ jobs/
RUN /opt/trtfleet/bin/pip install --no-cache-dir --no-deps .


# ONNX Runtime takes CUDA's libraries and cuDNN from here, TensorRT brings its own.
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

# KubeRay's probes call wget.
# KubeRay and `ray up` start Ray in login shells, which forget PATH. `ray up` mounts files of the machine's first
# user, who is mostly number 1000 and alone may read them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 wget \
    && rm -rf /var/lib/apt/lists/* \
    && userdel --remove ubuntu \
    && groupadd --gid 1000 trtfleet \
    && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash trtfleet \
    && echo "export PATH=/opt/trtfleet/bin:\$PATH" > /etc/profile.d/trtfleet.sh

COPY --from=build /opt/trtfleet /opt/trtfleet
# "video" gives containers the library behind the JPEG unit.
ENV PATH=/opt/trtfleet/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video

USER 1000:1000
WORKDIR /home/trtfleet
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s CMD ["trtfleet", "doctor"]
CMD ["trtfleet", "--help"]
