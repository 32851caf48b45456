"""Processes of one machine that work on one thing: started and watched from here, and ended together.

Each of them, called a rank, is a fresh interpreter: neither torch's threads nor CUDA survive a fork. What ends one
rank ends all of them, and none outlives the process that started it, however that ended.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, NoReturn, TypeVar

import structlog

log = structlog.get_logger()

Result = TypeVar("Result")
OnProgress = Callable[[int, int], None]
Work = Callable[[OnProgress], Result]
"""What a rank does, given whom to tell how much is done, and of how much. It must survive pickling, like its result."""


class RankFailed(Exception):
    """A rank died, or failed for a reason that nobody expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _LogEntry:
    level: str
    event: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Returned(Generic[Result]):
    rank: int
    result: Result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Raised:
    error: Exception


_Message = _Progress | _LogEntry | _Returned[Result] | _Raised


# --- the process that watches ------------------------------------------------------------------------------


def run_ranks(
    works: Sequence[Work[Result]], *, on_progress: OnProgress, expected: tuple[type[Exception], ...] = ()
) -> Result:
    """Do each of ``works`` in a process of its own until the first one's result is there; then end them all.

    Log entries of the ranks appear in this process's log, with the number of the ``rank``.

    Args:
        works: one for each rank.
        on_progress: called here with what ranks say; what it raises ends them.
        expected: which errors of a rank to raise here as they are.

    Raises:
        RankFailed: a rank died, or raised another error.
    """
    spawning = multiprocessing.get_context("spawn")
    ranks: dict[Connection, SpawnProcess] = {}
    try:
        for rank, work in enumerate(works):
            ear, mouth = spawning.Pipe(duplex=False)
            arguments = (work, rank, mouth, expected)
            process = spawning.Process(target=_be_rank, args=arguments, name=f"rank {rank}", daemon=True)
            process.start()
            mouth.close()  # only the rank holds it now, so the pipe ends with the rank
            ranks[ear] = process
        result: Result = _listen(ranks, on_progress)
        return result
    finally:
        for process in ranks.values():
            process.kill()
        for ear, process in ranks.items():
            process.join()
            ear.close()


def _listen(ranks: Mapping[Connection, SpawnProcess], on_progress: OnProgress) -> Any:
    while True:
        for ear in wait(list(ranks)):
            match _next_message(ear):  # type: ignore[arg-type]
                case _Progress(done=done, total=total):
                    on_progress(done, total)
                case _LogEntry(level=level, event=event):
                    getattr(log, level)(**event)
                case _Returned(rank=0, result=result):
                    return result
                case _Raised(error=error):
                    # when one dies the others fail for lack of it, and may be heard first
                    raise next(_deaths(ranks.values()), error)
                case None:
                    ranks[ear].join()  # type: ignore[index]
                    raise next(_deaths(ranks.values()))


def _next_message(ear: Connection) -> _Message[Any] | None:
    """Return what a rank says next, or ``None`` at its end."""
    try:
        message: _Message[Any] = ear.recv()
        return message
    except (EOFError, OSError):  # the second in the middle of a message
        return None


def _deaths(processes: Collection[SpawnProcess]) -> Iterator[RankFailed]:
    """Yield an error for each process that is no more; none ends by itself."""
    for process in processes:
        code = process.exitcode
        if code is not None:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            remedy = "the system's log may say that memory was short" if code == -signal.SIGKILL else "see the log"
            yield RankFailed(f"{process.name} of {len(processes)} ended by {how}: {remedy}")


# --- a rank ------------------------------------------------------------------------------------------------


def _be_rank(work: Work[Any], rank: int, mouth: Connection, expected: tuple[type[Exception], ...]) -> None:
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    say = partial(_say, mouth, threading.Lock())

    def say_for_log(_: object, level: str, event: MutableMapping[str, Any]) -> NoReturn:
        say(_LogEntry(level=level, event={**event, "rank": rank}))
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.processors.format_exc_info, say_for_log])
    try:
        say(_Returned(rank=rank, result=work(lambda done, total: say(_Progress(done=done, total=total)))))
    except expected as error:
        say(_Raised(error=error))
    except Exception as error:  # whatever it is, the process that watches has to know
        log.exception("rank failed")
        say(_Raised(error=RankFailed(f"rank {rank} failed: {type(error).__name__}: {error}")))
    # whoever leaves takes the others' connections along: the end of all is for the parent to make
    _end_with_parent()


def _say(mouth: Connection, speaking: threading.Lock, message: _Message[Any]) -> None:
    with speaking:
        mouth.send(message)


def _end_with_parent() -> None:
    """Wait for the parent's end, and end this process at once, even if it waits for another rank for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
