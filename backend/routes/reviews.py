"""What there is to look at again, as the API and the command line show it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backend.services.review import LabelForecast, LabelReview
    from backend.services.survey import ImageReport

Json = dict[str, Any]


def encode_label_review(review: LabelReview, limit: int) -> Json:
    """Return the first ``limit`` suspect labels and the annotators' agreement as the API shows them."""
    return {
        "suspects": [
            {
                "task": suspect.task_id,
                "given": list(suspect.given),
                "suggested": list(suspect.suggested),
                "confidence": suspect.confidence,
            }
            for suspect in review.suspects[:limit]
        ],
        "n_checked": review.n_checked,
        "agreement": asdict(review.agreement),
    }


def encode_forecast(forecast: LabelForecast) -> Json:
    """Return what more labels would bring as the API shows it."""
    expected = forecast.expected
    return {
        "n_labels": expected.n_labels,
        "accuracy": expected.accuracy,
        "n_more": expected.n_more,
        "expected_gain": expected.gain,
        "low": expected.low,
        "high": expected.high,
        "measured_on": {"n_images": forecast.n_images, "at_random": forecast.at_random},
        "summary": forecast.sentence,
    }


def encode_images(report: ImageReport, limit: int) -> Json:
    """Return the first ``limit`` groups of near-duplicates and outliers as the API shows them."""
    return {
        "duplicates": [
            {"tasks": list(group), "open": [task_id for task_id in group if task_id in report.open_tasks]}
            for group in report.duplicates[:limit]
        ],
        "n_groups": len(report.duplicates),
        "n_needless": len(report.needless),
        "outliers": [
            {"task": outlier.task_id, "open": outlier.task_id in report.open_tasks, "distance": outlier.distance}
            for outlier in report.outliers[:limit]
        ],
        "n_outliers": len(report.outliers),
        "usual_distance": report.usual_distance,
        "n_checked": report.n_checked,
        "n_tasks": report.n_tasks,
        "summary": report.sentence,
    }
