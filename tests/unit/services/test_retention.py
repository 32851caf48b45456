"""What no task and no version needs leaves the feature store, nothing else does, and what is missing comes back."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from backend.domain import JobKind, JobStatus, ModelVersion, VersionKind, VersionStatus
from backend.errors import NotFound
from backend.promotion import backbone_key, training_state_name, version_key
from backend.services import retention
from tests.factories import BASE_DIGEST, make_identity, make_version
from tests.fakes import FakeEmbedder
from tests.world import PROJECT, World, pets

OTHER = "c" * 64


@pytest.fixture
def embedded(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Forty embedded images; more than four unused rows are worth a compaction."""
    monkeypatch.setattr(retention, "MIN_UNUSED_ROWS", 4)
    world.see_tasks(pets(40))
    world.embed()
    world.finish_jobs()
    return world


def remove_tasks(world: World, n: int) -> list[str]:
    """Delete the first tasks and return the digests of their images."""
    gone = [task.image_digest or "" for task in world.tasks.values()][:n]
    with world.database.transaction() as stores:
        stores.tasks.delete(PROJECT, list(world.tasks)[:n])
    return gone


def held(world: World, digest: str = BASE_DIGEST) -> list[str]:
    """Return the images of tasks that have features."""
    images = [task.image_digest or "" for task in world.tasks.values()]
    return [image for image, here in zip(images, world.features.holds(digest, images), strict=True) if here]


def store_features(world: World, digest: str = OTHER) -> None:
    """Store features of another backbone for the images of all tasks."""
    images = [task.image_digest or "" for task in world.tasks.values()]
    rows = np.ones((len(images), sum(FakeEmbedder.BLOCK_SIZES)), np.float16)
    world.features.append(digest, images, rows, block_sizes=FakeEmbedder.BLOCK_SIZES)


def add_version(world: World, version: ModelVersion, *, active: bool = False) -> None:
    with world.database.transaction() as stores:
        stores.versions.add(version)
        if active:
            stores.versions.activate(PROJECT, version.name, "")


def test_the_state_of_a_broken_off_fine_tuning_goes_with_its_project(embedded: World) -> None:
    states = embedded.folder / "finetuning"
    for project_id in (PROJECT, PROJECT + 1):
        state = states / training_state_name(project_id) / "training-state.safetensors"
        state.parent.mkdir(parents=True)
        state.write_bytes(b"weights")
    embedded.retention.run()
    assert [path.name for path in states.iterdir()] == [training_state_name(PROJECT)]
    embedded.projects.forget(PROJECT)
    embedded.retention.run()
    assert list(states.iterdir()) == []


