# For a machine with an NVIDIA GPU: its driver and the container toolkit, nothing else of CUDA, which PyTorch's wheels bring.
#
#   docker build -t mlx-peft .
#   docker run --rm --gpus all -v "$PWD:/work" mlx-peft train quickstart --out runs/quickstart
#
# The program is torch-ref: mlx-peft with PyTorch. What it writes lies in the folder that is mounted, and belongs to the user 1000;
# --user "$(id -u):$(id -g)" makes it yours.

FROM python:3.12-slim AS wheel
COPY --from=ghcr.io/astral-sh/uv:0.13 /uv /usr/local/bin/
WORKDIR /source
COPY . .
RUN uv build --wheel --out-dir /wheels

FROM python:3.12-slim
# g++ is for the programs that a compiled step is made of: train.compile. Debian keeps no earlier versions that could be named.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libopenblas0-pthread \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 person
RUN --mount=from=ghcr.io/astral-sh/uv:0.13,source=/uv,target=/usr/local/bin/uv \
    --mount=from=wheel,source=/wheels,target=/wheels \
    uv pip install --system --no-cache "$(ls /wheels/*.whl)[torch,serve,track,datasets]"
USER 1000
# Caches lie in the folder that is mounted: weights are fetched once, whoever the user is.
ENV HOME=/work
WORKDIR /work
ENTRYPOINT ["torch-ref"]
CMD ["--help"]
