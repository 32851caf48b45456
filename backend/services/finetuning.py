"""Labels become a network: fine-tune the backbone, embed with it, and let a head on it compete with the active version.

Runs in a child process of its own, whose memory, on the GPU too, ends with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog

from backend.domain import Progress, Task, VersionKind
from backend.errors import ImageError, JobFailed
from backend.ports import ArtifactStore, CachedImage, Database, FeatureStore, ImageSource, ReportProgress
from backend.promotion import backbone_key, targets_of
from model.backbones import Backbone, load_backbone, save_backbone
from model.features import Engine, choose_device
from model.finetuning import FineTuned, TrainingConfig, TrainingDiverged
from model.launch import fit_on_all_devices
from model.learning import fold_of

if TYPE_CHECKING:
    from backend.services.training import Training, TrainingSet

log = structlog.get_logger()

EARLY_STOPPING_FOLD = 1
"""Decides when to stop; Fold 0 only judges the result. The network learns from all others."""
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
        images: ImageSource,
        features: FeatureStore,
        artifacts: ArtifactStore,
        settings: FineTuningSettings,
    ) -> None:
        self._database = database
        self._training = training
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
            tasks = {task.image_digest: task for task in stores.tasks.all(project_id) if task.image_digest}
        labelled_paths = self._bring_in([tasks[image.image_digest] for image in training_set.labelled])
        labelled = tuple(image for image in training_set.labelled if image.image_digest in labelled_paths)
        training_set = replace(training_set, labelled=labelled)
        config, tuned = self._fit(training_set, [labelled_paths[image.image_digest] for image in labelled], report)
        backbone = tuned.backbone
        self._publish(backbone)
        engine = Engine(backbone, choose_device(self._settings.device))
        self._embed(engine, [tasks[digest] for digest in (*labelled_paths, *training_set.pool[:MAX_POOL])], report)
        training_set = self._training.with_features(training_set, backbone.digest)
        learned = self._training.learn_head(training_set, backbone.digest)
        candidate = self._training.save(
            training_set,
            learned,
            backbone.digest,
            VersionKind.FINETUNE,
            finetuning=config,
            finetuning_s=tuned.seconds,
        )
        decision = self._training.judge(training_set, candidate, learned)
        if decision.promote:
            # the active version goes on serving until every image has the new network's features
            self._embed(engine, list(tasks.values()), report)
        outcome = self._training.conclude(training_set, candidate, decision)
        shutil.rmtree(self._resume_folder(project_id), ignore_errors=True)
        return outcome

    def _fit(
        self, training_set: TrainingSet, paths: Sequence[Path], report: ReportProgress
    ) -> tuple[TrainingConfig, FineTuned]:
        folds = np.array([fold_of(image.image_digest) for image in training_set.labelled])
        weights = self._settings.weights
        backbone = load_backbone(
            self._settings.backbone,
            weights if weights in ("auto", "none") else Path(weights),
            n_views=self._settings.image_views,
        )
        n_training = int((folds > EARLY_STOPPING_FOLD).sum())
        n_classes = len(training_set.schema.class_names)
        config = TrainingConfig.for_labels(n_training, n_classes, pretrained=backbone.pretrained)
        try:
            tuned = fit_on_all_devices(
                backbone,
                paths,
                targets_of(training_set.labelled, training_set.schema),
                class_count=n_classes,
                multiple=training_set.schema.multiple,
                train=folds > EARLY_STOPPING_FOLD,
                validation=folds == EARLY_STOPPING_FOLD,
                device=choose_device(self._settings.device),
                config=config,
                max_pixels=self._settings.max_image_pixels,
                n_threads=1 if choose_device(self._settings.device) == "cpu" else None,
                on_progress=lambda done, total: report(Progress(done=done, total=total, unit="batches")),
                resume_folder=self._resume_folder(training_set.project.id),
            )
        except (TrainingDiverged, ValueError) as error:
            raise JobFailed(f"fine-tuning did not work: {error}") from error
        return config, tuned

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

    def _publish(self, backbone: Backbone) -> None:
        with self._artifacts.scratch() as folder:
            save_backbone(backbone, folder)
            self._artifacts.publish(backbone_key(backbone.digest), folder)

    def _embed(self, engine: Engine, tasks: Sequence[Task], report: ReportProgress) -> None:
        """Store the new network's features of these tasks' images, where they are not stored yet."""
        digest = engine.backbone.digest
        for start in range(0, len(tasks), CHUNK_SIZE):
            report(Progress(done=start, total=len(tasks), unit="images"))
            chunk = tasks[start : start + CHUNK_SIZE]
            _, found = self._features.read(digest, [task.image_digest or "" for task in chunk])
            paths = self._bring_in([task for task, here in zip(chunk, found, strict=True) if not here])
            embedded = engine.embed(list(paths.values()), max_pixels=self._settings.max_image_pixels)
            read = [name for index, name in enumerate(paths) if index not in embedded.problems]
            self._features.append(digest, read, embedded.features, block_sizes=engine.backbone.block_sizes)

    def _resume_folder(self, project_id: int) -> Path:
        return self._settings.resume_folder / f"p{project_id}"
