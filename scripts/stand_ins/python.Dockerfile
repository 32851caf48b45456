# Stands in for python:*-slim: Debian with the Python that this machine has, which is the build context.
FROM tandem-stand-in/debian
RUN apt-get update && apt-get install -y --no-install-recommends libbz2-1.0 libexpat1 libffi8 liblzma5 libncursesw6 \
    libreadline8t64 libsqlite3-0 libssl3t64 libuuid1 netbase tzdata zlib1g && rm -rf /var/lib/apt/lists/*
COPY bin /usr/local/bin
COPY lib /usr/local/lib
ARG NAME
RUN ldconfig && "$NAME" -m ensurepip \
    && for alias in python3 python; do ln -s "$NAME" "/usr/local/bin/$alias"; done && ln -s pip3 /usr/local/bin/pip
CMD ["python3"]
