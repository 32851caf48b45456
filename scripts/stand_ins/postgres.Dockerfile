# Stands in for postgres:17: Debian's, with the part of that image's entry point that docker-compose.yml relies on.
FROM tandem-stand-in/debian
RUN apt-get update && apt-get install -y --no-install-recommends postgresql-17 && rm -rf /var/lib/apt/lists/* \
    && rm -rf /var/lib/postgresql && install --directory --owner=postgres --mode=700 /var/lib/postgresql/data \
    && install --directory --owner=postgres /var/run/postgresql
COPY postgres-entrypoint /entrypoint
ENV PATH=/usr/lib/postgresql/17/bin:$PATH PGDATA=/var/lib/postgresql/data LANG=C.UTF-8
USER postgres
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
ENTRYPOINT ["/entrypoint"]
