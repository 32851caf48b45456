"""Labels become a network, which competes with the active version; real images, a tiny untrained network."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.domain import JobKind, Progress, PromotionDecision, VersionKind, VersionStatus
from backend.errors import ImageNotFound, JobCancelled, JobFailed, TrainingImpossible
from backend.promotion import backbone_key
from backend.services import finetuning
from backend.services.finetuning import FineTuning, FineTuningSettings
from backend.services.promoting import Judgement
from model.backbones import Backbone, load_backbone
from model.features import Embedded, Engine
from model.folds import NetworkSplit
from model.training import TrainingConfig
from tests.world import PROJECT, World, pets

pytestmark = pytest.mark.slow
N = 40


def picture(name: str, seed: int, compress_level: int = 6) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 120, (24, 24, 3), dtype=np.uint8)
    pixels[..., 0 if name == "cat" else 2] += 120
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=compress_level)
    return file.getvalue()


@pytest.fixture
def shown(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Forty pictures with a label and four without; the active version is a head."""
    short = replace(TrainingConfig.for_labels(N, 2), epochs=1, batch_size=8)
    monkeypatch.setattr(TrainingConfig, "for_labels", lambda *_, **__: short)
    names = pets(N + 4)
    for task in world.see_tasks(names):
        world.images.contents[task.image_url or ""] = picture(names[task.id], task.id)
    world.label(pets(N))
    # what the pretrained backbone makes of the pictures does not matter here
    world.embed()
    world.fit()
    world.finish_jobs()
    return world


def service(world: World, resume_folder: Path) -> FineTuning:
    settings = FineTuningSettings(
        backbone="resnet18",
        weights="none",
        image_views=1,
        device="cpu",
        image_timeout_s=1,
        max_image_pixels=10_000,
        resume_folder=resume_folder,
    )
    return FineTuning(
        world.database, world.training, world.promoting, world.images, world.features, world.artifacts, settings
    )


@pytest.mark.parametrize("promote", [True, False])
def test_a_network_is_learned_and_competes(
    shown: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promote: bool
) -> None:
    before = shown.active
    decision = PromotionDecision(promote=promote, reason="because the test says so")
    monkeypatch.setattr(shown.promoting, "judge", lambda *_: Judgement(decision=decision, active=before))
    outcome = service(shown, tmp_path / "resume").run(PROJECT, shown.reports)

    candidate = shown.versions[0]
    assert candidate.kind is VersionKind.FINETUNE
    assert candidate.n_labels == N
    assert 0 < candidate.n_validation < N
    assert candidate.backbone_digest != before.backbone_digest
    assert shown.artifacts.keys(backbone_key(candidate.backbone_digest)) == [backbone_key(candidate.backbone_digest)]
    report, earlier = (shown.projects.version(PROJECT, version.name).report for version in (candidate, before))
    assert report is not None
    assert earlier is not None
    # calibrated anew, on images that the network was held back from
    assert report.calibrated.n == candidate.n_validation
    assert report.temperature != earlier.temperature
    assert report.finetuning is not None
    assert report.finetuning["epochs"] > 0
    assert report.timings_s["finetune"] > 0
    assert report.timings_s["embed"] > 0
    assert report.embedding is not None
    assert (report.embedding.backbone, report.embedding.image_views, report.embedding.device) == ("resnet18", 1, "cpu")
    assert report.embedding.runtime.startswith(("OpenVINO", "torch"))
    assert report.pool == earlier.pool
    assert {progress.unit for progress in shown.reports.seen} >= {"batches", "images"}
    digests = [task.image_digest or "" for task in shown.tasks.values()]
    assert not (tmp_path / "resume" / "p5").exists()
    if promote:
        assert outcome == f"{candidate.name} promoted: because the test says so"
        assert shown.active == candidate
        assert shown.project.backbone_digest == candidate.backbone_digest
        assert shown.features.read(candidate.backbone_digest, digests)[1].all()
        assert shown.queued(JobKind.EMBED) is not None
        assert shown.queued(JobKind.PUSH) is not None
        shown.embedder.finetuned.add(candidate.backbone_digest)
        shown.embedder.embedded.clear()
        assert shown.embed() == f"{N + 4} images embedded"
        assert shown.embedder.embedded == []
    else:
        assert candidate.status is VersionStatus.REJECTED
        assert shown.active == before
        assert shown.project.backbone_digest == before.backbone_digest


