"""Everything that is known of one version, as JSON and back; what no evaluation could have given is refused."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from model.calibration import Reliability
from model.conformal import Conformal, ConformalReport
from model.evaluation import ClassReport, Report

Setting = bool | int | float | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSnapshot:
    """Which images without a label a version learned from; ``sha256``, in hex, is that of their digests."""

    n_images: int
    sha256: str

    @classmethod
    def of(cls, digests: Sequence[str]) -> Self:
        """Return the snapshot of images by their digests, the same in whatever order."""
        return cls(n_images=len(digests), sha256=hashlib.sha256(json.dumps(sorted(digests)).encode()).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSettings:
    """How the features of a backbone are computed.

    Attributes:
        backbone: torchvision's name of the architecture.
        image_views: of how many views of an image its features are the mean.
        device: ``cpu`` or ``cuda``.
        runtime: what runs the network, and in which precision; both change features a little (``model.runtimes``).
    """

    backbone: str
    image_views: int
    device: str
    runtime: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionReport:
    """What a version was made from and by, and how it does on images that it was not fitted on.

    Attributes:
        class_names: the k classes, in the order of all that is per class.
        multiple: whether an image may have several classes.
        uncalibrated: on out-of-fold predictions of the head without temperature.
        calibrated: on the same images, with temperature and opinion.
        temperature: what logits are divided by.
        opinion_share: how much the opinion of the pretrained classifier counts against the head, 0 to 1.
        thresholds: probability from which on a class is suggested, (k,), where an image may have several.
        conformal: thresholds of prediction sets.
        conformal_report: how these sets do, out of fold.
        method: how the head was fitted, the best of the ``candidates``.
        seed: what was random about it.
        backbone_digest: whose features the head works on.
        block_sizes: how a feature row is composed.
        embedding: how features of that backbone were computed when the version learned. Rows that were stored earlier
            may come from another device or runtime. ``None`` where nobody could tell.
        finetuning: how that backbone was trained by this version; ``None`` where it was not.
        snapshot: SHA-256, in hex, of the labels that it learned from.
        pool: the images without a label that were at hand; ``None`` where it is not known, as in older versions.
        libraries: versions of what computed it, by name.
        timings_s: how long its steps took, in seconds. Like ``embedding`` not part of what its digest vouches for.
    """

    class_names: tuple[str, ...]
    multiple: bool
    uncalibrated: Report
    calibrated: Report
    temperature: float
    opinion_share: float
    thresholds: tuple[float, ...] | None
    conformal: Conformal
    conformal_report: ConformalReport
    method: str
    candidates: tuple[str, ...]
    seed: int
    backbone_digest: str
    block_sizes: tuple[int, ...]
    embedding: EmbeddingSettings | None
    finetuning: Mapping[str, Setting] | None
    snapshot: str
    pool: PoolSnapshot | None
    libraries: Mapping[str, str]
    timings_s: Mapping[str, float]


def read_conformal(stored: Mapping[str, Any]) -> Conformal:
    """Return thresholds of prediction sets from JSON.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    certain_above = stored["certain_above"]
    return Conformal(
        alpha=float(stored["alpha"]),
        possible_from=tuple(_share(each) for each in stored["possible_from"]),
        certain_above=None if certain_above is None else tuple(_share(each) for each in certain_above),
    )


