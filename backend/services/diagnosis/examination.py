"""All checks, one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from backend.errors import TandemError
from backend.services.diagnosis.findings import Check, Finding, Status, failed, ok, skipped
from backend.services.diagnosis.label_studio import LabelStudioChecks
from backend.services.diagnosis.machine import MachineChecks
from backend.services.diagnosis.projects import Known, ProjectChecks


class Examination:
    """Looks at the machine, at Label Studio and at each project, in that order."""

    def __init__(self, machine: MachineChecks, label_studio: LabelStudioChecks, projects: ProjectChecks) -> None:
        self._machine = machine
        self._label_studio = label_studio
        self._projects = projects

    def run(self, *, may_write: bool) -> Iterator[Finding]:
        """Make each check and tell what it found; ``may_write`` as in ``ProjectChecks``."""
        works: set[Check] = set()
        for finding in itertools.chain(self._machine.run(), self._label_studio.run()):
            if finding.status is Status.OK:
                works.add(finding.check)
            yield finding
        if Check.DATABASE not in works:
            yield skipped(Check.WORKER, "the database cannot be read")
            yield skipped(Check.PROJECTS, "the database cannot be read")
            return
        yield self._machine.worker()
        projects = self._projects.known()
        if not projects:
            yield skipped(Check.PROJECTS, "none is known yet: connect one in Label Studio, Settings > Model")
            return
        yield ok(Check.PROJECTS, f"{len(projects)} known")
        asks = works >= {Check.LABEL_STUDIO, Check.API_KEY}
        if asks:
            yield from self._label_studio.judge_our_url(projects[-1].project.identity.label_studio_id)
        for known in projects:
            yield from self._of(known, asks=asks, may_write=may_write)

    def _of(self, known: Known, *, asks: bool, may_write: bool) -> Iterator[Finding]:
        try:
            yield from self._projects.run(known, asks=asks, may_write=may_write)
        except TandemError as error:
            yield failed(Check.PROJECT, str(error), "do what the message says", project=known.project.id)
