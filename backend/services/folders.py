"""Learning from a folder of images, without any Label Studio: the same learning code, measured on a test part."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from backend.domain import Metrics, VersionKind
from backend.errors import TrainingImpossible
from backend.labelled_folder import LabelledFolder
from backend.pretrained import opinion_of
from backend.promotion import compare_by_image, metrics_of, targets_of
from model.backbones import Backbone, load_backbone
from model.evaluation import Report, evaluate
from model.features import Engine, choose_device
from model.finetuning import TrainingDiverged
from model.folds import NetworkSplit, folds_of, groups_of, held_out
from model.inference import Predictor
from model.learning import Examples, Learned, TooFewLabels, learn
from model.recipe import finetune

log = structlog.get_logger()

TEST_SHARE = 0.2

OnProgress = Callable[[str, int, int], None]
"""Called with the name of the step, what is done of it, and how much it is in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSettings:
    """What to learn with."""

    backbone: str
    weights: str
    image_views: int
    device: str
    finetune_min_labels: int
    max_image_pixels: int
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Where the time went."""

    embed: float
    head: float
    finetune: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderResult:
    """What was learned from a folder, measured on its test part."""

    metrics: Metrics
    uncalibrated_ece: float
    uncalibrated_log_loss: float
    kind: VersionKind
    n_labels: int
    n_test: int
    class_names: tuple[str, ...]
    method: str
    seconds: Seconds
    note: str


def fit_folder(
    labelled: LabelledFolder,
    pool: Sequence[Path],
    test: LabelledFolder | None,
    settings: FolderSettings,
    on_progress: OnProgress,
) -> FolderResult:
    """Learn from labelled images, with the help of unlabelled ones, and measure on a test part.

    Without a test part, ``TEST_SHARE`` of the labelled images are held out for it, near-duplicates together.

    Raises:
        TrainingImpossible: too few labels or classes, or nothing to measure on.
    """
    started_s = time.perf_counter()
    weights = settings.weights if settings.weights in ("auto", "none") else Path(settings.weights)
    backbone = load_backbone(settings.backbone, weights, n_views=settings.image_views, seed=settings.seed)
    images = labelled if test is None else labelled.joined(test)
    seen, readable = embed_images(backbone, images, pool, settings, on_progress)
    images = images.part(readable)
    if test is None:
        targets = targets_of(images.labelled, images.schema)
        is_test = held_out(images.digests, seen.labelled, targets, backbone.block_sizes, TEST_SHARE)
    else:
        is_test = np.flatnonzero(readable) >= len(labelled.paths)
    if not is_test.any():
        raise TrainingImpossible("no image is left to measure on: give a test folder, or more images")
    contest = Contest(images=images, is_test=is_test, pool=pool, settings=settings, on_progress=on_progress)
    best = contest.enter(backbone, VersionKind.HEAD, seen)
    embed_s, head_s, finetune_s = seen.seconds, best.head_s, 0.0
    if len(contest.train.paths) >= settings.finetune_min_labels:
        finetune_started_s = time.perf_counter()
        try:
            tuned = contest.finetune(backbone, seen)
        except (TrainingDiverged, ValueError) as error:
            raise TrainingImpossible(f"fine-tuning did not work: {error}") from error
        finetune_s = time.perf_counter() - finetune_started_s
        best = contest.better(tuned, best)
    calibrated, uncalibrated = contest.measure(best)
    return FolderResult(
        metrics=metrics_of(calibrated),
        uncalibrated_ece=uncalibrated.ece,
        uncalibrated_log_loss=uncalibrated.log_loss,
        kind=best.kind,
        n_labels=len(contest.train.paths),
        n_test=calibrated.n,
        class_names=images.schema.class_names,
        method=best.learned.method,
        seconds=Seconds(embed=embed_s, head=head_s, finetune=finetune_s, total=time.perf_counter() - started_s),
        note=backbone.note,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """What a backbone makes of the readable images, with a label, (n_labelled, n_features), and in the pool."""

    labelled: NDArray[np.float16]
    pool: NDArray[np.float16]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A head learned on the features of a backbone; ``test_features`` are those of the test images."""

    kind: VersionKind
    learned: Learned
    test_features: NDArray[np.float16]
    head_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """The same images for every backbone that enters; ``is_test``, (n_labelled,), says which are to measure on."""

    images: LabelledFolder
    is_test: NDArray[np.bool_]
    pool: Sequence[Path]
    settings: FolderSettings
    on_progress: OnProgress

    @property
    def train(self) -> LabelledFolder:
        """The images to learn from."""
        return self.images.part(~self.is_test)

    def enter(self, backbone: Backbone, kind: VersionKind, seen: Seen, split: NetworkSplit | None = None) -> Contestant:
        """Learn a head on features of a backbone; a fine-tuned one is judged on what was held back from it."""
        started_s = time.perf_counter()
        train = self.train
        try:
            learned = learn(
                Examples(
                    features=seen.labelled[~self.is_test],
                    targets=targets_of(train.labelled, train.schema),
                    digests=train.digests,
                    split=split,
                ),
                train.schema.class_names,
                multiple=train.schema.multiple,
                block_sizes=backbone.block_sizes,
                pool=seen.pool if len(seen.pool) else None,
                opinion=opinion_of(backbone, train.schema),
                seed=self.settings.seed,
            )
        except TooFewLabels as error:
            raise TrainingImpossible(str(error)) from error
        return Contestant(
            kind=kind,
            learned=learned,
            test_features=seen.labelled[self.is_test],
            head_s=time.perf_counter() - started_s,
        )

    def finetune(self, backbone: Backbone, seen: Seen) -> Contestant:
        """Fine-tune a backbone on the training images that neither judge nor decide when to stop, and let it enter."""
        train = self.train
        targets = targets_of(train.labelled, train.schema)
        groups = groups_of(train.digests, seen.labelled[~self.is_test], targets, backbone.block_sizes)
        _, tuned = finetune(
            backbone,
            train.paths,
            targets,
            folds_of(train.digests, groups),
            class_count=len(train.schema.class_names),
            device=choose_device(self.settings.device),
            max_pixels=self.settings.max_image_pixels,
            n_threads=None,
            on_progress=lambda done, total: self.on_progress("fine-tune", done, total),
            seed=self.settings.seed,
        )
        seen, readable = embed_images(tuned.backbone, self.images, self.pool, self.settings, self.on_progress)
        if not readable.all():
            raise TrainingImpossible("images changed while they were learned from: leave them alone and try again")
        split = NetworkSplit.of(train.digests, groups)
        return self.enter(tuned.backbone, VersionKind.FINETUNE, seen, split)

    def better(self, tuned: Contestant, plain: Contestant) -> Contestant:
        """Return the fine-tuned contestant if it is better on the images that neither was trained on."""
        candidate, active = tuned.learned.out_of_fold, plain.learned.out_of_fold
        comparison = compare_by_image(candidate, active, self.train.labelled, self.train.schema)
        return tuned if comparison.is_improvement else plain

    def measure(self, contestant: Contestant) -> tuple[Report, Report]:
        """Return the reports on the test part, of what is served and of its head alone, without calibration."""
        test = self.images.part(self.is_test)
        targets = targets_of(test.labelled, test.schema)

        def report(predictor: Predictor) -> Report:
            probabilities = predictor.predict_proba(contestant.test_features)
            return evaluate(probabilities, targets, multiple=predictor.multiple, thresholds=predictor.thresholds)

        predictor = contestant.learned.predictor
        return report(predictor), report(replace(predictor, temperature=1.0, opinion=None))


def embed_images(
    backbone: Backbone,
    images: LabelledFolder,
    pool: Sequence[Path],
    settings: FolderSettings,
    on_progress: OnProgress,
) -> tuple[Seen, NDArray[np.bool_]]:
    """Embed labelled images and a pool; return also which of the labelled images are readable, (n_labelled,)."""
    started_s = time.perf_counter()
    engine = Engine(backbone, choose_device(settings.device))

    def embed(paths: Sequence[Path], step: str) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        embedded = engine.embed(
            paths,
            max_pixels=settings.max_image_pixels,
            on_progress=lambda done, total: on_progress(step, done, total),
        )
        readable = np.ones(len(paths), dtype=bool)
        for index, problem in embedded.problems.items():
            log.warning("image unusable", file=str(paths[index]), reason=problem)
            readable[index] = False
        return embedded.features, readable

    features, readable = embed(images.paths, "embed")
    pool_features, _ = embed(pool, "embed the pool")
    seen = Seen(labelled=features, pool=pool_features, seconds=time.perf_counter() - started_s)
    return seen, readable
