"""Learning from a folder of images, without any Label Studio: the same learning code, measured on a test part."""

from __future__ import annotations

import csv
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from backend.domain import LabelledImage, LabelSchema, Metrics, VersionKind
from backend.errors import InvalidRequest, TrainingImpossible
from backend.pretrained import opinion_of
from backend.promotion import compare_by_image, metrics_of, targets_of
from model.backbones import Backbone, load_backbone
from model.evaluation import Report, evaluate
from model.features import Engine, choose_device
from model.finetuning import TrainingDiverged
from model.folds import JUDGING_FOLD, N_FOLDS, fold_groups, fold_of
from model.inference import Predictor
from model.learning import Examples, Learned, TooFewLabels, learn
from model.recipe import finetune

log = structlog.get_logger()

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
TEST_FOLD = N_FOLDS - 1

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


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledFolder:
    """Image files with their labels."""

    schema: LabelSchema
    paths: tuple[Path, ...]
    labelled: tuple[LabelledImage, ...]

    def part(self, rows: NDArray[np.bool_]) -> LabelledFolder:
        """Return some of the images."""
        kept = np.flatnonzero(rows)
        return replace(
            self, paths=tuple(self.paths[row] for row in kept), labelled=tuple(self.labelled[row] for row in kept)
        )

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each image's content, in hex."""
        return tuple(image.image_digest for image in self.labelled)

    @property
    def folds(self) -> NDArray[np.intp]:
        """The fold of each image by its content alone, shape (n,)."""
        return self.folds_from({})

    def folds_from(self, known: Mapping[str, int]) -> NDArray[np.intp]:
        """Return the fold of each image, shape (n,): the known one of its digest, or else by its content alone."""
        return np.array([known.get(digest, fold_of(digest)) for digest in self.digests], dtype=np.intp)


def read_folder(folder: Path, schema: LabelSchema | None = None) -> LabelledFolder:
    """Read a folder with one sub-folder per class, or with a ``labels.csv`` of columns ``file,labels``.

    In ``labels.csv`` several labels of one image are joined by ``|``. With a ``schema``, as for a test part, only
    its classes may occur.

    Raises:
        InvalidRequest: there is nothing to learn from in the folder, or a label that the schema does not have.
    """
    table = folder / "labels.csv"
    rows = _read_table(table) if table.is_file() else _read_subfolders(folder)
    if not rows:
        raise InvalidRequest(f"{folder} holds neither sub-folders with images nor a labels.csv: see tandem fit --help")
    names = tuple(sorted({name for _, labels in rows for name in labels}))
    multiple = table.is_file() and any(len(labels) != 1 for _, labels in rows)
    if schema is None:
        schema = LabelSchema(
            control_name="choice", object_name="image", data_key="image", class_names=names, multiple=multiple
        )
    unknown = set(names) - set(schema.class_names)
    if unknown:
        raise InvalidRequest(f"{folder} has classes that the training part has not: {', '.join(sorted(unknown))}")
    if not schema.multiple and any(len(labels) != 1 for _, labels in rows):
        raise InvalidRequest(f"{folder} has images with no label or several: in the training part each one has one")
    labelled = [
        LabelledImage(task_id=row, image_digest=hashlib.sha256(path.read_bytes()).hexdigest(), class_names=labels)
        for row, (path, labels) in enumerate(rows)
    ]
    return LabelledFolder(schema=schema, paths=tuple(path for path, _ in rows), labelled=tuple(labelled))


