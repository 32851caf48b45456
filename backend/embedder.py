"""The embedding process: it alone keeps torch and the backbone in memory, for the web process and the worker alike."""

from __future__ import annotations

import os
import signal

import structlog

from backend.adapters.durable import exclusive_lock
from backend.adapters.shared_artifacts import open_artifacts
from backend.logs import configure_logs, log_what_nobody_caught
from backend.processes import embedder_address, embedder_lock, exit_with_parent, give_back_memory
from backend.settings import load_settings

log = structlog.get_logger()


def main() -> None:
    """Serve until a signal comes; a second process on the same socket waits until the first one has ended."""
    settings = load_settings()
    configure_logs(settings.log_level, settings.log_format, process="embedder")
    log_what_nobody_caught()
    exit_with_parent()
    give_back_memory()
    # nothing is left to be put in order, and torch would take seconds to put itself in order
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # torch takes seconds to import: the parent, and who waits for the lock, are watched before
    with exclusive_lock(embedder_lock(settings.model_dir)):
        from backend.embedding_server import EmbeddingServer
        from model.decoding import Decoders

        artifacts = open_artifacts(
            settings.resolved_artifacts_url,
            settings.artifact_cache_folder,
            max_cache_bytes=settings.artifact_cache_bytes,
        )
        server = EmbeddingServer(settings, artifacts, Decoders())
        log.info(
            "embedder ready",
            backbone=settings.backbone,
            runtime=server.runtime_name,
            digest=server.base_digest[:8],
            note=server.note,
        )
        server.serve(embedder_address(settings.model_dir))


if __name__ == "__main__":
    main()
