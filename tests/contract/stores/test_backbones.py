"""What is remembered of backbones, whichever database holds it."""

from __future__ import annotations

from backend.ports import Database

DIGESTS = ("a" * 64, "b" * 64)


def test_nothing_is_known_of_a_backbone_never_seen(database: Database) -> None:
    with database.snapshot() as stores:
        assert stores.backbones.categories(DIGESTS[0]) == ()


def test_categories_are_kept_as_they_were_saved_last(database: Database) -> None:
    for categories in (("tench", "goldfish"), (), ("brambling", "Cardigan")):
        with database.transaction() as stores:
            stores.backbones.save_categories(DIGESTS[0], categories)
        with database.snapshot() as stores:
            assert stores.backbones.categories(DIGESTS[0]) == categories
            assert stores.backbones.categories(DIGESTS[1]) == ()