def read_version_report(
    content: Mapping[str, Any], *, embedding: Mapping[str, Any] | None, timings_s: Mapping[str, Any]
) -> VersionReport:
    """Return the report of a version from the content of its checkpoint and what stands beside that.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    class_names = tuple(str(name) for name in content["class_names"])
    multiple, thresholds, finetuning = bool(content["multiple"]), content["thresholds"], content["finetuning"]
    conformal_report, pool = content["conformal_report"], content.get("pool")
    return VersionReport(
        class_names=class_names,
        multiple=multiple,
        uncalibrated=_read_report(content["uncalibrated"], len(class_names), multiple),
        calibrated=_read_report(content["calibrated"], len(class_names), multiple),
        temperature=_not_negative(content["temperature"]),
        opinion_share=_share(content.get("opinion_share", 0.0)),
        thresholds=None if thresholds is None else tuple(_share(each) for each in thresholds),
        conformal=read_conformal(content["conformal"]),
        conformal_report=ConformalReport(
            n=_count(conformal_report["n"]),
            coverage=_share(conformal_report["coverage"]),
            mean_size=_not_negative(conformal_report["mean_size"]),
            share_decided=_share(conformal_report["share_decided"]),
        ),
        method=str(content["method"]),
        candidates=tuple(str(each) for each in content["candidates"]),
        seed=_count(content["seed"]),
        backbone_digest=str(content["backbone_digest"]),
        block_sizes=tuple(_count(size) for size in content["block_sizes"]),
        embedding=None if embedding is None else _read_embedding(embedding),
        finetuning=None if finetuning is None else {str(name): _setting(each) for name, each in finetuning.items()},
        snapshot=str(content["snapshot"]),
        pool=None if pool is None else PoolSnapshot(n_images=_count(pool["n_images"]), sha256=str(pool["sha256"])),
        libraries={str(name): str(each) for name, each in content["libraries"].items()},
        timings_s={str(name): _not_negative(each) for name, each in timings_s.items()},
    )


def _read_embedding(stored: Mapping[str, Any]) -> EmbeddingSettings:
    return EmbeddingSettings(
        backbone=str(stored["backbone"]),
        image_views=_count(stored["image_views"]),
        device=str(stored["device"]),
        runtime=str(stored["runtime"]),
    )


def _read_report(stored: Mapping[str, Any], n_classes: int, multiple: bool) -> Report:
    confusion = stored["confusion"]
    report = Report(
        accuracy=_share(stored["accuracy"]),
        macro_precision=_share(stored["macro_precision"]),
        macro_recall=_share(stored["macro_recall"]),
        macro_f1=_share(stored["macro_f1"]),
        log_loss=_not_negative(stored["log_loss"]),
        brier=_not_negative(stored["brier"]),
        ece=_share(stored["ece"]),
        reliability=Reliability(
            confidences=tuple(_share(each) for each in stored["reliability"]["confidences"]),
            accuracies=tuple(_share(each) for each in stored["reliability"]["accuracies"]),
            counts=tuple(_count(each) for each in stored["reliability"]["counts"]),
        ),
        per_class=tuple(
            ClassReport(
                precision=_share(each["precision"]),
                recall=_share(each["recall"]),
                f1=_share(each["f1"]),
                support=_count(each["support"]),
            )
            for each in stored["per_class"]
        ),
        confusion=None if confusion is None else tuple(tuple(_count(cell) for cell in row) for row in confusion),
        n=_count(stored["n"]),
    )
    _check_lengths(report, n_classes, multiple)
    return report


def _check_lengths(report: Report, n_classes: int, multiple: bool) -> None:
    diagram = report.reliability
    if not len(diagram.confidences) == len(diagram.accuracies) == len(diagram.counts):
        raise ValueError("a reliability diagram has one confidence, accuracy and count for each bin")
    if sum(diagram.counts) != report.n * (n_classes if multiple else 1):
        raise ValueError(f"a reliability diagram of {sum(diagram.counts)} answers is not that of {report.n} images")
    if len(report.per_class) != n_classes:
        raise ValueError(f"figures of {len(report.per_class)} classes are not those of {n_classes}")
    if (report.confusion is None) != multiple:
        raise ValueError("images of one class have a confusion matrix, and those of several have none")
    if report.confusion is not None and {n_classes} != {len(report.confusion), *map(len, report.confusion)}:
        raise ValueError(f"the confusion matrix is not {n_classes} by {n_classes}")


def _share(value: Any) -> float:
    share = float(value)
    if not 0 <= share <= 1:
        raise ValueError(f"{value!r} is not between 0 and 1")
    return share


def _not_negative(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{value!r} is not a finite number from 0 on")
    return number


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a whole number from 0 on")
    return value


def _setting(value: Any) -> Setting:
    if not isinstance(value, Setting):
        raise TypeError(f"{value!r} is not a setting")
    return value
