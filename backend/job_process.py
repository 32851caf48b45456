"""The child process of a training: reads jobs from standard input, one JSON line each, and answers in JSON lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import structlog
from pydantic import BaseModel

from backend.adapters.executors import JobMessage
from backend.adapters.priority import lower_priority
from backend.bootstrap import Container
from backend.domain import JobKind, Progress
from backend.errors import PASSING_ERRORS, TandemError, TrainingImpossible
from backend.logs import configure_logs, log_what_nobody_caught
from backend.processes import exit_with_parent, give_back_memory, one_linear_algebra_thread
from backend.settings import load_settings

log = structlog.get_logger()


class JobRequest(BaseModel):
    """What to run."""

    job_id: int
    kind: JobKind
    project_id: int


def main() -> None:
    """Run jobs until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    # whatever a library prints must not end up among the answers
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(message: JobMessage) -> None:
        answers.write(message.model_dump_json() + "\n")
        answers.flush()

    settings = load_settings()
    configure_logs(settings.log_level, settings.log_format, process="child")
    log_what_nobody_caught()
    exit_with_parent()
    give_back_memory()
    container = Container(settings)
    container.warm_up_training()
    one_linear_algebra_thread()
    for line in sys.stdin:
        request = JobRequest.model_validate_json(line)
        if request.kind is JobKind.FINETUNE:
            lower_priority()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(project=request.project_id, job=request.job_id, kind=request.kind.value)
        say(_run(container, request, say))


def _run(container: Container, request: JobRequest, say: Callable[[JobMessage], None]) -> JobMessage:
    def report(progress: Progress) -> None:
        say(JobMessage(done=progress.done, total=progress.total, unit=progress.unit))

    try:
        handler = container.job_handlers[request.kind]
        return JobMessage(outcome=handler(request.project_id, report))
    except TrainingImpossible as error:
        return JobMessage(impossible=str(error))
    except PASSING_ERRORS as error:
        log.warning("job interrupted", reason=str(error))
        return JobMessage(interruption=str(error))
    except TandemError as error:
        return JobMessage(failure=str(error))
    except Exception as error:  # the process lives on for the next job, and the log keeps the traceback
        log.exception("job failed")
        return JobMessage(failure=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
