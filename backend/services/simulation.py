"""What each query strategy would have brought: the loop replayed on labelled images, by a backbone of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from backend.domain import LabelledImage, LabelSchema
from backend.errors import ConfigurationError, InvalidRequest, TrainingImpossible
from backend.pretrained import opinion_of
from backend.promotion import targets_of
from model.backbones import Backbone, load_backbone
from model.features import Engine, choose_device
from model.folds import held_out
from model.query import STRATEGIES
from model.query_report import BASELINE, Saving, savings
from model.simulation import Curve, Images, LabelledSet, default_budgets, replay

log = structlog.get_logger()

OnProgress = Callable[[str, int, int], None]
"""Called with the name of the step, what is done of it, and how much it is in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSettings:
    """What to embed with, and what to replay.

    ``test_share`` of the images, above 0 and below 1, are held out; ``budgets`` are the numbers of labels to compare
    at, those of ``model.simulation.default_budgets`` where there are none.
    """

    backbone: str
    weights: str
    image_views: int
    device: str
    max_image_pixels: int
    strategies: Sequence[str]
    n_seeds: int
    batch_size: int
    test_share: float
    budgets: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """The strategies, random selection first, on ``n_test`` held-out of ``n_images`` images."""

    class_names: tuple[str, ...]
    n_images: int
    n_test: int
    seeds: int
    batch_size: int
    savings: tuple[Saving, ...]
    curves: tuple[Curve, ...]
    note: str


def simulate_labelling(
    name: str,
    schema: LabelSchema,
    paths: Sequence[Path],
    labelled: Sequence[LabelledImage],
    settings: SimulationSettings,
    on_progress: OnProgress,
) -> Simulation:
    """Embed images once, hold some out, and replay the labelling of the others for each strategy and seed.

    Args:
        name: of the set of images.
        schema: the classes.
        paths: the image files.
        labelled: their labels, which the replay gives when it is asked for them.
        settings: what to replay.
        on_progress: called after each forward pass, and after each budget of a replay.

    Raises:
        InvalidRequest: an unknown strategy, or budgets that no replay can reach.
        ConfigurationError: there is no such backbone, weights or device.
        TrainingImpossible: too few classes or images.
    """
    strategies = checked_strategies(settings.strategies)
    if len(schema.class_names) < (1 if schema.multiple else 2):
        raise TrainingImpossible(f"{name} has {len(schema.class_names)} classes: it takes two to learn from")
    backbone, device = _backbone(settings)
    features, readable = _embedded(Engine(backbone, device), paths, settings.max_image_pixels, on_progress)
    known = [image for image, here in zip(labelled, readable, strict=True) if here]
    targets = targets_of(known, schema)
    digests = [image.image_digest for image in known]
    test = held_out(digests, features, targets, backbone.block_sizes, settings.test_share)
    budgets = _budgets(settings, len(schema.class_names), n_images=len(known), n_test=int(test.sum()))
    labelled_set = LabelledSet(
        name=name,
        backbone=backbone.name,
        images=Images(features=features[~test], targets=targets[~test]),
        test_images=Images(features=features[test], targets=targets[test]),
        n_classes=len(schema.class_names),
        block_sizes=backbone.block_sizes,
        opinion=opinion_of(backbone, schema),
    )
    curves = tuple(_replayed(labelled_set, strategy, budgets, settings, on_progress) for strategy in strategies)
    return Simulation(
        class_names=schema.class_names,
        n_images=len(known),
        n_test=int(test.sum()),
        seeds=settings.n_seeds,
        batch_size=settings.batch_size,
        savings=tuple(savings(curves)),
        curves=curves,
        note=backbone.note,
    )


def checked_strategies(names: Sequence[str]) -> list[str]:
    """Return the strategies to replay, random selection first: it is what the others are measured by.

    Raises:
        InvalidRequest: there is no such strategy.
    """
    unknown = [name for name in names if name not in STRATEGIES]
    if unknown:
        raise InvalidRequest(
            f"there is no query strategy {', '.join(map(repr, unknown))}: it must be one of {', '.join(STRATEGIES)}"
        )
    return list(dict.fromkeys([BASELINE, *names]))


def _backbone(settings: SimulationSettings) -> tuple[Backbone, str]:
    weights = settings.weights if settings.weights in ("auto", "none") else Path(settings.weights)
    try:
        return load_backbone(settings.backbone, weights, n_views=settings.image_views), choose_device(settings.device)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def _embedded(
    engine: Engine, paths: Sequence[Path], max_pixels: int, on_progress: OnProgress
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Return features of the readable images, and which those are."""
    embedded = engine.embed(
        paths, max_pixels=max_pixels, on_progress=lambda done, total: on_progress("embed", done, total)
    )
    readable = np.ones(len(paths), dtype=bool)
    for index, problem in embedded.problems.items():
        log.warning("image unusable", file=str(paths[index]), reason=problem)
        readable[index] = False
    return embedded.features, readable


def _budgets(settings: SimulationSettings, n_classes: int, *, n_images: int, n_test: int) -> list[int]:
    """Return the numbers of labels to compare at, ascending."""
    n_left = n_images - n_test
    parts = f"{n_test} of {n_images} readable images are held out to measure on, which leaves {n_left} to ask for"
    impossible = [budget for budget in settings.budgets if not 1 <= budget <= n_left]
    if impossible:
        raise InvalidRequest(f"a budget of {impossible[0]} labels is impossible: {parts}")
    budgets = [budget for budget in settings.budgets or default_budgets(n_classes) if budget <= n_left]
    if not budgets or not n_test:
        raise TrainingImpossible(f"too few images of {n_classes} classes: {parts}; take more, or another --test-share")
    return sorted(set(budgets))


def _replayed(
    labelled: LabelledSet, strategy: str, budgets: Sequence[int], settings: SimulationSettings, on_progress: OnProgress
) -> Curve:
    return replay(
        labelled,
        strategy,
        budgets=budgets,
        batch_size=settings.batch_size,
        n_seeds=settings.n_seeds,
        on_round=lambda seed, n_labels: on_progress(
            f"{strategy}, replay {seed + 1} of {settings.n_seeds}", n_labels, budgets[-1]
        ),
    )
