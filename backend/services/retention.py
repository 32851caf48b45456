"""Versions, features and leftovers that nobody needs are removed, and features that are missing are made again."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from backend.domain import JobKind, Task, VersionStatus, surplus_versions
from backend.errors import EmbedderUnavailable
from backend.ports import ArtifactStore, Cleanable, Clock, Database, Embedder, FeatureStore
from backend.promotion import backbone_key, training_state_name, version_key
from backend.scheduling import Scheduler

log = structlog.get_logger()

MIN_UNUSED_ROWS = 1000
MIN_UNUSED_SHARE = 0.25
CHUNK_SIZE = 500


class Retention:
    """Keeps artifacts to what may be gone back to, and the feature store to what tasks and versions need."""

    def __init__(
        self,
        database: Database,
        artifacts: ArtifactStore,
        features: FeatureStore,
        embedder: Embedder,
        clock: Clock,
        scheduler: Scheduler,
        *,
        n_kept_versions: int,
        training_states: Path,
        cleanables: Sequence[Cleanable] = (),
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._features = features
        self._embedder = embedder
        self._clock = clock
        self._scheduler = scheduler
        self._n_kept_versions = n_kept_versions
        self._training_states = training_states
        self._cleanables = cleanables

    def clean(self) -> None:
        """Remove what processes that died left behind."""
        for each in self._cleanables:
            each.clean()

    def run(self) -> None:
        """Remove what nobody needs any more."""
        self.clean()
        self._remove_artifacts()
        self._remove_training_states()
        self._clear_features()

    def _remove_artifacts(self) -> None:
        """Remove the files of versions that nobody will miss, and the networks that no other version was learned on.

        The rows of the versions stay, with their metrics. Should somebody go back to one at this very moment, a new
        one is trained in its place.
        """
        networks = self._artifacts.keys("backbones")
        surplus = []
        needed = set()
        is_finetuning = False
        with self._database.snapshot() as stores:
            for project in stores.projects.all():
                versions = stores.versions.all(project.id)
                of_project = surplus_versions(versions, self._n_kept_versions, self._clock.now())
                surplus += [version_key(project.id, version.name) for version in of_project]
                needed |= {backbone_key(each.backbone_digest) for each in versions if each not in of_project}
                needed |= {backbone_key(project.backbone_digest)} if project.backbone_digest else set()
                # It publishes a network before there is a version that it belongs to.
                is_finetuning |= stores.jobs.running(project.id, JobKind.FINETUNE) is not None
        gone = sorted(set(surplus) & set(self._artifacts.keys("versions"))) if surplus else []
        unused = [] if is_finetuning else sorted(set(networks) - needed)
        for key in (*gone, *unused):
            self._artifacts.delete(key)
            log.info("files removed", key=key)

    def _remove_training_states(self) -> None:
        """Remove what fine-tunings that broke off would go on from, of projects that are forgotten."""
        # First: a project that comes while the database is read is none that was forgotten.
        folders = sorted(self._training_states.glob("*"))
        with self._database.snapshot() as stores:
            known = {training_state_name(project.id) for project in stores.projects.all()}
        for folder in folders:
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)
                log.info("state of a broken-off fine-tuning removed", folder=folder.name)

    def _clear_features(self) -> None:
        """Remove features of images that no task shows, and of backbones that no project will use.

        A database that knows no image at all is taken for a new one, to which these features may still be of use.
        """
        # First: a backbone that is begun while the database is read is none that could be done without.
        stored = self._features.backbones()
        images = self._images_in_use()
        if not images:
            return
        unneeded = self._unneeded(stored)
        for digest in stored:
            if digest in unneeded:
                self._features.delete(digest)
                log.info("features of a former backbone deleted", backbone=digest)
            else:
                self._compact(digest, images)
        self._embed_lost()

    def _images_in_use(self) -> list[str]:
        """Return the digest of every image that a task of any project shows."""
        with self._database.snapshot() as stores:
            projects = stores.projects.all()
            tasks = (task for project in projects for task in stores.tasks.all(project.id))
            return list({task.image_digest for task in tasks if task.image_digest})

    def _unneeded(self, stored: Sequence[str]) -> set[str]:
        """Return the backbones that nothing refers to; none while that is not certain."""
        try:
            needed = {self._embedder.base().digest}
        except EmbedderUnavailable:
            return set()
        with self._database.snapshot() as stores:
            for project in stores.projects.all():
                if stores.jobs.running(project.id, JobKind.FINETUNE):
                    # It stores features before there is a version that they belong to.
                    return set()
                versions = [
                    each for each in stores.versions.all(project.id) if each.status is not VersionStatus.REJECTED
                ]
                active = [each for each in versions if each.status is VersionStatus.ACTIVE]
                needed |= {each.backbone_digest for each in (*active, *versions[: self._n_kept_versions])}
                needed |= {project.backbone_digest} if project.backbone_digest else set()
        return set(stored) - needed

    def _compact(self, digest: str, images: Sequence[str]) -> None:
        """Remove the rows of images that are not among these, where there are enough of them to be worth the copying.

        A task that has taken up an unused row a moment ago loses it; ``_embed_lost`` sees to that.
        """
        n_rows = self._features.count(digest)
        n_unused = n_rows - int(self._features.holds(digest, images).sum())
        if n_unused <= max(MIN_UNUSED_ROWS, MIN_UNUSED_SHARE * n_rows):
            return
        try:
            n_removed = self._features.compact(digest, images)
        except OSError as error:
            log.error("features not compacted", backbone=digest, reason=str(error))
            return
        log.info("features compacted", backbone=digest, n_rows=n_rows, n_removed=n_removed)

    def _embed_lost(self) -> None:
        """Have the images embedded again whose features are gone: removed just now, or with their files by hand."""
        with self._database.snapshot() as stores:
            project_ids = [project.id for project in stores.projects.all()]
        for project_id in project_ids:
            with self._database.snapshot() as stores:
                tasks = stores.tasks.all(project_id)
            lost = self._lost(tasks)
            for start in range(0, len(lost), CHUNK_SIZE):
                with self._database.transaction() as stores:
                    for task in lost[start : start + CHUNK_SIZE]:
                        stores.tasks.record_image(project_id, replace(task, backbone_digest=None))
                    self._scheduler.now(stores, project_id, JobKind.EMBED)
            if lost:
                log.warning("features are gone: images are embedded again", project=project_id, n_images=len(lost))

    def _lost(self, tasks: Sequence[Task]) -> list[Task]:
        """Return the tasks whose image should have features but has none."""
        by_backbone: dict[str, list[Task]] = defaultdict(list)
        for task in tasks:
            if task.backbone_digest:
                by_backbone[task.backbone_digest].append(task)
        lost = []
        for backbone_digest, embedded in by_backbone.items():
            held = self._features.holds(backbone_digest, [task.image_digest or "" for task in embedded])
            lost += [task for task, is_held in zip(embedded, held, strict=True) if not is_held]
        return lost
