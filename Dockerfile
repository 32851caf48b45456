# Two variants: for machines without a GPU (the default), and for CUDA:
#   docker build -t tandem .
#   docker build -t tandem:cuda --build-arg VARIANT=cuda .
# BACKBONE=mobilenet_v3_large bakes that backbone's weights in, for sites that reach no other network.
# A list of what is in the image, as CycloneDX, into this folder: docker build --target sbom --output . .
ARG PYTHON_VERSION=3.11
ARG VARIANT=cpu


FROM python:${PYTHON_VERSION}-slim AS build
ARG UV_VERSION=0.13.9
ENV UV_FROZEN=1 UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never \
    VIRTUAL_ENV=/opt/tandem PATH=/opt/tandem/bin:$PATH
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN python -m pip install --no-cache-dir "uv==${UV_VERSION}" && uv venv --python python3 "${VIRTUAL_ENV}"
WORKDIR /src
COPY pyproject.toml uv.lock ./


# The lock file names PyTorch as PyPI has it, which cannot be imported without the CUDA libraries. Here the same
# versions come from PyTorch's own index of CPU builds, and everything else, checked by hash, from the lock file.
# nvidia-ml-py is none of them: it asks the driver, where there is one, how much memory a GPU has.
FROM build AS cpu-packages
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_VERSIONS=""
RUN --mount=type=cache,target=/root/.cache/uv \
    sed -nE 's/^name = "((cuda|nvidia)-.*|torch|torchvision|triton)"$/--no-emit-package=\1/p' uv.lock \
        | grep -v nvidia-ml-py | xargs uv export --quiet --no-default-groups --no-emit-project --extra postgresql --extra s3 --extra openvino --output-file locked.txt; \
    echo "${TORCH_VERSIONS:-$(uv export --quiet --no-hashes | grep -E '^(torch|torchvision)==')}" | tr ' ' '\n' > torch.txt; \
    uv pip install --no-deps --default-index "${TORCH_INDEX}" --requirement torch.txt; \
    uv pip install --no-deps --require-hashes --requirement locked.txt; \
    uv pip check


# Triton compiles kernels at run time, which Tandem never asks for, and is large.
FROM build AS cuda-packages
RUN --mount=type=cache,target=/root/.cache/uv \
    uv export --quiet --no-default-groups --no-emit-project --extra postgresql --extra s3 --no-emit-package triton --output-file locked.txt; \
    uv pip install --no-deps --require-hashes --requirement locked.txt


# hadolint ignore=DL3006
FROM ${VARIANT}-packages AS packages
# What nothing needs at run time: tests, headers, tools, and what OpenVINO has for other devices and file formats.
# NumPy and mpmath import their tests.
RUN packages=$(echo "${VIRTUAL_ENV}"/lib/python*/site-packages) \
    && find "${packages}" -type d -name tests ! -path '*/numpy/*' ! -path '*/mpmath/*' -prune -exec rm -r {} + \
    && find "${packages}" -path '*/openvino/libs/*' \( -name '*_[gn]pu_plugin.so' -o -name cache.json \
        -o -name '*_frontend.so*' ! -name '*_pytorch_*' ! -name '*_ir_*' \) -delete \
    && find "${packages}/torch/bin" -type f ! -name torch_shm_manager -delete \
    && rm -rf "${packages}/torch/include" "${packages}/torch/test" \
    && python -c "import scipy.sparse, sklearn, torch, torchvision"


FROM packages AS application
WORKDIR /src
COPY README.md LICENSE ./
COPY model model
COPY backend backend
RUN --mount=type=cache,target=/root/.cache/uv uv pip install --no-deps --target /opt/application . \
    && PYTHONPATH=/opt/application python -c "import backend.app, backend.embedder, backend.job_process"


FROM application AS weights
ARG BACKBONE=""
ENV TORCH_HOME=/opt/weights PYTHONPATH=/opt/application
RUN mkdir /opt/weights && { [ -z "${BACKBONE}" ] \
    || python -c 'import sys, model.backbones as b, model.weights as w; w.download(b.choose_weights(sys.argv[1]))' "${BACKBONE}" \
    || { echo "The weights of ${BACKBONE} cannot be baked in, see above. Build where they can be downloaded; or build" \
        "without BACKBONE, mount a file with the weights and name it in WEIGHTS: docs/deployment.md" >&2; exit 1; }; }


FROM application AS inventory
ARG CYCLONEDX_VERSION=7.5.0
RUN --mount=type=cache,target=/root/.cache/uv \
    uv tool run --from "cyclonedx-bom==${CYCLONEDX_VERSION}" cyclonedx-py environment \
        --pyproject pyproject.toml --output-file /sbom.json "${VIRTUAL_ENV}/bin/python" \
    && dpkg-query --show > /debian-packages.txt


FROM scratch AS sbom
COPY --from=inventory /sbom.json /debian-packages.txt /


FROM python:${PYTHON_VERSION}-slim AS runtime
ARG VARIANT
ARG VERSION=""
ARG REVISION=""
ARG BACKBONE=""
ARG TORCH_HOME=${BACKBONE:+/opt/weights}
LABEL org.opencontainers.image.title="Tandem" \
    org.opencontainers.image.description="Image classification backend for Label Studio" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    tandem.variant="${VARIANT}"
# Everything that is written goes to /data (state, weights) and /tmp: the root file system may be read-only.
RUN useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin tandem \
    && install --directory --owner=tandem --group=tandem /data
COPY --from=packages /opt/tandem /opt/tandem
COPY --from=weights /opt/weights /opt/weights
COPY --from=application /opt/application /opt/application
ENV PATH=/opt/application/bin:/opt/tandem/bin:$PATH \
    PYTHONPATH=/opt/application \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MODEL_DIR=/data \
    BACKBONE=${BACKBONE} \
    TORCH_HOME=${TORCH_HOME:-/data/torch} \
    XDG_CACHE_HOME=/tmp \
    PORT=9090
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 CMD ["python", "-c", "import http.client, os; web = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); web.request('GET', '/health'); raise SystemExit(web.getresponse().status != 200)"]
ENTRYPOINT ["tandem"]
CMD ["serve"]
