"""What gunicorn does beside serving; it reads this module as its configuration.

The application is made once and then shared: a worker is a fork of gunicorn's master process, where no connection,
file or thread of the application is open that a fork would break. Each worker opens its own when it needs them.
"""

from __future__ import annotations

import gc

from flask import Flask

from backend.app import create_app
from backend.logs import log_what_nobody_caught
from backend.processes import exit_with_parent, give_back_memory
from backend.supervisor import wrong_settings_told

preload_app = True


# Gunicorn's own lines go where all others go, in their format.
logconfig_dict = {
    "root": {"level": "INFO"},
    "loggers": {"gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True}},
}


def application() -> Flask:
    """Return the web application, or end for good where settings do not work."""
    with wrong_settings_told():
        return create_app()


def on_starting(server: object) -> None:  # noqa: ARG001 - gunicorn passes itself
    """End with the supervisor, even if that was killed: nothing may go on holding the port."""
    log_what_nobody_caught()
    exit_with_parent()
    give_back_memory()


def pre_fork(server: object, worker: object) -> None:  # noqa: ARG001 - gunicorn passes itself and the worker
    """Hide what there is from garbage collection: it writes to all it looks at, and shared pages are copied then."""
    gc.freeze()
