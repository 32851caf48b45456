# Stands in for chrislusf/seaweedfs: moto's server, another one of the S3 protocol, which keeps everything in memory and
# lets everybody in. A bucket takes the place of the address that the health check asks.
FROM tandem-stand-in/python
RUN apt-get update && apt-get install -y --no-install-recommends curl && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir "moto[s3,server]" \
    && printf '%s\n' '#!/bin/sh' 'moto_server -H 0.0.0.0 -p 8333 &' 'for bucket in tandem healthz; do' \
        '    until curl --silent --fail --request PUT "http://127.0.0.1:8333/$bucket"; do sleep 0.2; done' 'done' 'wait' \
        > /entrypoint && chmod +x /entrypoint
ENTRYPOINT ["/entrypoint"]
