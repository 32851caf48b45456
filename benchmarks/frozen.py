"""The methods that can do without training a network: logistic regression on frozen features, and Tandem itself.

Images are embedded once for all runs (``FeatureMemory``); every run is charged what the images it needs cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.transforms import v2

from backend.promotion import targets_of
from backend.services.folders import FolderSettings, fit_folder
from backend.settings import Settings
from benchmarks.image_sets import Split
from benchmarks.learning_runs import FeatureMemory, Outcome, Stopwatch
from benchmarks.networks import SQUEEZE, TO_TENSOR, Pretrained, outputs
from model.evaluation import evaluate
from model.features import Embedded, Engine

# what a user has who sets nothing
DEFAULTS = FolderSettings(
    **{
        field.name: Settings.model_fields[field.name].default
        for field in fields(FolderSettings)
        if field.name in Settings.model_fields
    }
)
NEVER = 10**9

CENTRE = v2.Compose([v2.Resize(256), v2.CenterCrop(224), TO_TENSOR])
SQUEEZED = v2.Compose([SQUEEZE, TO_TENSOR])


def logistic_regression(split: Split, pretrained: Pretrained, seed: int, device: str, memory: FeatureMemory) -> Outcome:
    """Baseline: StandardScaler and LogisticRegression(C=1) on features before the last layer.

    Shorter side to 256 and the centre of 224, or squeezed to 224 x 224 where there may be several labels, of
    which each has a classifier of its own.
    """
    del seed  # it decided the draw
    stopwatch = Stopwatch()
    multiple = split.train.schema.multiple
    trunk, _ = pretrained.trunk()
    embed = partial(
        outputs,
        trunk,
        transform=SQUEEZED if multiple else CENTRE,
        device=device,
    )
    train, test = (
        memory.recall(f"{pretrained.name} before its last layer", paths, embed)
        for paths in (split.train.paths, split.test.paths)
    )
    targets = targets_of(split.train.labelled, split.train.schema)
    if multiple:
        probabilities = np.column_stack([_fit(train, column).predict_proba(test)[:, 1] for column in targets.T])
    else:
        probabilities = _fit(train, targets).predict_proba(test)
    cost, _ = memory.settle(stopwatch.read(), split)
    report = evaluate(probabilities, targets_of(split.test.labelled, split.test.schema), multiple=multiple)
    return Outcome.of(report, cost)


def _fit(features: NDArray[np.float32], targets: NDArray[Any]) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000)).fit(features, targets)


def tandem(
    split: Split,
    pretrained: Pretrained,
    seed: int,
    device: str,
    memory: FeatureMemory,
    *,
    with_pool: bool,
    finetune: bool,
) -> Outcome:
    """Ours, through the code behind ``tandem fit``, with its default settings."""
    settings = replace(
        DEFAULTS,
        backbone=pretrained.name,
        weights=str(pretrained.weights),
        device=device,
        finetune_min_labels=DEFAULTS.finetune_min_labels if finetune else NEVER,
        seed=seed,
    )
    pool = split.pool if with_pool else ()
    stopwatch = Stopwatch()
    with embedding_through(memory):
        result = fit_folder(split.train, pool, split.test, settings, lambda *_: None)
    cost, pool_wall_s = memory.settle(stopwatch.read(), split)
    return Outcome(
        macro_f1=result.metrics.macro_f1,
        accuracy=result.metrics.accuracy,
        ece=result.metrics.ece,
        uncalibrated_ece=result.uncalibrated_ece,
        log_loss=result.metrics.log_loss,
        **cost._asdict(),
        pool_wall_s=pool_wall_s,
        note=f"{result.kind.value}: {result.method}",
    )


@contextmanager
def embedding_through(memory: FeatureMemory) -> Iterator[None]:
    """Let every engine ask the memory for features before it computes any."""
    embed = Engine.embed

    def recall(engine: Engine, sources: Sequence[Path], **options: Any) -> Embedded:
        features = memory.recall(
            engine.backbone.digest, sources, lambda missing: embed(engine, missing, **options).features
        )
        return Embedded(features=features, problems={})

    with patch.object(Engine, "embed", recall):
        yield
