# Stands in for heartexlabs/label-studio: the same release from the package index, with the part of that image's
# entry point that docker-compose.yml relies on. The build context is backend/.
FROM tandem-stand-in/python
RUN pip install --no-cache-dir uv
COPY label_studio_requirements.txt /
RUN --mount=type=cache,target=/root/.cache/uv uv pip install --system --link-mode copy -r label_studio_requirements.txt
RUN useradd --uid 999 --home-dir /label-studio label-studio \
    && install --directory --owner=label-studio /label-studio /label-studio/data \
    && printf '%s\n' '#!/bin/bash' 'set -e' 'IFS=,' 'for file in ${ENV_INJECT_SOURCES:-}; do . "$file"; done' 'exec "$@"' \
        > /entrypoint && chmod +x /entrypoint
ENV LABEL_STUDIO_BASE_DATA_DIR=/label-studio/data DJANGO_SETTINGS_MODULE=core.settings.label_studio
USER label-studio
WORKDIR /label-studio
VOLUME /label-studio/data
ENTRYPOINT ["/entrypoint"]
CMD ["label-studio"]
