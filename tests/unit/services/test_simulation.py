"""The loop replayed on labelled images."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.domain import LabelledImage, LabelSchema
from backend.errors import ConfigurationError, InvalidRequest, TrainingImpossible
from backend.services.simulation import Simulation, SimulationSettings, checked_strategies, simulate_labelling
from tests.factories import make_schema

RED_BLUE = make_schema("red", "blue")
SETTINGS = SimulationSettings(
    backbone="squeezenet1_1",
    weights="none",
    image_views=1,
    device="cpu",
    max_image_pixels=10_000,
    strategies=("margin",),
    n_seeds=1,
    batch_size=5,
    test_share=0.3,
)


def squares(folder: Path, n: int) -> tuple[list[Path], list[LabelledImage]]:
    """Noisy red and blue squares in turn."""
    random = np.random.default_rng(0)
    paths, labelled = [], []
    for number in range(n):
        pixels = random.integers(0, 120, (32, 32, 3), dtype=np.uint8)
        pixels[..., 2 * (number % 2)] += 120
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        paths.append(path)
        labelled.append(LabelledImage(task_id=number, image_digest=digest, class_names=(("red", "blue")[number % 2],)))
    return paths, labelled


def simulated(folder: Path, n: int, settings: SimulationSettings, schema: LabelSchema = RED_BLUE) -> Simulation:
    return simulate_labelling("squares", schema, *squares(folder, n), settings, lambda _step, _done, _total: None)


def test_every_step_is_reported(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    settings = replace(SETTINGS, n_seeds=2, budgets=(8, 4, 4))
    result = simulate_labelling("squares", RED_BLUE, *squares(tmp_path, 20), settings, lambda *step: steps.append(step))
    assert list(dict.fromkeys(name for name, _, _ in steps)) == [
        "embed",
        *("random, replay 1 of 2", "random, replay 2 of 2", "margin, replay 1 of 2", "margin, replay 2 of 2"),
    ]
    assert [step[1:] for step in steps if step[0] == "margin, replay 2 of 2"] == [(0, 8), (4, 8), (8, 8)]
    assert (result.n_images, result.n_test, result.class_names) == (20, 6, ("red", "blue"))
    assert "untrained" in result.note


def test_an_unreadable_image_costs_only_itself(tmp_path: Path) -> None:
    paths, labelled = squares(tmp_path, 20)
    paths[3].write_bytes(b"not an image")
    result = simulate_labelling("squares", RED_BLUE, paths, labelled, SETTINGS, lambda _step, _done, _total: None)
    assert result.n_images == 19


def test_strategies_are_known_and_random_is_the_first() -> None:
    assert checked_strategies(["tandem", "random", "tandem"]) == ["random", "tandem"]
    with pytest.raises(InvalidRequest, match="no query strategy 'best', 'worst': it must be one of tandem, random"):
        checked_strategies(["best", "margin", "worst"])


@pytest.mark.parametrize("budget", [0, 15])
def test_budgets_that_cannot_be_reached(tmp_path: Path, budget: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{budget} labels is impossible: 6 of 20 .* which leaves 14 to ask for"):
        simulated(tmp_path, 20, replace(SETTINGS, budgets=(4, budget)))


@pytest.mark.parametrize("budgets", [(), (1,)])
def test_too_few_images(tmp_path: Path, budgets: tuple[int, ...]) -> None:
    with pytest.raises(TrainingImpossible, match="too few images of 2 classes: 0 of 2"):
        simulated(tmp_path, 2, replace(SETTINGS, test_share=0.1, budgets=budgets))


def test_one_class_teaches_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingImpossible, match="squares has 1 classes"):
        simulated(tmp_path, 2, SETTINGS, make_schema("red"))


def test_settings_that_name_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="resnet19"):
        simulated(tmp_path, 2, replace(SETTINGS, backbone="resnet19"))
