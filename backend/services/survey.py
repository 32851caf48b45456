"""What a project's images are like, whatever anybody called them: which repeat others, and which are unlike all."""

from __future__ import annotations

from dataclasses import dataclass

from backend.domain import Project, Task
from backend.errors import Conflict
from backend.ports import ArtifactStore, Database, FeatureStore, Stores
from backend.promotion import backbone_key
from model.duplicates import MAX_IMAGES, near_duplicates
from model.outliers import outliers


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """A task whose image is ``distance`` away from those nearest to it, 0 to 2, the higher the odder."""

    task_id: int
    distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReport:
    """Near-duplicates and outliers among the images of ``n_checked`` of ``n_tasks`` tasks.

    Attributes:
        n_tasks: of the project.
        n_checked: those whose images were looked at.
        open_tasks: the tasks looked at that nobody answered yet.
        duplicates: ids of tasks whose images repeat each other, the largest group first.
        outliers: the oddest first.
        usual_distance: the median over all images of what outliers have more of.
    """

    n_tasks: int
    n_checked: int
    open_tasks: frozenset[int]
    duplicates: tuple[tuple[int, ...], ...]
    outliers: tuple[Outlier, ...]
    usual_distance: float

    @property
    def needless(self) -> frozenset[int]:
        """The open tasks that need no label of their own: in each group all but one, or all where one has a label."""
        needless: set[int] = set()
        for group in self.duplicates:
            waiting = [task_id for task_id in group if task_id in self.open_tasks]
            needless |= set(waiting if len(waiting) < len(group) else waiting[1:])
        return frozenset(needless)

    @property
    def sentence(self) -> str:
        """The report in plain words."""
        checked = f"{self.n_checked} of {self.n_tasks} images were compared"
        repeats = f"{len(self.needless)} open tasks repeat another image"
        return f"{checked}: {repeats}, {len(self.outliers)} images are unlike all others."


class Survey:
    """Finds near-duplicates and outliers among a project's images, by stored features."""

    def __init__(self, database: Database, features: FeatureStore, artifacts: ArtifactStore) -> None:
        self._database = database
        self._features = features
        self._artifacts = artifacts

    def images(self, project_id: int) -> ImageReport:
        """Hold every image against every other; of more than ``MAX_IMAGES`` tasks, as many, always the same ones.

        Raises:
            NotFound: there is no such project.
            Conflict: no image has features of a pretrained network.
        """
        with self._database.snapshot() as stores:
            digest = self._pretrained(stores, stores.projects.get(project_id))
            tasks = stores.tasks.all(project_id)
            answered = {annotation.task_id for annotation in stores.annotations.all(project_id)}
        if digest is None:
            raise Conflict(f"no image of project {project_id} is embedded yet")
        checked = self._embedded(tasks, digest)
        rows, _ = self._features.read(digest, [task.image_digest or "" for task in checked])
        if not len(rows):
            raise Conflict(f"no image of project {project_id} is embedded yet")
        block_sizes = self._features.block_sizes(digest)
        odd = outliers(rows, block_sizes)
        return ImageReport(
            n_tasks=len(tasks),
            n_checked=len(checked),
            open_tasks=frozenset(task.id for task in checked) - answered,
            duplicates=tuple(
                tuple(sorted(checked[row].id for row in group)) for group in near_duplicates(rows, block_sizes)
            ),
            outliers=tuple(
                Outlier(task_id=checked[row].id, distance=float(odd.distances[row])) for row in odd.rows.tolist()
            ),
            usual_distance=odd.usual_distance,
        )

    def _pretrained(self, stores: Stores, project: Project) -> str | None:
        """Return the newest backbone that was not fine-tuned, which would make all images of a class look alike."""
        used = [project.backbone_digest, *(version.backbone_digest for version in stores.versions.all(project.id))]
        return next((digest for digest in used if digest and not self._artifacts.keys(backbone_key(digest))), None)

    def _embedded(self, tasks: list[Task], digest: str) -> list[Task]:
        """Return the tasks to look at, those with the same image side by side."""
        ordered = sorted((task for task in tasks if task.image_digest), key=lambda task: (task.image_digest, task.id))
        found = self._features.holds(digest, [task.image_digest or "" for task in ordered])
        return [task for task, here in zip(ordered, found, strict=True) if here][:MAX_IMAGES]
