"""What learning leaves behind; numpy only, so that it can be read back without loading what fitting needs."""

from __future__ import annotations

from dataclasses import dataclass

from model.conformal import ConformalReport
from model.evaluation import Report
from model.head import FloatArray
from model.inference import Predictor
from model.reports import PoolSnapshot


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutOfFold:
    """Calibrated probabilities, (n, k), of labelled images, each from a head that was fitted without it.

    ``digests`` name the images' content, in the order of the rows.
    """

    digests: tuple[str, ...]
    probabilities: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learned:
    """A predictor, and how it does on images it was not fitted on.

    ``uncalibrated`` and ``calibrated`` are reports on out-of-fold predictions of the same images: of the head alone,
    and after temperature scaling, with what the backbone was pretrained to say. ``conformal`` is on prediction sets of
    the latter. ``method`` names how the head was fitted, the best of the ``candidates``; ``seed`` is what was random
    about it. ``seconds`` is how long it took. ``pool`` are the images without a label that were at hand, where whoever
    had it learn knows them.
    """

    predictor: Predictor
    method: str
    candidates: tuple[str, ...]
    seed: int
    uncalibrated: Report
    calibrated: Report
    conformal: ConformalReport
    out_of_fold: OutOfFold
    seconds: float
    pool: PoolSnapshot | None = None
