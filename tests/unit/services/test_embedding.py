"""Images are fetched and embedded once, and one that cannot be had costs only itself."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from backend.domain import JobKind, TasksDeleted, TasksSeen
from backend.errors import EmbedderUnavailable, ImageForbidden, ImageNotFound, ImageUnavailable
from backend.ports import CachedImage, EmbedderBackbone
from backend.services.embedding import N_FETCHERS
from tests.factories import BASE_DIGEST, image_url, make_task
from tests.world import PROJECT, World, pets

TUNED_DIGEST = "f" * 64


def later(seconds: float = 5) -> float:
    return time.monotonic() + seconds


def publish_backbone(world: World, digest: str) -> None:
    with world.artifacts.scratch() as folder:
        (folder / "backbone.json").write_text("{}")
        world.artifacts.publish(f"backbones/{digest}", folder)
    world.embedder.finetuned.add(digest)


class TestInTheBackground:
    def test_every_image_gets_features(self, world: World) -> None:
        world.see_tasks(pets(70))
        assert world.embed() == "70 images embedded"
        assert world.project.backbone_digest == BASE_DIGEST
        assert {task.backbone_digest for task in world.tasks.values()} == {BASE_DIGEST}
        rows, found = world.features.read(BASE_DIGEST, [task.image_digest or "" for task in world.tasks.values()])
        assert found.all()
        expected = world.embedder.features(b"cat 2", BASE_DIGEST)
        np.testing.assert_allclose(rows[1], expected, rtol=1e-2)
        assert [progress.done for progress in world.reports.seen] == [64, 70]
        assert world.reports.seen[-1].total == 70

    def test_nothing_new_costs_nothing(self, world: World) -> None:
        world.see_tasks(pets(3))
        world.embed()
        world.images.fetched.clear()
        assert world.embed() == "0 images embedded"
        assert world.images.fetched == []

    def test_a_training_follows(self, world: World) -> None:
        world.see_tasks(pets(3))
        world.finish_jobs()
        world.embed()
        assert world.queued(JobKind.HEAD) is not None
        assert world.queued(JobKind.PUSH) is None

    def test_new_images_get_their_suggestion_pushed(self, world: World) -> None:
        world.learn(pets(8))
        world.finish_jobs()
        world.embed()
        assert world.queued(JobKind.PUSH) is None
        world.see_tasks({9: "cat"})
        world.embed()
        assert world.queued(JobKind.PUSH) is not None

    def test_the_same_image_twice_is_embedded_once(self, world: World) -> None:
        world.images.contents |= {image_url("cat", number): b"cat twin" for number in (1, 2)}
        world.see_tasks({1: "cat", 2: "cat"})
        world.embed()
        world.see_tasks({3: "cat"})
        world.images.contents[image_url("cat", 3)] = b"cat twin"
        world.embed()
        assert len({task.image_digest for task in world.tasks.values()}) == 1
        assert {task.backbone_digest for task in world.tasks.values()} == {BASE_DIGEST}

    @pytest.mark.parametrize("error", [ImageNotFound("404"), ImageForbidden("10.0.0.1"), ImageUnavailable("timeout")])
    def test_an_image_that_cannot_be_had_costs_only_itself(self, world: World, error: Exception) -> None:
        world.images.contents[image_url("dog", 3)] = error  # type: ignore[assignment]
        world.see_tasks(pets(5))
        assert world.embed() == "4 images embedded, 1 could not be read"
        assert world.tasks[3].image_problem == str(error)
        assert world.tasks[3].backbone_digest is None
        assert {world.tasks[task_id].backbone_digest for task_id in (1, 2, 4, 5)} == {BASE_DIGEST}

    def test_an_image_out_of_reach_that_is_the_only_one_left_does_not_fail(self, world: World) -> None:
        world.images.contents[image_url("cat", 1)] = ImageUnavailable("timeout")
        world.see_tasks({1: "cat"})
        assert world.embed() == "0 images embedded, 1 could not be read"
        assert world.tasks[1].image_problem == "timeout"

    def test_an_image_that_cannot_be_read_costs_only_itself(self, world: World) -> None:
        """Rows and tasks must not slip against each other behind it."""
        world.images.contents[image_url("cat", 2)] = b"broken file"
        world.images.contents[image_url("dog", 3)] = ImageNotFound("404")
        world.see_tasks(pets(5))
        world.embed()
        assert world.tasks[2].image_problem == "not an image"
        rows, found = world.features.read(BASE_DIGEST, [world.tasks[5].image_digest or ""])
        assert found.all()
        np.testing.assert_allclose(rows[0], world.embedder.features(b"dog 5", BASE_DIGEST), rtol=1e-2)

    def test_a_host_that_is_down_is_tried_again(self, world: World) -> None:
        world.see_tasks(pets(5))
        for url in [task.image_url or "" for task in world.tasks.values()]:
            world.images.contents[url] = ImageUnavailable("no answer")
        with pytest.raises(ImageUnavailable, match="none of 5 images"):
            world.embed()
        world.images.contents.clear()
        assert world.embed() == "5 images embedded"

    def test_a_host_that_is_down_does_not_hold_up_the_images_of_others(self, world: World) -> None:
        far = [make_task(number, url=f"https://far.test/cat-{number}.png") for number in range(1, 71)]
        for task in far:
            world.images.contents[task.image_url or ""] = ImageUnavailable("no answer")
        world.ingestion.handle(TasksSeen(project=world.snapshot, tasks=tuple(far)))
        world.see_tasks({number: "dog" for number in range(71, 151)})
        with pytest.raises(ImageUnavailable, match="no answer"):
            world.embed()
        assert {world.tasks[number].backbone_digest for number in range(71, 151)} == {BASE_DIGEST}
        assert len(world.images.fetched) == 64 + 80
        world.images.contents.clear()
        assert world.embed() == "70 images embedded"

    def test_without_the_embedder_nothing_is_lost(self, world: World) -> None:
        world.see_tasks(pets(3))
        world.embedder.down = True
        with pytest.raises(EmbedderUnavailable):
            world.embed()
        world.embedder.down = False
        assert world.embed() == "3 images embedded"

    def test_another_backbone_in_the_settings_embeds_anew(self, world: World) -> None:
        world.see_tasks(pets(3))
        world.embed()
        world.embedder.digest = "c" * 64
        assert world.embed() == "3 images embedded"
        assert world.project.backbone_digest == "c" * 64
        assert len(world.images.fetched) == 3

    def test_a_project_stays_with_its_fine_tuned_backbone(self, world: World) -> None:
        world.see_tasks(pets(3))
        world.embed()
        publish_backbone(world, TUNED_DIGEST)
        with world.database.transaction() as stores:
            project = stores.projects.get(PROJECT)
            stores.projects.save(replace(project, backbone_digest=TUNED_DIGEST))
        world.embed()
        assert {task.backbone_digest for task in world.tasks.values()} == {TUNED_DIGEST}

    def test_a_fine_tuned_backbone_that_is_gone_falls_back_to_the_pretrained_one(self, world: World) -> None:
        world.see_tasks(pets(3))
        with world.database.transaction() as stores:
            stores.projects.save(replace(stores.projects.get(PROJECT), backbone_digest=TUNED_DIGEST))
        world.embed()
        assert world.project.backbone_digest == BASE_DIGEST

    def test_it_does_not_take_a_project_back_from_a_backbone_that_it_moved_to_meanwhile(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.see_tasks(pets(3))
        world.embed()
        publish_backbone(world, TUNED_DIGEST)
        base = world.embedder.base

        def slowly() -> EmbedderBackbone:
            with world.database.transaction() as stores:
                stores.projects.save(replace(stores.projects.get(PROJECT), backbone_digest=TUNED_DIGEST))
            return base()

        monkeypatch.setattr(world.embedder, "base", slowly)
        world.embed()
        monkeypatch.undo()
        assert world.project.backbone_digest == TUNED_DIGEST
        world.embed()
        assert {task.backbone_digest for task in world.tasks.values()} == {TUNED_DIGEST}

    def test_tasks_deleted_meanwhile_stay_deleted(self, world: World) -> None:
        world.see_tasks(pets(3))
        world.embedder.before_embedding = lambda: world.ingestion.handle(
            TasksDeleted(project=world.snapshot, task_ids=(2,))
        )
        world.embed()
        assert set(world.tasks) == {1, 3}

    def test_images_changed_meanwhile_are_embedded_again(self, world: World) -> None:
        world.see_tasks(pets(3))

        def change() -> None:
            world.embedder.before_embedding = lambda: None
            world.ingestion.handle(TasksSeen(project=world.snapshot, tasks=(make_task(2, "bird"),)))

        world.embedder.before_embedding = change
        world.embed()
        assert world.tasks[2].image_url == image_url("bird", 2)
        assert world.tasks[2].image_digest == world.images.fetch("bird-2", label_studio_task_id=2, timeout_s=1).digest
        assert world.tasks[2].backbone_digest == BASE_DIGEST


class TestOnTheSpot:
    def test_known_images_are_looked_up(self, world: World) -> None:
        world.see_tasks(pets(3))
        world.embed()
        tasks = list(world.tasks.values())
        world.images.fetched.clear()
        world.embedder.down = True
        rows = world.embedding.features_of(world.project, tasks, BASE_DIGEST, later())
        np.testing.assert_allclose(rows[1], world.embedder.features(b"cat 2", BASE_DIGEST), rtol=1e-2)  # type: ignore[arg-type]
        assert world.images.fetched == []

    def test_without_the_embedder_known_images_are_looked_up_all_the_same(self, world: World) -> None:
        world.see_tasks(pets(3))
        world.embed()
        world.see_tasks({4: "cat"})
        world.embedder.down = True
        rows = world.embedding.features_of(world.project, list(world.tasks.values()), BASE_DIGEST, later())
        np.testing.assert_allclose(rows[1], world.embedder.features(b"cat 2", BASE_DIGEST), rtol=1e-2)  # type: ignore[arg-type]
        assert rows[3] == "the embedding process is not up yet: try again shortly"

    def test_unknown_images_are_embedded_and_kept(self, world: World) -> None:
        tasks = world.see_tasks(pets(3))
        rows = world.embedding.features_of(world.project, tasks, BASE_DIGEST, later())
        assert not any(isinstance(row, str) for row in rows)
        assert {task.backbone_digest for task in world.tasks.values()} == {BASE_DIGEST}
        assert world.features.read(BASE_DIGEST, [world.tasks[1].image_digest or ""])[1].all()

    def test_who_waits_is_served_first_and_for_no_longer_than_there_is_time(self, world: World) -> None:
        world.see_tasks(pets(3))
        world.embed()
        assert world.embedder.waits == [(False, None)]
        world.embedding.features_of(world.project, world.see_tasks({4: "cat"}), BASE_DIGEST, later(0.9))
        ((urgent, timeout_s),) = world.embedder.waits[1:]
        assert urgent
        assert timeout_s is not None
        assert timeout_s <= 0.9
        assert world.images.timeouts_s[:3] == [1, 1, 1]
        assert world.images.timeouts_s[3] <= 0.9

    def test_a_full_disk_keeps_nothing_back_that_is_known(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_space(*_: object, **__: object) -> None:
            raise OSError("no space left on device")

        world.see_tasks(pets(3))
        world.embed()
        world.see_tasks({4: "cat"})
        monkeypatch.setattr(world.features, "append", no_space)
        rows = world.embedding.features_of(world.project, list(world.tasks.values()), BASE_DIGEST, later())
        np.testing.assert_allclose(rows[1], world.embedder.features(b"cat 2", BASE_DIGEST), rtol=1e-2)  # type: ignore[arg-type]
        assert rows[3] == "its image is not embedded yet"

    def test_images_that_wait_for_others_are_given_no_more_time(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tasks = world.see_tasks(pets(3 * N_FETCHERS))
        fetched = []

        def never_answer(image_url: str, *, label_studio_task_id: int, timeout_s: float) -> CachedImage:  # noqa: ARG001
            fetched.append(image_url)
            time.sleep(timeout_s)
            raise ImageUnavailable("no answer in time")

        monkeypatch.setattr(world.images, "fetch", never_answer)
        rows = world.embedding.features_of(world.project, tasks, BASE_DIGEST, later(0.3))
        assert all(isinstance(row, str) and row.startswith("none of 24 images could be reached") for row in rows)
        assert len(fetched) == N_FETCHERS

    def test_an_image_that_came_too_late_is_not_held_to_be_out_of_reach(self, world: World) -> None:
        world.images.contents[image_url("cat", 2)] = ImageUnavailable("no answer in time")
        tasks = world.see_tasks(pets(3))
        rows = world.embedding.features_of(world.project, tasks, BASE_DIGEST, later())
        assert rows[1] == "no answer in time"
        assert world.tasks[2].image_problem is None

    def test_each_task_without_features_has_its_reason(self, world: World) -> None:
        world.images.contents[image_url("cat", 2)] = ImageNotFound("404 from Label Studio")
        world.images.contents[image_url("cat", 4)] = b"broken file"
        tasks = [*world.see_tasks(pets(4)), make_task(9)]
        tasks[2] = replace(tasks[2], image_url=None)
        rows = world.embedding.features_of(world.project, tasks, BASE_DIGEST, later())
        assert [row if isinstance(row, str) else "features" for row in rows] == [
            "features",
            "404 from Label Studio",
            "it has no image where the label config looks for one",
            "not an image",
            "features",
        ]

    def test_when_time_is_up_the_rest_comes_later(self, world: World) -> None:
        tasks = world.see_tasks(pets(3))
        rows = world.embedding.features_of(world.project, tasks, BASE_DIGEST, later(-1))
        assert rows == ["its image is not embedded yet"] * 3
