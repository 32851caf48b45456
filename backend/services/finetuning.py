"""Labels become a network: fine-tune the backbone, embed with it, and let a head on it compete with the active version.

Runs in a child process of its own, whose memory, on the GPU too, ends with it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from backend.domain import Progress, Task, VersionKind
from backend.errors import ImageError, JobFailed
from backend.ports import ArtifactStore, CachedImage, Database, FeatureStore, ImageSource, ReportProgress
from backend.promotion import backbone_key, targets_of, training_state_name
from model.backbones import Backbone, load_backbone, save_backbone
from model.duplicates import MAX_IMAGES
from model.features import Engine, choose_device
from model.finetuning import FineTuned, TrainingConfig, TrainingDiverged
from model.folds import NetworkSplit, folds_of, groups_of
from model.recipe import finetune

if TYPE_CHECKING:
    from backend.services.promoting import Promoting
    from backend.services.training import Training
    from backend.training_set import TrainingSet

log = structlog.get_logger()

MAX_POOL = 2000
CHUNK_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuningSettings:
    """Where to start from and where to run."""

    backbone: str
    weights: str
    image_views: int
    device: str
    image_timeout_s: float
    max_image_pixels: int
    resume_folder: Path


class FineTuning:
    """Fine-tunes the pretrained backbone on a project's labels."""

    def __init__(
        self,
        database: Database,
        training: Training,
        promoting: Promoting,
        images: ImageSource,
        features: FeatureStore,
        artifacts: ArtifactStore,
        settings: FineTuningSettings,
    ) -> None:
        self._database = database
        self._training = training
        self._promoting = promoting
        self._images = images
        self._features = features
        self._artifacts = artifacts
        self._settings = settings

    def run(self, project_id: int, report: ReportProgress) -> str:
        """Fine-tune, promote the result if it is better, and return the outcome in words.

        Raises:
            TrainingImpossible: too few labels or images.
            JobFailed: the training diverged, or a fold is empty.
        """
        training_set = self._training.training_set(project_id)
        with self._database.snapshot() as stores:
            every_task = stores.tasks.all(project_id)
        # what has features has been decoded before, and did no harm
        tasks = {task.image_digest: task for task in every_task if task.image_digest and task.backbone_digest}
        labelled_paths = self._bring_in(
            [tasks[image.image_digest] for image in training_set.labelled if image.image_digest in tasks]
        )
        labelled = tuple(image for image in training_set.labelled if image.image_digest in labelled_paths)
        training_set = replace(training_set, labelled=labelled)
        wanted = [tasks[digest] for digest in (*labelled_paths, *training_set.pool[:MAX_POOL]) if digest in tasks]
        pretrained = self._load_pretrained()
        if not all(self._features.holds(pretrained.digest, [task.image_digest or "" for task in wanted])):
            # images that came while a fine-tuned network served have none of its features yet
            self._embed(Engine(pretrained, choose_device(self._settings.device)), wanted, report)
        training_set = self._training.with_features(training_set, pretrained.digest)
        config, tuned = self._fit(pretrained, training_set, labelled_paths, report)
        backbone = tuned.backbone
        engine = Engine(backbone, choose_device(self._settings.device))
        started_s = time.perf_counter()
        self._embed(engine, wanted, report)
        embedding_s = time.perf_counter() - started_s
        training_set = self._training.with_features(training_set, backbone.digest)
        learned = self._training.learn_head(training_set, backbone.digest)
        candidate = self._training.save(
            training_set,
            learned,
            backbone.digest,
            VersionKind.FINETUNE,
            embedding=engine.settings,
            finetuning=config,
            finetuning_s=tuned.seconds,
            embedding_s=embedding_s,
        )
        judgement = self._promoting.judge(training_set, candidate, learned.out_of_fold)
        if judgement.decision.promote:
            # the active version goes on serving until every image has the new network's features
            self._embed(engine, list(tasks.values()), report)
        outcome = self._promoting.conclude(training_set, candidate, learned.out_of_fold, judgement)
        shutil.rmtree(self._resume_folder(project_id), ignore_errors=True)
        return outcome

    def _load_pretrained(self) -> Backbone:
        weights = self._settings.weights
        return load_backbone(
            self._settings.backbone,
            weights if weights in ("auto", "none") else Path(weights),
            n_views=self._settings.image_views,
        )

    def _fit(
        self, backbone: Backbone, training_set: TrainingSet, paths: Mapping[str, Path], report: ReportProgress
    ) -> tuple[TrainingConfig, FineTuned]:
        """Fine-tune, and publish the network with the images it was held back from."""
        digests = [image.image_digest for image in training_set.labelled]
        groups = self._groups(training_set, backbone)
        device = choose_device(self._settings.device)
        try:
            config, tuned = finetune(
                backbone,
                [paths[digest] for digest in digests],
                targets_of(training_set.labelled, training_set.schema),
                folds_of(digests, groups),
                class_count=len(training_set.schema.class_names),
                device=device,
                max_pixels=self._settings.max_image_pixels,
                n_threads=1 if device == "cpu" else None,
                on_progress=lambda done, total: report(Progress(done=done, total=total, unit="batches")),
                resume_folder=self._resume_folder(training_set.project.id),
            )
        except (TrainingDiverged, ValueError) as error:
            raise JobFailed(f"fine-tuning did not work: {error}") from error
        with self._artifacts.scratch() as folder:
            save_backbone(tuned.backbone, folder)
            NetworkSplit.of(digests, groups).write(folder)
            self._artifacts.publish(backbone_key(tuned.backbone.digest), folder)
        return config, tuned

    def _groups(self, training_set: TrainingSet, backbone: Backbone) -> dict[str, str]:
        """Return which near-duplicates each image belongs to, by pretrained features, with or without a label."""
        digests = [image.image_digest for image in training_set.labelled]
        digests += training_set.pool[: max(0, MAX_IMAGES - len(digests))]
        features, found = self._features.read(backbone.digest, digests)
        known = [digest for digest, here in zip(digests, found, strict=True) if here]
        targets = targets_of(training_set.labelled, training_set.schema)
        return groups_of(known, features, targets, backbone.block_sizes)

    def _bring_in(self, tasks: Sequence[Task]) -> dict[str, Path]:
        """Return image files by digest, fetching those that left the cache; images that are gone are left out."""
        paths = {}
        for task in tasks:
            image = self._images.cached(task.image_digest or "") or self._fetch(task)
            if image and image.digest == task.image_digest:
                paths[image.digest] = image.path
        return paths

    def _fetch(self, task: Task) -> CachedImage | None:
        try:
            return self._images.fetch(
                task.image_url or "", label_studio_task_id=task.id, timeout_s=self._settings.image_timeout_s
            )
        except ImageError as error:
            log.warning("image left out of fine-tuning", task=task.id, reason=str(error))
            return None

    def _embed(self, engine: Engine, tasks: Sequence[Task], report: ReportProgress) -> None:
        """Store a network's features of these tasks' images, where they are not stored yet."""
        digest = engine.backbone.digest
        for start in range(0, len(tasks), CHUNK_SIZE):
            report(Progress(done=start, total=len(tasks), unit="images"))
            chunk = tasks[start : start + CHUNK_SIZE]
            held = self._features.holds(digest, [task.image_digest or "" for task in chunk])
            paths = self._bring_in([task for task, is_held in zip(chunk, held, strict=True) if not is_held])
            embedded = engine.embed(list(paths.values()), max_pixels=self._settings.max_image_pixels)
            read = [name for index, name in enumerate(paths) if index not in embedded.problems]
            self._features.append(digest, read, embedded.features, block_sizes=engine.backbone.block_sizes)

    def _resume_folder(self, project_id: int) -> Path:
        return self._settings.resume_folder / training_state_name(project_id)
