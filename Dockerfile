# Without TORCH_INDEX: PyTorch as locked, which uses a GPU where there is one. A much smaller image for CPU only:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t tandem .
FROM python:3.11-slim AS build

ARG UV_VERSION=0.13.9
ARG TORCH_INDEX=""
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/tandem

RUN python -m pip install --no-cache-dir "uv==${UV_VERSION}" && uv venv --python python3 "${VIRTUAL_ENV}"

WORKDIR /src
COPY pyproject.toml uv.lock ./
RUN --mount=type=cache,target=/root/.cache/uv set -eu; \
    export_locked() { uv export --frozen --quiet --no-dev --no-emit-project --no-annotate --no-header "$@"; }; \
    if [ -z "${TORCH_INDEX}" ]; then \
        export_locked --output-file locked.txt; \
    else \
        export_locked --no-hashes --output-file all.txt; \
        grep -E '^(torch|torchvision)==' all.txt > torch.txt; \
        uv pip install --index "${TORCH_INDEX}" --requirement torch.txt; \
        export_locked --prune torch --prune torchvision --output-file locked.txt; \
    fi; \
    uv pip install --requirement locked.txt

COPY README.md LICENSE ./
COPY model model
COPY backend backend
RUN uv pip install --no-deps .


FROM python:3.11-slim

# Everything that is written goes to /data (state, weights) and /tmp: the root file system may be read-only.
RUN useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin tandem \
    && install --directory --owner=tandem --group=tandem /data
COPY --from=build /opt/tandem /opt/tandem
ENV PATH=/opt/tandem/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MODEL_DIR=/data \
    TORCH_HOME=/data/torch \
    XDG_CACHE_HOME=/tmp \
    PORT=9090

USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['PORT'] + '/health', timeout=4)"]
ENTRYPOINT ["tandem"]
CMD ["serve"]
