"""Near-duplicates and outliers among a project's images are reported, and near-duplicates are not asked twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from backend.errors import Conflict, NotFound
from backend.promotion import backbone_key
from backend.services import survey as module
from backend.services.survey import Survey
from tests.world import PROJECT, World, pets


@pytest.fixture
def survey(world: World) -> Survey:
    return Survey(world.database, world.features, world.artifacts)


def things(n: int) -> dict[int, str]:
    """Task ids from 1, each of a class of its own."""
    return {task_id: f"thing{task_id}" for task_id in range(1, n + 1)}


def photograph(world: World, task_id: int, like: int) -> None:
    """Let a task show an image that is hardly different from another task's."""
    (task,) = world.see_tasks({task_id: f"again-{like}"})
    original = world.images.fetch(world.tasks[like].image_url or "", label_studio_task_id=like, timeout_s=1)
    content = original.path.read_bytes()
    world.images.contents[task.image_url or ""] = b"double " + content
    features = world.embedder.features

    def doubled(content: bytes, digest: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        if content.startswith(b"double "):
            return 1.02 * features(content.removeprefix(b"double "), digest)
        return features(content, digest)

    world.embedder.features = doubled  # type: ignore[method-assign]
    world.embed()


def test_images_that_repeat_others(world: World, survey: Survey) -> None:
    world.see_tasks(things(20))
    world.embed()
    assert survey.images(PROJECT).duplicates == ()
    photograph(world, 101, like=5)
    photograph(world, 102, like=5)
    photograph(world, 103, like=8)
    world.label({8: "cat"})
    report = survey.images(PROJECT)
    assert report.duplicates == ((5, 101, 102), (8, 103))
    assert report.needless == {101, 102, 103}
    assert report.open_tasks == set(world.tasks) - {8}
    assert (report.n_checked, report.n_tasks) == (23, 23)
    assert report.sentence == (
        "23 of 23 images were compared: 3 open tasks repeat another image, 0 images are unlike all others."
    )


def test_the_same_file_twice(world: World, survey: Survey) -> None:
    world.see_tasks(things(20))
    (task,) = world.see_tasks({200: "copy"})
    world.images.contents[task.image_url or ""] = b"thing7 7"
    world.embed()
    assert world.tasks[200].image_digest == world.tasks[7].image_digest
    assert survey.images(PROJECT).duplicates == ((7, 200),)


def test_images_unlike_all_others(world: World, survey: Survey) -> None:
    world.see_tasks(pets(60) | {200: "lighthouse"})
    world.embed()
    report = survey.images(PROJECT)
    assert report.outliers[0].task_id == 200
    assert report.outliers[0].distance > 1.5 * report.usual_distance > 0
    distances = [outlier.distance for outlier in report.outliers]
    assert distances == sorted(distances, reverse=True)


def test_near_duplicates_are_not_asked_twice(world: World) -> None:
    world.see_tasks(pets(40))
    world.embed()
    world.label(pets(20))
    world.fit()
    for number, like in enumerate((3, 21, 21, 22), start=101):
        photograph(world, number, like=like)
    for strategy in ("tandem", "margin", "entropy", "typicality", "random"):
        world.querying = world.new_querying(strategy=strategy, batch_size=20)
        world.query()
        view = next(view for view in world.label_studio.views if view.title == "Label next")
        asked = view.task_ids or frozenset()
        assert len(asked) == 20
        assert 101 not in asked, "its image has a label"
        assert len(asked & {21, 102, 103}) == 1, "one of three"
        assert len(asked & {22, 104}) == 1, "one of two"


def test_what_was_skipped_is_not_asked_again_in_another_photo(world: World) -> None:
    world.see_tasks(pets(30))
    world.embed()
    photograph(world, 101, like=5)
    world.label({5: ()})
    world.querying = world.new_querying(batch_size=29)
    world.query()
    view = next(view for view in world.label_studio.views if view.title == "Label next")
    assert view.task_ids == set(range(1, 31)) - {5}


def test_features_of_the_pretrained_network_are_looked_at(world: World, survey: Survey) -> None:
    world.learn(pets(20))
    digest = world.project.backbone_digest or ""
    with world.artifacts.scratch() as folder:
        (folder / "network").write_text("fine-tuned")
        world.artifacts.publish(backbone_key("tuned"), folder)
    world.embedder.finetuned.add("tuned")
    with world.database.transaction() as stores:
        stores.projects.save(replace(stores.projects.get(PROJECT), backbone_digest="tuned"))
    world.embed()
    world.see_tasks(pets(3, start=50))
    world.embed()
    report = survey.images(PROJECT)
    assert world.features.count("tuned") == 23
    assert world.features.count(digest) == 20
    assert (report.n_checked, report.n_tasks) == (20, 23)


def test_of_very_many_images_some_are_looked_at(world: World, survey: Survey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IMAGES", 15)
    world.see_tasks(pets(20))
    world.embed()
    first = survey.images(PROJECT)
    assert (first.n_checked, first.n_tasks) == (15, 20)
    assert survey.images(PROJECT).open_tasks == first.open_tasks


def test_nothing_to_look_at(world: World, survey: Survey) -> None:
    with pytest.raises(NotFound):
        survey.images(99)
    world.see_tasks(pets(3))
    with pytest.raises(Conflict, match="no image of project 5 is embedded yet"):
        survey.images(PROJECT)
