"""Fine-tuning of a tiny network on images of three colours."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from model import finetuning
from model.backbones import Backbone, load_backbone, with_network
from model.finetuning import FineTuned, TrainingConfig, TrainingDiverged, fit
from model.learner import Classifier
from model.resume import EpochReport, best_epoch
from model.transforms import normalise, to_pixels

MAX_PIXELS = 10_000
SIDE = 32
COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200))
CONFIG = TrainingConfig(
    epochs=2,
    batch_size=8,
    learning_rate=1e-3,
    head_learning_rate=1e-3,
    first_layer_share=0.5,
    mixup_alpha=0.0,
    average_decay=0.5,
    patience=10,
    head_penalty=100.0,  # a head this poor leaves the network something to learn
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledFiles:
    """Image files, the class of each, and which are for what."""

    sources: list[Path]
    targets: NDArray[np.int64]
    train: NDArray[np.bool_]
    validation: NDArray[np.bool_]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> LabelledFiles:
    return draw_files(tmp_path_factory.mktemp("colours"))


def draw_files(folder: Path) -> LabelledFiles:
    """Noise around one colour per class: 24 images to train on, 9 to validate, 3 for nothing."""
    generator = np.random.default_rng(0)
    sources = []
    for row in range(36):
        noise = generator.normal(COLOURS[row % 3], 50, size=(40, 48, 3)).clip(0, 255).astype(np.uint8)
        sources.append(folder / f"{row}.png")
        Image.fromarray(noise).save(sources[-1])
    order = np.arange(36)
    return LabelledFiles(sources=sources, targets=order % 3, train=order < 24, validation=(order >= 24) & (order < 33))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return small_backbone()


def small_backbone() -> Backbone:
    """A small network that passes for a pretrained one."""
    untrained = load_backbone("shufflenet_v2_x0_5", "none")
    spec = replace(untrained.input_spec, resize_size=SIDE + 4, crop_size=SIDE)
    return replace(untrained, input_spec=spec, pretrained=True)


def backbone_digest(backbone: Backbone) -> str:
    """Return the digest with the changed input specification, which ``fit`` computes anew."""
    return with_network(backbone, backbone.network).digest


def run(files: LabelledFiles, backbone: Backbone, config: TrainingConfig = CONFIG, **changes: object) -> FineTuned:
    arguments: dict[str, object] = {
        "targets": files.targets,
        "class_count": 3,
        "multiple": False,
        "train": files.train,
        "validation": files.validation,
        "device": "cpu",
        "max_pixels": MAX_PIXELS,
        "n_threads": 1,
        "on_progress": lambda *_: None,
    }
    sources = changes.pop("sources", files.sources)
    return fit(backbone, sources, config=config, **(arguments | changes))  # type: ignore[arg-type]


def logits(fine_tuned: FineTuned, sources: list[Path]) -> NDArray[np.float32]:
    spec = fine_tuned.backbone.input_spec
    pixels = np.stack([to_pixels(source, spec, max_pixels=MAX_PIXELS) for source in sources])
    with torch.no_grad():
        features = fine_tuned.backbone.network(normalise(pixels, spec))[:, -fine_tuned.head_weight.shape[1] :]
    return features.numpy() @ fine_tuned.head_weight.T + fine_tuned.head_bias


class Cancelled(Exception):
    """Somebody pressed cancel."""


def cancel_at(n_batches: int) -> Callable[[int, int], None]:
    def on_progress(done: int, total: int) -> None:
        assert done <= total
        if done == n_batches:
            raise Cancelled

    return on_progress


def test_learns_and_leaves_the_given_backbone_alone(files: LabelledFiles, backbone: Backbone) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}
    fine_tuned = run(files, backbone, replace(CONFIG, head_penalty=1e-3))
    assert [(report.epoch, report.phase) for report in fine_tuned.history] == [
        (0, "head"),
        (1, "network"),
        (2, "network"),
    ]
    best = fine_tuned.history[fine_tuned.best_epoch]
    assert best.validation_loss == min(report.validation_loss or 9 for report in fine_tuned.history[1:])
    assert best.validation_accuracy is not None
    assert best.validation_accuracy > 0.8
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.network.state_dict().items())
    assert not fine_tuned.backbone.network.training
    assert fine_tuned.problems == {}
    assert fine_tuned.seconds > 0


def test_result_is_what_was_validated(files: LabelledFiles, backbone: Backbone) -> None:
    fine_tuned = run(files, backbone, replace(CONFIG, learning_rate=3e-3))
    assert fine_tuned.best_epoch > 0
    assert fine_tuned.backbone.digest != backbone_digest(backbone)
    chosen = np.flatnonzero(files.validation)
    scores = torch.from_numpy(logits(fine_tuned, [files.sources[row] for row in chosen]))
    loss = nn.functional.cross_entropy(scores, torch.from_numpy(files.targets[chosen]))
    assert float(loss) == pytest.approx(fine_tuned.history[fine_tuned.best_epoch].validation_loss, rel=1e-2)


def test_weights_and_digest_change_but_batch_norm_statistics_of_a_pretrained_network_do_not(
    files: LabelledFiles, backbone: Backbone
) -> None:
    nothing = np.zeros(36, dtype=bool)
    fine_tuned = run(files, backbone, replace(CONFIG, epochs=1), validation=nothing)
    assert fine_tuned.best_epoch == 1
    assert fine_tuned.history[1].validation_loss is None
    assert fine_tuned.backbone.digest != backbone.digest
    before, after = backbone.network.state_dict(), fine_tuned.backbone.network.state_dict()
    same = {name: torch.equal(before[name], after[name]) for name in before}
    assert all(equal for name, equal in same.items() if "running_" in name)
    assert not any(equal for name, equal in same.items() if name.endswith("0.weight") and before[name].ndim == 4)


def test_untrained_network_skips_the_head_phase_and_learns_its_batch_norm_statistics(
    files: LabelledFiles, backbone: Backbone
) -> None:
    fine_tuned = run(files, replace(backbone, pretrained=False), replace(CONFIG, epochs=1))
    assert [(report.epoch, report.phase) for report in fine_tuned.history] == [(1, "network")]
    before, after = backbone.network.state_dict(), fine_tuned.backbone.network.state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in before if "running_mean" in name)
    assert fine_tuned.backbone.pretrained


def test_several_classes_per_image(files: LabelledFiles, backbone: Backbone) -> None:
    targets = np.stack([files.targets == 0, files.targets != 2, np.zeros(36, dtype=bool)], axis=1)
    fine_tuned = run(files, backbone, targets=targets, multiple=True)
    chosen = np.flatnonzero(files.validation)
    accuracy = ((logits(fine_tuned, [files.sources[row] for row in chosen]) > 0) == targets[chosen]).all(axis=1).mean()
    assert accuracy == pytest.approx(fine_tuned.history[fine_tuned.best_epoch].validation_accuracy)
    assert accuracy > 0.6


def test_progress_grows_to_the_total_even_when_patience_ends_it(files: LabelledFiles, backbone: Backbone) -> None:
    seen: list[tuple[int, int]] = []
    config = replace(CONFIG, epochs=20, learning_rate=0.0, head_learning_rate=0.0, patience=1)
    fine_tuned = run(files, backbone, config, on_progress=lambda done, total: seen.append((done, total)))
    assert [report.epoch for report in fine_tuned.history] == [0, 1, 2]
    assert fine_tuned.best_epoch == 1
    assert fine_tuned.backbone.digest == backbone_digest(backbone)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert {total for _, total in seen} == {21 * (3 + 1)}
    assert seen[-1] == (84, 84)


@pytest.mark.parametrize("n_batches", [2, 6, 9])
def test_goes_on_where_it_was_killed(files: LabelledFiles, backbone: Backbone, tmp_path: Path, n_batches: int) -> None:
    config = replace(CONFIG, mixup_alpha=0.2)
    whole = run(files, backbone, config)
    with pytest.raises(Cancelled):
        run(files, backbone, config, resume_folder=tmp_path, on_progress=cancel_at(n_batches))
    n_seen: list[int] = []
    resumed = run(files, backbone, config, resume_folder=tmp_path, on_progress=lambda done, _: n_seen.append(done))
    assert resumed.history == whole.history
    assert resumed.backbone.digest == whole.backbone.digest
    np.testing.assert_array_equal(resumed.head_weight, whole.head_weight)
    assert n_seen[0] == 4 * (n_batches // 4) + 1


def result_digest(folder: Path, seed: int) -> str:
    """Fine-tune on images drawn into a folder, with all that is random, and name the result by its content."""
    folder.mkdir()
    fine_tuned = run(draw_files(folder), small_backbone(), replace(CONFIG, epochs=1, mixup_alpha=0.2, seed=seed))
    head = fine_tuned.head_weight.tobytes() + fine_tuned.head_bias.tobytes()
    return f"{fine_tuned.backbone.digest} {hashlib.sha256(head).hexdigest()}"


def test_the_same_seed_gives_the_same_result_in_every_process(tmp_path: Path) -> None:
    first, other = result_digest(tmp_path / "first", 1), result_digest(tmp_path / "other", 2)
    assert first != other
    code = f"""