def image_files(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def fit_folder(
    train: LabelledFolder, pool: Sequence[Path], test: LabelledFolder, settings: FolderSettings, on_progress: OnProgress
) -> FolderResult:
    """Learn from the training part, with the help of unlabelled images, and measure on the test part.

    Raises:
        TrainingImpossible: too few labels or classes, or nothing to measure on.
    """
    started_s = time.perf_counter()
    if not test.paths:
        raise TrainingImpossible("no image is left to measure on: give a test folder, or more images")
    weights = settings.weights if settings.weights in ("auto", "none") else Path(settings.weights)
    backbone = load_backbone(settings.backbone, weights, n_views=settings.image_views, seed=settings.seed)
    contest = Contest(train=train, pool=pool, test=test, settings=settings, on_progress=on_progress)
    best = contest.enter(backbone, VersionKind.HEAD)
    embed_s, head_s, finetune_s = best.embed_s, best.head_s, 0.0
    if len(train.paths) >= settings.finetune_min_labels:
        finetune_started_s = time.perf_counter()
        try:
            tuned = contest.enter(contest.finetune(backbone, best), VersionKind.FINETUNE, best.folds)
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
        n_labels=len(train.paths),
        n_test=calibrated.n,
        class_names=train.schema.class_names,
        method=best.learned.method,
        seconds=Seconds(embed=embed_s, head=head_s, finetune=finetune_s, total=time.perf_counter() - started_s),
        note=backbone.note,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A backbone with a head learned on its features; ``test_features`` are those of the readable test images.

    ``folds`` are those of the training images, by their digests: near-duplicates share one.
    """

    kind: VersionKind
    folds: Mapping[str, int]
    learned: Learned
    test_features: NDArray[np.float16]
    test: LabelledFolder
    embed_s: float
    head_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """The same images for every backbone that enters."""

    train: LabelledFolder
    pool: Sequence[Path]
    test: LabelledFolder
    settings: FolderSettings
    on_progress: OnProgress

    def enter(self, backbone: Backbone, kind: VersionKind, folds: Mapping[str, int] | None = None) -> Contestant:
        """Embed everything with a backbone and learn a head; a fine-tuned one is judged on the judging fold alone."""
        started_s = time.perf_counter()
        engine = Engine(backbone, choose_device(self.settings.device))
        features, train = self._embed(engine, self.train)
        test_features, test = self._embed(engine, self.test)
        pool = self._features(engine, self.pool, "embed the pool")[0]
        embedded_s = time.perf_counter()
        targets = targets_of(train.labelled, train.schema)
        if folds is None:
            grouped = fold_groups(train.digests, features, targets, backbone.block_sizes)
            folds = dict(zip(train.digests, grouped.tolist(), strict=True))
            judged = np.ones(len(train.paths), dtype=bool)
        else:
            judged = train.folds_from(folds) == JUDGING_FOLD
        try:
            learned = learn(
                Examples(
                    features=features,
                    targets=targets,
                    digests=train.digests,
                    judged=judged,
                ),
                train.schema.class_names,
                multiple=train.schema.multiple,
                block_sizes=backbone.block_sizes,
                pool=pool if len(pool) else None,
                opinion=opinion_of(backbone, train.schema),
                seed=self.settings.seed,
            )
        except TooFewLabels as error:
            raise TrainingImpossible(str(error)) from error
        return Contestant(
            kind=kind,
            folds=folds,
            learned=learned,
            test_features=test_features,
            test=test,
            embed_s=embedded_s - started_s,
            head_s=time.perf_counter() - embedded_s,
        )

    def finetune(self, backbone: Backbone, plain: Contestant) -> Backbone:
        """Fine-tune a backbone on the training images that neither judge nor decide when to stop."""
        _, tuned = finetune(
            backbone,
            self.train.paths,
            targets_of(self.train.labelled, self.train.schema),
            self.train.folds_from(plain.folds),
            class_count=len(self.train.schema.class_names),
            device=choose_device(self.settings.device),
            max_pixels=self.settings.max_image_pixels,
            n_threads=None,
            on_progress=lambda done, total: self.on_progress("fine-tune", done, total),
            seed=self.settings.seed,
        )
        return tuned.backbone

    def better(self, tuned: Contestant, plain: Contestant) -> Contestant:
        """Return the fine-tuned contestant if it is better on the images that neither was trained on."""
        candidate, active = tuned.learned.out_of_fold, plain.learned.out_of_fold
        comparison = compare_by_image(candidate, active, self.train.labelled, self.train.schema)
        return tuned if comparison.is_improvement else plain

    def measure(self, contestant: Contestant) -> tuple[Report, Report]:
        """Return the reports on the test part, with and without calibration."""
        predictor = contestant.learned.predictor
        targets = targets_of(contestant.test.labelled, contestant.test.schema)
        raw = replace(predictor, temperature=1.0)
        return tuple(  # type: ignore[return-value]  # two of them
            self._report(each, contestant.test_features, targets) for each in (predictor, raw)
        )

    def _report(
        self, predictor: Predictor, features: NDArray[np.float16], targets: NDArray[np.int64] | NDArray[np.bool_]
    ) -> Report:
        return evaluate(
            predictor.predict_proba(features), targets, multiple=predictor.multiple, thresholds=predictor.thresholds
        )

    def _embed(self, engine: Engine, folder: LabelledFolder) -> tuple[NDArray[np.float16], LabelledFolder]:
        """Return features of the readable images of a folder, and those images."""
        features, readable = self._features(engine, folder.paths, "embed")
        return features, folder.part(readable)

    def _features(
        self, engine: Engine, paths: Sequence[Path], step: str
    ) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        embedded = engine.embed(
            paths,
            max_pixels=self.settings.max_image_pixels,
            on_progress=lambda done, total: self.on_progress(step, done, total),
        )
        readable = np.ones(len(paths), dtype=bool)
        for index, problem in embedded.problems.items():
            log.warning("image unusable", file=str(paths[index]), reason=problem)
            readable[index] = False
        return embedded.features, readable


def _read_subfolders(folder: Path) -> list[tuple[Path, tuple[str, ...]]]:
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is not a folder")
    subfolders = sorted(each for each in folder.iterdir() if each.is_dir())
    return [(path, (each.name,)) for each in subfolders for path in image_files(each)]


def _read_table(table: Path) -> list[tuple[Path, tuple[str, ...]]]:
    try:
        return _read_rows(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequest(f"{table} cannot be read ({error}): save it as comma-separated text in UTF-8") from None


def _read_rows(table: Path) -> list[tuple[Path, tuple[str, ...]]]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"file", "labels"} <= set(reader.fieldnames or ()):
            raise InvalidRequest(f"{table} needs the columns file,labels; it has {','.join(reader.fieldnames or ())}")
        files = {name: path for path in image_files(table.parent) for name in (path.name, str(path))}
        rows = []
        for line in reader:
            # a path says more than a bare name, which several folders may hold
            path = files.get(str(table.parent / line["file"])) or files.get(line["file"])
            if path is None:
                raise InvalidRequest(f"{table} names {line['file']!r}, which is no image file below {table.parent}")
            labels = tuple(dict.fromkeys(name.strip() for name in (line["labels"] or "").split("|") if name.strip()))
            rows.append((path, labels))
    return rows
