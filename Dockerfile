# CPU:  docker build -t mvczigal .
# CUDA: docker build -t mvczigal-cuda --build-arg DEVICE=cuda .    docker run --gpus all ...
# Run:  mkdir -p runs, of the user with id 1000, as the container's is; then
#       docker run --rm -v "$PWD/runs:/home/user/runs" mvczigal train tiny
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# "cpu" or "cuda". The standard build of torch for Linux brings its own CUDA libraries, and runs on
# the CPU too; a package index with smaller CPU builds is named by CPU_INDEX.
ARG DEVICE=cpu
ARG CPU_INDEX=""
ARG EXTRAS=tracking

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /src
COPY constraints.txt ./
RUN case "$DEVICE" in \
      cpu) pip install -c constraints.txt ${CPU_INDEX:+--extra-index-url "$CPU_INDEX"} torch ;; \
      cuda) pip install -c constraints.txt torch ;; \
      *) echo "DEVICE must be cpu or cuda; got $DEVICE" >&2; exit 2 ;; \
    esac
COPY pyproject.toml hatch_build.py README.md LICENSE CITATION.cff ./
COPY fixtures fixtures
COPY mvczigal_ref mvczigal_ref
RUN pip install -c constraints.txt ".[${EXTRAS}]"

RUN useradd --create-home user
USER user
WORKDIR /home/user
ENTRYPOINT ["mvczigal"]
CMD ["--help"]
