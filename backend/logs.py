"""One line per event, for people on a terminal and as JSON elsewhere; nothing secret gets in.

Every line names its process, and of request, project, job and version those that it is about: what is bound with
``structlog.contextvars`` holds for a thread, ``in_this_context`` hands it to another one, ``present_ids`` to a process.
"""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import structlog

from backend.errors import TandemError

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()

IDS = ("request", "project", "job", "kind", "version")


def configure_logs(level: str, log_format: str | None = None, *, process: str = "tandem") -> None:
    """Send all logs, ours, the libraries' and what nobody caught, to standard error.

    Args:
        level: the least level of what is told.
        log_format: ``json`` or ``console``; without it what suits where standard error leads.
        process: what each line is said to come from.
    """

    def name_process(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**event, "process": process}

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        name_process,
    ]
    final: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if (log_format or ("console" if sys.stderr.isatty() else "json")) == "console"
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # what libraries say at DEBUG may hold what they were given to keep secret
    root.setLevel(max(logging.INFO, logging.getLevelNamesMapping()[level]))
    logging.getLogger("backend").setLevel(level)


def log_what_nobody_caught() -> None:
    """Make a line of the log of warnings, and of errors that end this process or a thread of it."""

    def end(kind: type[BaseException], error: BaseException, _: object) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            log.critical("process ended by an error", exc_info=error)

    def end_thread(ended: threading.ExceptHookArgs) -> None:
        if ended.exc_type is not SystemExit:
            log.critical("thread ended by an error", exc_info=ended.exc_value)

    sys.excepthook = end
    threading.excepthook = end_thread
    logging.captureWarnings(True)


def tell_failure(event: str, error: Exception) -> None:
    """Log that something failed that goes on all the same, with a traceback where nobody had foreseen it."""
    log.error(event, reason=str(error), exc_info=None if isinstance(error, TandemError | OSError) else error)


def present_ids() -> dict[str, str | int]:
    """Return what the lines of this thread are about, to be bound in another process."""
    bound = structlog.contextvars.get_contextvars()
    return {name: bound[name] for name in IDS if bound.get(name) is not None}


def in_this_context(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function such that its lines are about the same as those of this thread, whichever thread calls it."""
    present = contextvars.copy_context()

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return present.copy().run(function, *args, **kwargs)

    return call