from pathlib import Path
from tests.unit.model.test_finetuning import result_digest
print(result_digest(Path({str(tmp_path / "again")!r}), 1))
"""
    root = Path(__file__).parents[3]
    again = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[-1] == first


def test_finished_training_returns_at_once_and_other_trainings_do_not_take_it_up(
    files: LabelledFiles, backbone: Backbone, tmp_path: Path
) -> None:
    first = run(files, backbone, resume_folder=tmp_path)
    n_calls: list[int] = []
    again = run(files, backbone, resume_folder=tmp_path, on_progress=lambda done, _: n_calls.append(done))
    assert n_calls == [12]
    assert again.backbone.digest == first.backbone.digest
    assert again.seconds >= first.seconds
    other = run(files, backbone, replace(CONFIG, seed=1), resume_folder=tmp_path)
    assert first.best_epoch > 0
    assert other.backbone.digest != first.backbone.digest


def test_unreadable_state_is_no_obstacle(files: LabelledFiles, backbone: Backbone, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=1)
    whole = run(files, backbone, config, resume_folder=tmp_path)
    (state,) = tmp_path.iterdir()
    state.write_bytes(state.read_bytes()[:1000])
    assert run(files, backbone, config, resume_folder=tmp_path).history == whole.history


def test_unreadable_images_are_skipped_and_reported(files: LabelledFiles, backbone: Backbone, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"not an image")
    sources = list(files.sources)
    sources[5] = damaged
    sources[25] = tmp_path / "missing.jpg"
    fine_tuned = run(files, backbone, sources=sources)
    assert set(fine_tuned.problems) == {5, 25}
    assert "not a" in fine_tuned.problems[5]
    assert fine_tuned.history[0].validation_accuracy in [n_correct / 8 for n_correct in range(9)]


@pytest.mark.parametrize("pretrained", [True, False])
def test_says_when_no_image_is_readable(
    files: LabelledFiles, backbone: Backbone, tmp_path: Path, pretrained: bool
) -> None:
    sources = [tmp_path / source.name for source in files.sources]
    with pytest.raises(ValueError, match="none of the 24 images to train on can be read; the first: "):
        run(files, replace(backbone, pretrained=pretrained), sources=sources)


def test_divergence_keeps_the_best_epoch_so_far(
    files: LabelledFiles, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = finetuning.train_one_epoch

    def diverge_later(training: finetuning.Training, epoch: int) -> float:
        if epoch == 2:
            torch.nn.init.constant_(training.learner.model.head.weight, torch.inf)
        return train(training, epoch)

    monkeypatch.setattr(finetuning, "train_one_epoch", diverge_later)
    fine_tuned = run(files, backbone)
    assert fine_tuned.best_epoch == 1
    assert fine_tuned.backbone.digest != backbone.digest
    assert np.isfinite(logits(fine_tuned, files.sources[:2])).all()


@pytest.mark.parametrize("pretrained", [True, False])
def test_divergence_before_any_epoch_of_the_network_is_an_error(
    files: LabelledFiles, backbone: Backbone, pretrained: bool
) -> None:
    config = replace(CONFIG, learning_rate=1e30, head_learning_rate=1e30, warmup_share=0.0)
    with pytest.raises(TrainingDiverged, match=r"epoch 1 is .*: try a lower learning rate"):
        run(files, replace(backbone, pretrained=pretrained), config)


def test_short_memory_computes_the_same_in_smaller_parts(
    files: LabelledFiles, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_sizes: list[int] = []

    def take_three(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        batch_sizes.append(len(inputs[0]))
        if len(inputs[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    class SmallMemoryClassifier(Classifier):
        def __init__(self, backbone: Backbone, class_count: int, **options: int) -> None:
            super().__init__(backbone, class_count, **options)
            self.network.stages[0].register_forward_pre_hook(take_three)

    config = replace(CONFIG, epochs=1)
    expected = run(files, backbone, config)
    monkeypatch.setattr("model.training.Classifier", SmallMemoryClassifier)
    halved = run(files, backbone, config)
    assert set(batch_sizes[1:]) <= {4, 2, 1}
    assert batch_sizes[-1] <= 2
    assert [report.validation_loss for report in halved.history] == pytest.approx(
        [report.validation_loss for report in expected.history], rel=1e-3
    )


def test_refuses_what_does_not_fit_together(files: LabelledFiles, backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="24 images are for training and validation"):
        run(files, backbone, validation=files.train)
    with pytest.raises(ValueError, match="no image is chosen for training"):
        run(files, backbone, train=np.zeros(36, dtype=bool))
    with pytest.raises(ValueError, match=r"lengths \(36, 36, 35, 36\)"):
        run(files, backbone, train=files.train[1:])
    with pytest.raises(ValueError, match="class indices 0 to 2: expected 0 to 1"):
        run(files, backbone, class_count=2)


def test_more_labels_mean_fewer_epochs_and_larger_batches() -> None:
    few, many = TrainingConfig.for_labels(50, 5), TrainingConfig.for_labels(20_000, 5)
    assert few.epochs > many.epochs >= 5
    assert few.batch_size < many.batch_size
    assert few.average_decay < many.average_decay < 1
    assert few.mixup_alpha == 0
    assert many.mixup_alpha > 0
    untrained = TrainingConfig.for_labels(50, 5, pretrained=False)
    assert untrained.learning_rate > few.learning_rate
    assert untrained.epochs > few.epochs


def test_best_epoch_is_the_first_of_the_network_with_the_lowest_validation_loss() -> None:
    def report(epoch: int, loss: float | None) -> EpochReport:
        phase = "network" if epoch else "head"
        return EpochReport(epoch=epoch, phase=phase, train_loss=1.0, validation_loss=loss, validation_accuracy=None)

    assert best_epoch([report(0, 0.7), report(1, 0.5), report(2, 0.5), report(3, 0.6)]) == 1
    assert best_epoch([report(0, 0.4), report(1, 0.6), report(2, 0.5)]) == 2
    assert best_epoch([report(0, 0.4)]) == 0
    assert best_epoch([report(1, None), report(2, None)]) == 2
