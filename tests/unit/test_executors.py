"""Jobs in real child processes: their crashes end with them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from backend.adapters.executors import ProcessExecutor, ThreadExecutor
from backend.adapters.priority import LEAST_PRIORITY
from backend.domain import JobKind, Progress
from backend.errors import JobCancelled, JobFailed, JobInterrupted, JobProcessDied, TrainingImpossible
from tests.factories import make_job
from tests.fakes import Reports
from tests.world import World, pets

HEAD = make_job(1, JobKind.HEAD)


def pid_of(executor: ProcessExecutor) -> int | None:
    child = executor._child
    return child.pid if child and child.poll() is None else None


def priority_of(pid: int) -> tuple[int, int]:
    """Return the policy by which a process gets its turns, and its niceness."""
    return os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid)


@pytest.fixture
def environment(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A project with enough labels, in the folder that the child finds in its settings."""
    monkeypatch.setenv("MODEL_DIR", str(world.folder))
    monkeypatch.setenv("LOG_LEVEL", "WARNING")
    world.see_tasks(pets(12))
    world.label(pets(12))
    world.embed()
    return world


@pytest.fixture
def warm() -> Iterator[ProcessExecutor]:
    executor = ProcessExecutor(keep_warm=True)
    yield executor
    executor.close()


class TestInThread:
    def test_the_handler_of_the_kind_runs(self) -> None:
        def handle(project_id: int, report: Reports) -> str:
            report(Progress(done=1, total=2, unit="tasks"))
            return f"project {project_id} synced"

        reports = Reports()
        executor = ThreadExecutor({JobKind.SYNC: handle})  # type: ignore[dict-item]
        assert executor.run(make_job(1, JobKind.SYNC), reports) == "project 5 synced"
        assert reports.seen == [Progress(done=1, total=2, unit="tasks")]
        executor.close()


class TestWarmChild:
    def test_one_child_runs_job_after_job_until_it_dies(self, environment: World, warm: ProcessExecutor) -> None:
        reports = Reports()
        assert warm.run(HEAD, reports).endswith("promoted: first version of the project")
        assert environment.active.n_labels == 12
        assert Progress(done=1, total=2, unit="steps") in reports.seen
        first = pid_of(warm)
        assert first is not None

        assert warm.run(HEAD, Reports()) == f"nothing new to learn since {environment.active.name}"
        environment.unlabel(*range(4, 13))
        with pytest.raises(TrainingImpossible, match="waiting for labels: 3 of 4"):
            warm.run(HEAD, Reports())
        assert pid_of(warm) == first

        os.kill(first, signal.SIGKILL)
        warm._child.wait()  # type: ignore[union-attr]
        with pytest.raises(JobFailed, match="there is no project 99"):
            warm.run(replace(HEAD, project_id=99), Reports())
        assert pid_of(warm) is None

    def test_killed_at_work_it_says_so_and_the_next_job_works(self, environment: World, warm: ProcessExecutor) -> None:
        def kill(_: Progress) -> None:
            pid = pid_of(warm)
            if pid:
                os.kill(pid, signal.SIGKILL)

        with pytest.raises(JobProcessDied, match=r"was killed \(signal 9\)"):
            warm.run(HEAD, kill)
        assert pid_of(warm) is None
        assert "promoted" in warm.run(HEAD, Reports())
        assert environment.active.number == 1

    @pytest.mark.usefixtures("environment")
    def test_a_storage_that_does_not_answer_is_worth_another_try(
        self, warm: ProcessExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ARTIFACTS_URL", "s3://bucket/prefix")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tandem")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tandem")
        with pytest.raises(JobInterrupted, match="s3://bucket/prefix cannot be used now"):
            warm.run(HEAD, Reports())
        assert pid_of(warm), "the child is not to blame"

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process's policy")
    def test_a_child_lets_all_others_go_first_once_it_fine_tunes(
        self, environment: World, warm: ProcessExecutor
    ) -> None:
        environment.unlabel(*range(4, 13))
        usual, seen = priority_of(os.getpid()), []

        def look(_: Progress) -> None:
            seen.append(priority_of(pid_of(warm) or 0))
            if seen[-1] != usual:
                raise JobCancelled("it may wait long for a processor that nobody else wants")

        with pytest.raises(TrainingImpossible):
            warm.run(HEAD, look)
        with pytest.raises((JobCancelled, TrainingImpossible)):
            warm.run(replace(HEAD, kind=JobKind.FINETUNE), look)
        if pid := pid_of(warm):
            seen.append(priority_of(pid))
        policy, niceness = seen[-1]
        assert policy in (os.SCHED_IDLE, os.SCHED_BATCH) or niceness == LEAST_PRIORITY

    def test_a_cancelled_job_ends_the_child(self, environment: World, warm: ProcessExecutor) -> None:
        warm.warm_up()
        first = pid_of(warm)

        def cancel(_: Progress) -> None:
            raise JobCancelled("cancelled on request")

        with pytest.raises(JobCancelled):
            warm.run(HEAD, cancel)
        assert first is not None
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)
        assert environment.versions == []


@pytest.mark.usefixtures("environment")
class TestOneJobEach:
    def test_the_child_ends_with_its_job(self) -> None:
        executor = ProcessExecutor(keep_warm=False)
        assert "promoted" in executor.run(HEAD, Reports())
        assert pid_of(executor) is None

    def test_a_child_that_cannot_start_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRAIN_MIN_LABELS", "many")
        executor = ProcessExecutor(keep_warm=True)
        with pytest.raises(JobFailed, match="ended with status 1: its last log lines say why"):
            executor.run(HEAD, Reports())
        assert pid_of(executor) is None