def test_images_that_nobody_has_decoded_yet_are_left_out(
    shown: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever they may hold, they cannot harm the process that fine-tunes."""
    names = {200: "cat", 201: "dog"}
    for task in shown.see_tasks(names):
        shown.images.contents[task.image_url or ""] = b"broken file"
    shown.label({200: "cat"})
    shown.embed()
    with shown.database.transaction() as stores:
        stores.tasks.forgive_problems(PROJECT)
    assert all(shown.tasks[number].image_digest for number in names)
    changed = shown.tasks[N + 1]
    (shown.folder / "images" / (changed.image_digest or "")).unlink()
    shown.images.contents[changed.image_url or ""] = b"broken since"
    decoded: list[Path] = []
    embed, fit = Engine.embed, finetuning.finetune

    def watched_fit(backbone: Backbone, paths: list[Path], *arguments: Any, **options: Any) -> Any:
        decoded.extend(paths)
        return fit(backbone, paths, *arguments, **options)

    def watched_embed(engine: Engine, paths: list[Path], **options: Any) -> Any:
        decoded.extend(paths)
        return embed(engine, paths, **options)

    monkeypatch.setattr(finetuning, "finetune", watched_fit)
    monkeypatch.setattr(Engine, "embed", watched_embed)
    service(shown, tmp_path / "resume").run(PROJECT, shown.reports)
    assert len({path.name for path in decoded}) == N + 3
    assert not any(path.read_bytes().startswith(b"broken") for path in decoded)


def test_images_that_are_gone_are_left_out(shown: World, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        task = shown.tasks[number]
        (shown.folder / "images" / (task.image_digest or "")).unlink()
        shown.images.contents[task.image_url or ""] = ImageNotFound("404")
    service(shown, tmp_path / "resume").run(PROJECT, shown.reports)
    assert shown.versions[0].n_labels == N - 3
    assert "withdrawn" not in shown.versions[0].reason


def test_a_cancelled_one_ends_at_once_and_leaves_no_version(shown: World, tmp_path: Path) -> None:
    def cancel(_: Progress) -> None:
        raise JobCancelled("cancelled on request")

    with pytest.raises(JobCancelled):
        service(shown, tmp_path / "resume").run(PROJECT, cancel)
    assert len(shown.versions) == 1


def test_too_few_labels(world: World, tmp_path: Path) -> None:
    world.see_tasks(pets(4))
    world.label(pets(3))
    world.embed()
    with pytest.raises(TrainingImpossible, match="3 of 4"):
        service(world, tmp_path / "resume").run(PROJECT, world.reports)


def test_a_training_that_does_not_work_is_a_failure(
    shown: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object, **__: object) -> None:
        raise finetuning.TrainingDiverged("the loss is not a number")

    monkeypatch.setattr(finetuning, "finetune", diverge)
    with pytest.raises(JobFailed, match="the loss is not a number"):
        service(shown, tmp_path / "resume").run(PROJECT, shown.reports)


@pytest.mark.parametrize(("device", "n_threads"), [("cpu", 1), ("cuda", None)])
def test_on_a_processor_it_leaves_the_other_threads_to_annotators(
    shown: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, n_threads: int | None
) -> None:
    asked_for: list[object] = []

    def note(*_: object, **options: object) -> None:
        asked_for.append((options["device"], options["n_threads"]))
        raise finetuning.TrainingDiverged("noted")

    monkeypatch.setattr(finetuning, "choose_device", lambda _: device)
    monkeypatch.setattr(finetuning, "Engine", lambda backbone, _: Engine(backbone, "cpu"))
    monkeypatch.setattr(finetuning, "finetune", note)
    with pytest.raises(JobFailed, match="noted"):
        service(shown, tmp_path / "resume").run(PROJECT, shown.reports)
    assert asked_for == [(device, n_threads)]


def test_a_network_never_sees_the_double_of_an_image_that_judges_it(shown: World, tmp_path: Path) -> None:
    digests = sorted(task.image_digest or "" for task in shown.tasks.values())
    pretrained = load_backbone("resnet18", "none", n_views=1)
    features = np.random.default_rng(0).random((len(digests) // 2, pretrained.n_features)).repeat(2, axis=0)
    shown.features.append(
        pretrained.digest, digests[: len(features)], features.astype(np.float16), block_sizes=pretrained.block_sizes
    )
    service(shown, tmp_path / "resume").run(PROJECT, shown.reports)
    candidate = shown.versions[0]
    split = NetworkSplit.read(shown.artifacts.fetch(backbone_key(candidate.backbone_digest)))
    labelled = {shown.tasks[number].image_digest for number in pets(N)}
    assert split.seen == labelled - split.held_out.keys()
    assert candidate.n_validation == len(labelled & split.held_out.keys())
    for first, second in zip(digests[::2], digests[1::2], strict=True):
        assert (first in split.held_out) == (second in split.held_out)


def test_doubles_are_found_among_images_that_came_while_a_fine_tuned_network_served(
    shown: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those have no pretrained features, which tell what is a double: here by what is to be seen, whatever the file."""
    names = {100 + number: name for number, name in pets(N).items()}
    for task in shown.see_tasks(names):
        shown.images.contents[task.image_url or ""] = picture(names[task.id], task.id - 100, compress_level=1)
    shown.label({number: name for number, name in names.items() if number <= 120})
    shown.embed()
    pretrained = load_backbone("resnet18", "none", n_views=1)
    embed = Engine.embed

    def told_apart(engine: Engine, paths: list[Path], **options: Any) -> Embedded:
        if engine.backbone.digest != pretrained.digest:
            return embed(engine, paths, **options)
        pixels = [np.asarray(Image.open(path)).astype(np.uint32) for path in paths]
        rows = [np.random.default_rng(each.ravel()).random(pretrained.n_features) for each in pixels]
        return Embedded(features=np.array(rows, np.float16).reshape(-1, pretrained.n_features), problems={})

    monkeypatch.setattr(Engine, "embed", told_apart)
    service(shown, tmp_path / "resume").run(PROJECT, shown.reports)
    split = NetworkSplit.read(shown.artifacts.fetch(backbone_key(shown.versions[0].backbone_digest)))
    digests = {number: task.image_digest or "" for number, task in shown.tasks.items()}
    assert len(split.seen | split.held_out.keys()) > N + 20
    assert split.seen.isdisjoint(split.held_out)
    for number in pets(N):
        assert digests[number] != digests[100 + number]
        assert (digests[number] in split.held_out) == (digests[100 + number] in split.held_out)


def test_every_image_has_features_of_a_network_before_it_serves(
    shown: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "MAX_POOL", 1)
    before, decision = shown.active, PromotionDecision(promote=True, reason="tested")
    monkeypatch.setattr(shown.promoting, "judge", lambda *_: Judgement(decision=decision, active=before))
    service(shown, tmp_path / "resume").run(PROJECT, shown.reports)
    digests = [task.image_digest or "" for task in shown.tasks.values()]
    assert shown.features.holds(shown.active.backbone_digest, digests).all()
