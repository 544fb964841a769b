# Two stages: the first has what it takes to install, the second only what it takes to run.
# Build for release with the digest of the base image:
#   docker build --build-arg PYTHON=python:3.11-slim@sha256:...
ARG PYTHON=python:3.11-slim

FROM ${PYTHON} AS build
WORKDIR /build
COPY requirements-runtime.txt ./
RUN python -m venv /opt/holdfast \
 && /opt/holdfast/bin/pip install --no-cache-dir --require-hashes -r requirements-runtime.txt
# The build backend, with its hashes, from the lock of the whole; it stays in this stage.
COPY requirements.txt ./
RUN awk '/^[a-z]/ { keep = /^setuptools==/ } keep' requirements.txt > backend.txt \
 && python -m pip install --no-cache-dir --require-hashes -r backend.txt
COPY pyproject.toml README.md ./
COPY exchange exchange
COPY engine engine
COPY mdgateway mdgateway
COPY riskd riskd
COPY ledgerd ledgerd
COPY holdfast holdfast
RUN python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir wheels . \
 && /opt/holdfast/bin/pip install --no-cache-dir --no-deps wheels/*.whl

FROM ${PYTHON}
# Kubernetes names the user of each container; alone, the image runs as the engine's.
RUN groupadd --gid 10000 holdfast \
 && useradd --uid 10001 --gid 10000 --no-create-home --shell /usr/sbin/nologin engine \
 && install -d -o 10001 -g 10000 -m 2770 /run/holdfast /var/lib/holdfast /var/cache/holdfast
COPY --from=build /opt/holdfast /opt/holdfast
ENV PATH=/opt/holdfast/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/var/cache/holdfast
USER 10001:10000
WORKDIR /var/lib/holdfast
ENTRYPOINT []
CMD ["holdfast", "--help"]
