# syntax=docker/dockerfile:1
# trtfleet on CPUs. From the root of the checkout:
#   docker build -f cluster/deploy/cpu.Dockerfile -t trtfleet:0.1.0-cpu .
FROM python:3.11.13-slim-bookworm AS build

# All nodes of a cluster need one version; manifests name it as rayVersion.
ARG RAY_VERSION=2.60.0

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
RUN python -m venv /opt/trtfleet

# What it depends on changes less often than its code: a layer of its own.
COPY pyproject.toml ./
RUN python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], sep="\n")' > requirements.txt \
    && /opt/trtfleet/bin/pip install --no-cache-dir "ray[default]==${RAY_VERSION}" -r requirements.txt

COPY LICENSE README.md __init__.py errors.py py.typed ./
COPY datasets/ datasets/
COPY trt_actors/ trt_actors/
COPY cluster/ cluster/
COPY jobs/ jobs/
RUN /opt/trtfleet/bin/pip install --no-cache-dir --no-deps .


FROM python:3.11.13-slim-bookworm

# KubeRay's probes call wget. Debian keeps only the newest version of a package, so none is pinned.
# KubeRay and `ray up` start Ray in login shells, which forget PATH. `ray up` mounts files of the machine's first
# user, who is mostly number 1000 and alone may read them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 trtfleet \
    && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash trtfleet \
    && echo "export PATH=/opt/trtfleet/bin:\$PATH" > /etc/profile.d/trtfleet.sh

COPY --from=build /opt/trtfleet /opt/trtfleet
ENV PATH=/opt/trtfleet/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0

USER 1000:1000
WORKDIR /home/trtfleet
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s CMD ["trtfleet", "doctor"]
CMD ["trtfleet", "--help"]
