# Stands in for prom/prometheus: Debian's, which is older.
FROM tandem-stand-in/debian
RUN apt-get update && apt-get install -y --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner=nobody /prometheus
USER nobody
VOLUME /prometheus
ENTRYPOINT ["prometheus"]
