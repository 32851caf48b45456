"""Learning from a folder of images, without any Label Studio: the same learning code, measured on a test part."""

from __future__ import annotations

import csv
import hashlib
import time
from collections.abc import Callable, Sequence
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
from model.folds import NetworkSplit, folds_of, groups_of, held_out
from model.inference import Predictor
from model.learning import Examples, Learned, TooFewLabels, learn
from model.recipe import finetune

log = structlog.get_logger()

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
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

    def joined(self, other: LabelledFolder) -> LabelledFolder:
        """Return these images and after them those of another folder, of the same classes."""
        return replace(self, paths=self.paths + other.paths, labelled=self.labelled + other.labelled)


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
