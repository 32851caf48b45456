"""Every image is fetched and embedded once, in the background, as soon as its task is known."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from backend.domain import JobKind, Progress, Project, Task
from backend.errors import EmbedderUnavailable, ImageError, ImageUnavailable
from backend.logs import in_this_context
from backend.ports import (
    ArtifactStore,
    CachedImage,
    Database,
    Embedder,
    EmbedderBackbone,
    FeatureStore,
    ImageSource,
    ReportProgress,
)
from backend.pretrained import version_in_use
from backend.promotion import backbone_key
from backend.scheduling import Scheduler

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = structlog.get_logger()

BATCH_SIZE = 64
N_FETCHERS = 8


class Embedding:
    """Fetches images, embeds them and stores their features."""

    def __init__(
        self,
        database: Database,
        images: ImageSource,
        embedder: Embedder,
        features: FeatureStore,
        artifacts: ArtifactStore,
        scheduler: Scheduler,
        *,
        image_timeout_s: float,
    ) -> None:
        self._database = database
        self._images = images
        self._embedder = embedder
        self._features = features
        self._artifacts = artifacts
        self._scheduler = scheduler
        self._image_timeout_s = image_timeout_s
        self._fetchers = ThreadPoolExecutor(N_FETCHERS, thread_name_prefix="fetch")

    def run(self, project_id: int, report: ReportProgress) -> str:
        """Embed every image of a project that has no features yet, labelled ones first.

        Raises:
            EmbedderUnavailable: the embedding process is not up.
            ImageUnavailable: no image of a whole batch could be reached: their hosts seem to be down. All images of
                other hosts are embedded by then.
        """
        with self._database.snapshot() as stores:
            project = stores.projects.get(project_id)
            backbone = self._backbone_in_use(project)
        self._use_backbone(project, backbone)
        digest = backbone.digest
        done = failed = 0
        unavailable: ImageUnavailable | None = None
        hosts_down: set[str] = set()
        for tasks in self._pages(project_id, digest, hosts_down):
            try:
                n_embedded = self._embed_page(project_id, tasks, digest)
            except ImageUnavailable as error:
                unavailable = error
                hosts_down |= {_host(task) for task in tasks}
                continue
            done += n_embedded
            failed += len(tasks) - n_embedded
            with self._database.transaction() as stores:
                total = stores.tasks.count(project_id)
                self._scheduler.soon(stores, project_id, JobKind.HEAD)
                if stores.versions.active(project_id) is None:
                    self._scheduler.soon(stores, project_id, JobKind.QUERY)
            report(Progress(done=done + failed, total=max(total, done + failed), unit="images"))
        with self._database.transaction() as stores:
            if done and version_in_use(stores, stores.projects.get(project_id)):
                self._scheduler.push(stores, project_id)
        if unavailable:
            raise unavailable
        return f"{done} images embedded" + (f", {failed} could not be read" if failed else "")

    def features_of(
        self, project: Project, tasks: Sequence[Task], digest: str, deadline_s: float
    ) -> list[NDArray[np.float16] | str]:
        """Return for each task its feature row, shape (n_features,), or the reason why there is none.

        Of a task whose image is known its digest is given: its features are looked up. Other images are fetched and
        embedded until ``deadline_s`` on the monotonic clock, as long as the disk takes them, the embedding process
        answers, and not all of a batch are out of reach.
        """
        answers: list[NDArray[np.float16] | str] = ["its image is not embedded yet" for _ in tasks]
        found = self._look_up(digest, [task.image_digest for task in tasks])
        missing = []
        for index, task in enumerate(tasks):
            row = found.get(task.image_digest or "")
            if row is not None:
                answers[index] = row
            elif task.image_url is None:
                answers[index] = "it has no image where the label config looks for one"
            else:
                missing.append(index)
        for start in range(0, len(missing), BATCH_SIZE):
            if time.monotonic() >= deadline_s:
                break
            some = missing[start : start + BATCH_SIZE]
            try:
                rows = self._embed(project.id, [tasks[index] for index in some], digest, deadline_s=deadline_s)
            except (EmbedderUnavailable, ImageUnavailable) as error:
                for index in missing[start:]:
                    answers[index] = str(error)
                break
            except OSError as error:  # a full disk is no reason to keep back what is known of the other images
                log.error("image or features not stored", project=project.id, reason=str(error))
                break
            for index, (task, row) in zip(some, rows, strict=True):
                answers[index] = task.image_problem or "its image has no features" if row is None else row
        return answers

    def features_around(self, digest: str, image_digest: str, n_images: int) -> tuple[list[str], NDArray[np.float16]]:
        """Return digests and feature rows of up to ``n_images`` images that were embedded next to one, and its own.

        Nothing where the image is not embedded.
        """
        return self._features.read_around(digest, image_digest, n_images)

    def _embed_page(self, project_id: int, tasks: Sequence[Task], digest: str) -> int:
        """Embed the images of tasks, but those only once that another task shows too; return how many have features."""
        found = self._look_up(digest, [task.image_digest for task in tasks])
        known = [replace(task, backbone_digest=digest) for task in tasks if task.image_digest in found]
        with self._database.transaction() as stores:
            for task in known:
                stores.tasks.record_image(project_id, task)
        unknown = [task for task in tasks if task.image_digest not in found]
        rows = self._embed(project_id, unknown, digest)
        return len(known) + sum(row is not None for _, row in rows)

    def _embed(
        self, project_id: int, tasks: Sequence[Task], digest: str, *, deadline_s: float | None = None
    ) -> list[tuple[Task, NDArray[np.float16] | None]]:
        """Fetch, embed and store the images of tasks; return each task as it is now, with its feature row if any.

        Who waits for the answer gives a ``deadline_s``, and is served first. An image that did not come until then is
        not held to be out of reach.
        """
        fetched = self._fetch(tasks, deadline_s)
        paths = [image.path for image in fetched if isinstance(image, CachedImage)]
        remaining_s = None if deadline_s is None else max(0.1, deadline_s - time.monotonic())
        rows = self._embedder.embed(paths, backbone_digest=digest, urgent=deadline_s is not None, timeout_s=remaining_s)
        if rows.backbone_digest != digest:
            raise EmbedderUnavailable(f"the embedder runs backbone {rows.backbone_digest[:8]}, not {digest[:8]}")
        settled = self._settle(tasks, fetched, rows.problems, digest)
        embedded = [task.image_digest or "" for task in settled if task.backbone_digest == digest]
        self._features.append(digest, embedded, rows.features, block_sizes=rows.block_sizes)
        with self._database.transaction() as stores:
            for task, image in zip(settled, fetched, strict=True):
                if deadline_s is None or not isinstance(image, ImageUnavailable):
                    stores.tasks.record_image(project_id, task)
        for task in settled:
            if task.image_problem:
                log.warning("image unusable", project=project_id, task=task.id, reason=task.image_problem)
        remaining = iter(rows.features)
        return [(task, next(remaining) if task.backbone_digest == digest else None) for task in settled]

    def _backbone_in_use(self, project: Project) -> EmbedderBackbone:
        """Return the fine-tuned backbone that the project has moved to, else the pretrained one of the settings."""
        digest = project.backbone_digest
        if digest and self._artifacts.keys(backbone_key(digest)):
            return EmbedderBackbone(digest=digest)
        return self._embedder.base()

    def _use_backbone(self, known: Project, backbone: EmbedderBackbone) -> None:
        """Move a project to a backbone, unless another version has moved it elsewhere since it was known."""
        with self._database.transaction() as stores:
            project = stores.projects.get(known.id)
            if known.backbone_digest == project.backbone_digest != backbone.digest:
                stores.projects.save(replace(project, backbone_digest=backbone.digest))
            if stores.backbones.categories(backbone.digest) != backbone.categories:
                stores.backbones.save_categories(backbone.digest, backbone.categories)

    def _pages(self, project_id: int, digest: str, hosts_down: Set[str]) -> Iterator[list[Task]]:
        """Yield what is left to embed, without the images of hosts that turned out to be down."""
        limit = BATCH_SIZE
        while True:
            with self._database.snapshot() as stores:
                tasks = stores.tasks.to_embed(project_id, digest, limit)
            reachable = [task for task in tasks if _host(task) not in hosts_down][:BATCH_SIZE]
            if len(reachable) < BATCH_SIZE and len(tasks) == limit:
                limit *= 2
            elif reachable:
                yield reachable
            else:
                return

    def _fetch(self, tasks: Sequence[Task], deadline_s: float | None) -> list[CachedImage | ImageError]:
        """Fetch the images of tasks side by side, in order; an image that cannot be had, or not yet, is its error."""

        def fetch(task: Task) -> CachedImage | ImageError:
            cached = self._images.cached(task.image_digest) if task.image_digest else None
            if cached:
                return cached
            # some wait for others before they are fetched at all
            remaining_s = math.inf if deadline_s is None else deadline_s - time.monotonic()
            if remaining_s <= 0:
                return ImageUnavailable("there was no time to fetch its image")
            timeout_s = min(self._image_timeout_s, remaining_s)
            try:
                return self._images.fetch(task.image_url or "", label_studio_task_id=task.id, timeout_s=timeout_s)
            except ImageError as error:
                return error

        fetched = list(self._fetchers.map(in_this_context(fetch), tasks))
        if len(tasks) > 1 and all(isinstance(image, ImageUnavailable) for image in fetched):
            raise ImageUnavailable(f"none of {len(tasks)} images could be reached; the first one: {fetched[0]}")
        return fetched

    def _settle(
        self, tasks: Sequence[Task], fetched: Sequence[CachedImage | ImageError], problems: dict[int, str], digest: str
    ) -> list[Task]:
        """Return each task with what became of its image; ``problems`` counts only the images that were fetched."""
        settled = []
        position = 0
        for task, image in zip(tasks, fetched, strict=True):
            if isinstance(image, ImageError):
                settled.append(replace(task, image_problem=str(image), backbone_digest=None))
                continue
            problem = problems.get(position)
            position += 1
            settled.append(
                replace(
                    task,
                    image_digest=image.digest,
                    image_problem=problem,
                    backbone_digest=None if problem else digest,
                )
            )
        return settled

    def _look_up(self, digest: str, image_digests: Sequence[str | None]) -> dict[str, NDArray[np.float16]]:
        wanted = sorted({image_digest for image_digest in image_digests if image_digest})
        rows, found = self._features.read(digest, wanted)
        present = [image_digest for image_digest, here in zip(wanted, found, strict=True) if here]
        return dict(zip(present, rows, strict=True))


def _host(task: Task) -> str:
    """Return where an image comes from: empty for Label Studio itself, and for an address that is none."""
    try:
        return urlsplit(task.image_url or "").netloc
    except ValueError:
        return ""