class TestUnusedRows:
    def test_images_that_no_task_shows_are_forgotten(self, embedded: World) -> None:
        gone = remove_tasks(embedded, 11)
        embedded.retention.run()
        assert not embedded.features.holds(BASE_DIGEST, gone).any()
        assert len(held(embedded)) == embedded.features.count(BASE_DIGEST) == 29
        assert embedded.queued(JobKind.EMBED) is None

    @pytest.mark.parametrize("n_unused", [0, 4, 10])
    def test_a_few_are_not_worth_the_copying(self, embedded: World, n_unused: int) -> None:
        remove_tasks(embedded, n_unused)
        embedded.retention.run()
        assert embedded.features.count(BASE_DIGEST) == 40

    def test_few_rows_are_never_copied(self, embedded: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retention, "MIN_UNUSED_ROWS", 30)
        remove_tasks(embedded, 30)
        embedded.retention.run()
        assert embedded.features.count(BASE_DIGEST) == 40

    def test_images_of_another_project_stay(self, embedded: World) -> None:
        tasks = list(embedded.tasks.values())
        with embedded.database.transaction() as stores:
            other = stores.projects.resolve(make_identity(label_studio_id=6))
            stores.tasks.upsert(other.id, tasks)
            for task in tasks[:10]:
                stores.tasks.record_image(other.id, task)
        gone = remove_tasks(embedded, 30)
        embedded.retention.run()
        assert embedded.features.holds(BASE_DIGEST, gone).tolist() == [True] * 10 + [False] * 20

    def test_a_database_without_images_is_taken_for_a_new_one(self, embedded: World) -> None:
        store_features(embedded)
        remove_tasks(embedded, 40)
        embedded.retention.run()
        assert embedded.features.count(BASE_DIGEST) == 40
        assert embedded.features.backbones() == [BASE_DIGEST, OTHER]

    def test_a_full_disk_is_no_reason_to_stop(self, embedded: World, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_space(*_: object) -> int:
            raise OSError("no space left on device")

        monkeypatch.setattr(embedded.features, "compact", no_space)
        remove_tasks(embedded, 20)
        embedded.retention.run()
        assert embedded.features.count(BASE_DIGEST) == 40


class TestFormerBackbones:
    def test_what_nothing_refers_to_is_deleted(self, embedded: World) -> None:
        store_features(embedded)
        embedded.retention.run()
        assert embedded.features.backbones() == [BASE_DIGEST]
        assert len(held(embedded)) == 40

    def test_the_backbone_of_the_active_version_stays(self, embedded: World) -> None:
        store_features(embedded)
        add_version(embedded, replace(make_version(1), backbone_digest=OTHER), active=True)
        for number in range(2, 20):
            add_version(embedded, make_version(number, status=VersionStatus.RETIRED))
        embedded.retention.run()
        assert embedded.features.backbones() == [BASE_DIGEST, OTHER]

    @pytest.mark.parametrize(("n_newer", "stays"), [(4, True), (5, False)])
    def test_those_of_the_newest_versions_stay(self, embedded: World, n_newer: int, stays: bool) -> None:
        store_features(embedded)
        tuned = make_version(1, kind=VersionKind.FINETUNE, status=VersionStatus.RETIRED)
        add_version(embedded, replace(tuned, backbone_digest=OTHER))
        for number in range(n_newer):
            add_version(embedded, make_version(2 + number, status=VersionStatus.RETIRED))
        embedded.retention.run()
        assert (OTHER in embedded.features.backbones()) is stays

    def test_that_of_a_rejected_version_goes(self, embedded: World) -> None:
        store_features(embedded)
        tuned = make_version(1, kind=VersionKind.FINETUNE, status=VersionStatus.REJECTED)
        add_version(embedded, replace(tuned, backbone_digest=OTHER))
        embedded.retention.run()
        assert embedded.features.backbones() == [BASE_DIGEST]

    def test_that_of_a_project_stays(self, embedded: World) -> None:
        store_features(embedded)
        with embedded.database.transaction() as stores:
            stores.projects.save(replace(stores.projects.get(PROJECT), backbone_digest=OTHER))
        embedded.retention.run()
        assert OTHER in embedded.features.backbones()

    def test_the_pretrained_one_stays_although_no_project_has_it(self, embedded: World) -> None:
        store_features(embedded)
        with embedded.database.transaction() as stores:
            stores.projects.save(replace(stores.projects.get(PROJECT), backbone_digest=OTHER))
        embedded.retention.run()
        assert embedded.features.backbones() == [BASE_DIGEST, OTHER]

    def test_none_is_deleted_while_the_pretrained_one_is_unknown(self, embedded: World) -> None:
        store_features(embedded)
        embedded.embedder.down = True
        embedded.retention.run()
        assert OTHER in embedded.features.backbones()

    def test_none_is_deleted_while_a_network_is_fine_tuned(self, embedded: World) -> None:
        store_features(embedded)
        now = embedded.clock.now()
        with embedded.database.transaction() as stores:
            embedded.scheduler.now(stores, PROJECT, JobKind.FINETUNE)
            job = stores.jobs.claim([JobKind.FINETUNE], "worker", now, now)
        assert job is not None
        embedded.retention.run()
        assert OTHER in embedded.features.backbones()


class TestLostFeatures:
    def test_they_are_embedded_again(self, embedded: World) -> None:
        embedded.features.delete(BASE_DIGEST)
        embedded.retention.run()
        assert embedded.queued(JobKind.EMBED) is not None
        assert embedded.embed() == "40 images embedded"
        assert len(held(embedded)) == 40

    def test_a_task_that_takes_up_an_unused_row_as_it_goes_gets_it_back(
        self, embedded: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gone = embedded.tasks[1]
        remove_tasks(embedded, 20)
        compact = embedded.features.compact

        def compact_too_late(*arguments: object) -> int:
            with embedded.database.transaction() as stores:
                stores.tasks.upsert(PROJECT, [gone])
                stores.tasks.record_image(PROJECT, gone)
            return compact(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(embedded.features, "compact", compact_too_late)
        embedded.retention.run()
        assert embedded.tasks[1].backbone_digest is None
        assert embedded.embed() == "1 images embedded"
        assert len(held(embedded)) == 21

    def test_a_former_backbone_can_be_returned_to(self, embedded: World) -> None:
        """Its features were deleted while tasks still said that they have them."""
        store_features(embedded)
        with embedded.database.transaction() as stores:
            for task in list(embedded.tasks.values())[:10]:
                stores.tasks.record_image(PROJECT, replace(task, backbone_digest=OTHER))
        embedded.retention.run()
        assert [task.backbone_digest for task in embedded.tasks.values()] == [None] * 10 + [BASE_DIGEST] * 30


def test_what_a_process_that_died_left_goes_and_what_is_in_use_stays(embedded: World) -> None:
    with embedded.artifacts.scratch() as in_use:
        left = in_use.with_name("left")
        left.mkdir()
        (left / "half").write_text("a tor")
        embedded.retention.run()
        assert list(in_use.parent.iterdir()) == [in_use]


class TestVersions:
    """Five versions are kept beside the active one."""

    def published(self, world: World, version: ModelVersion, *, age_days: float = 2, active: bool = False) -> str:
        """Store a version with files, as old as that."""
        created_at = world.clock.now() - timedelta(days=age_days)
        add_version(world, replace(version, created_at=created_at), active=active)
        return self.publish(world, version_key(PROJECT, version.name))

    def publish(self, world: World, key: str) -> str:
        with world.artifacts.scratch() as folder:
            (folder / "file").write_text("content")
            world.artifacts.publish(key, folder)
        return key

    def test_files_of_old_versions_go_and_rows_stay(self, embedded: World) -> None:
        active = self.published(embedded, make_version(1), age_days=100, active=True)
        statuses = [VersionStatus.RETIRED, VersionStatus.REJECTED] * 5
        keys = [
            self.published(embedded, make_version(2 + number, status=status)) for number, status in enumerate(statuses)
        ]
        before = embedded.versions
        embedded.retention.run()
        assert embedded.artifacts.keys("versions") == sorted([active, *keys[-5:]])
        assert embedded.versions == before
        embedded.retention.run()
        assert len(embedded.artifacts.keys("versions")) == 6

    def test_nothing_of_the_last_day_goes_and_nothing_that_is_not_judged(self, embedded: World) -> None:
        candidate = self.published(embedded, make_version(1), age_days=3)
        young = [
            self.published(embedded, make_version(2 + number, status=VersionStatus.RETIRED), age_days=0.9)
            for number in range(9)
        ]
        embedded.retention.run()
        assert embedded.artifacts.keys("versions") == sorted([candidate, *young])
        embedded.clock.forward(24 * 3600)
        embedded.retention.run()
        assert embedded.artifacts.keys("versions") == sorted([candidate, *young[-5:]])

    def test_a_network_goes_with_the_last_version_learned_on_it(self, embedded: World) -> None:
        network = self.publish(embedded, backbone_key(OTHER))
        of_another = self.publish(embedded, backbone_key("d" * 64))
        tuned = make_version(1, kind=VersionKind.FINETUNE, status=VersionStatus.RETIRED)
        self.published(embedded, replace(tuned, backbone_digest=OTHER))
        with embedded.database.transaction() as stores:
            embedded.scheduler.now(stores, PROJECT, JobKind.FINETUNE)
            job = stores.jobs.claim([JobKind.FINETUNE], "worker", embedded.clock.now(), embedded.clock.now())
        assert job is not None
        embedded.retention.run()
        assert embedded.artifacts.keys("backbones") == [network, of_another]
        with embedded.database.transaction() as stores:
            stores.jobs.finish(job.id, "worker", JobStatus.FAILED, "tested", embedded.clock.now())
        embedded.retention.run()
        assert embedded.artifacts.keys("backbones") == [network]
        for number in range(2, 7):
            self.published(embedded, make_version(number, status=VersionStatus.RETIRED))
        embedded.retention.run()
        assert embedded.artifacts.keys("backbones") == []

    def test_nobody_goes_back_to_a_version_without_files(self, embedded: World) -> None:
        keys = [self.published(embedded, make_version(1 + number, status=VersionStatus.RETIRED)) for number in range(6)]
        embedded.retention.run()
        gone = keys[0].rsplit("/", 1)[1]
        with pytest.raises(NotFound, match="VERSIONS_KEPT"):
            embedded.promoting.rollback(PROJECT, gone)
        kept = keys[1].rsplit("/", 1)[1]
        assert embedded.promoting.rollback(PROJECT, kept).name == kept


@pytest.mark.parametrize("n_heads", [0, 101])
def test_the_network_of_a_fine_tuning_that_runs_stays(embedded: World, n_heads: int) -> None:
    with embedded.artifacts.scratch() as folder:
        (folder / "file").write_text("content")
        embedded.artifacts.publish(backbone_key(OTHER), folder)
    now = embedded.clock.now()
    with embedded.database.transaction() as stores:
        if not n_heads:
            stores.projects.resolve(make_identity(label_studio_id=6))  # which fine-tunes nothing
        embedded.scheduler.now(stores, PROJECT, JobKind.FINETUNE)
        assert stores.jobs.claim([JobKind.FINETUNE], "worker", now, now) is not None
        for _ in range(n_heads):
            embedded.scheduler.now(stores, PROJECT, JobKind.HEAD)
            head = stores.jobs.claim([JobKind.HEAD], "worker", now, now)
            assert head is not None
            stores.jobs.finish(head.id, "worker", JobStatus.SUCCEEDED, None, now)
    embedded.retention.run()
    assert embedded.artifacts.keys("backbones") == [backbone_key(OTHER)]
