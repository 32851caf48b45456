"""Folders of images with their labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backend.errors import InvalidRequest, TrainingImpossible
from backend.labelled_folder import image_files, read_folder
from backend.services.folders import FolderSettings, fit_folder
from tests.factories import make_schema

SETTINGS = FolderSettings(
    backbone="resnet18", weights="none", image_views=1, device="cpu", finetune_min_labels=200, max_image_pixels=10_000
)


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def table(folder: Path, *lines: str, header: str = "file,labels") -> Path:
    (folder / "labels.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8-sig")
    return folder


def labels_of(folder: Path) -> dict[str, tuple[str, ...]]:
    read = read_folder(folder)
    return {
        path.relative_to(folder).as_posix(): image.class_names
        for path, image in zip(read.paths, read.labelled, strict=True)
    }


def test_a_table_that_is_no_utf_8(tmp_path: Path) -> None:
    fill(tmp_path, "1.jpg")
    (tmp_path / "labels.csv").write_bytes("file,labels\n1.jpg,Häuschen\n".encode("latin-1"))
    with pytest.raises(InvalidRequest, match="in UTF-8"):
        read_folder(tmp_path)


class TestSubfolders:
    def test_each_is_a_class(self, tmp_path: Path) -> None:
        fill(tmp_path, "dog/1.jpg", "cat/1.PNG", "cat/old/2.webp", "cat/notes.txt", "loose.jpg")
        assert labels_of(tmp_path) == {"cat/1.PNG": ("cat",), "cat/old/2.webp": ("cat",), "dog/1.jpg": ("dog",)}
        read = read_folder(tmp_path)
        assert (read.schema.class_names, read.schema.multiple) == (("cat", "dog"), False)
        assert len({image.image_digest for image in read.labelled}) == 3

    @pytest.mark.parametrize("name", ["empty", "nowhere"])
    def test_nothing_to_learn_from(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(InvalidRequest, match=name):
            read_folder(tmp_path / name)

    def test_image_files_are_found_at_any_depth(self, tmp_path: Path) -> None:
        fill(tmp_path, "b/2.jpg", "a.png", "c.txt")
        assert [path.name for path in image_files(tmp_path)] == ["a.png", "2.jpg"]


class TestTable:
    def test_several_labels_and_none(self, tmp_path: Path) -> None:
        table(fill(tmp_path, "1.jpg", "2.jpg", "sub/3.jpg"), "1.jpg,cat| dog |cat", "sub/3.jpg,", '2.jpg,"a, b"')
        assert labels_of(tmp_path) == {"1.jpg": ("cat", "dog"), "sub/3.jpg": (), "2.jpg": ("a, b",)}
        read = read_folder(tmp_path)
        assert (read.schema.class_names, read.schema.multiple) == (("a, b", "cat", "dog"), True)

    def test_one_label_each_is_one_class_per_image(self, tmp_path: Path) -> None:
        table(fill(tmp_path, "1.jpg", "2.jpg"), "1.jpg,cat", "2.jpg,dog")
        assert not read_folder(tmp_path).schema.multiple

    def test_files_of_the_same_name_are_told_apart_by_their_folder(self, tmp_path: Path) -> None:
        table(fill(tmp_path, "1.jpg", "sub/1.jpg", "sub/2.jpg"), "1.jpg,cat", "sub/1.jpg,dog", "2.jpg,dog")
        assert labels_of(tmp_path) == {"1.jpg": ("cat",), "sub/1.jpg": ("dog",), "sub/2.jpg": ("dog",)}

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        table(fill(tmp_path, "1.jpg"), "2.jpg,cat")
        with pytest.raises(InvalidRequest, match=r"names '2\.jpg'"):
            read_folder(tmp_path)

    def test_a_file_outside_the_folder_is_not_taken(self, tmp_path: Path) -> None:
        fill(tmp_path, "secret.jpg", "data/1.jpg")
        table(tmp_path / "data", "../secret.jpg,cat")
        with pytest.raises(InvalidRequest, match="secret"):
            read_folder(tmp_path / "data")

    def test_other_columns(self, tmp_path: Path) -> None:
        table(fill(tmp_path, "1.jpg"), "1.jpg,cat", header="image,class")
        with pytest.raises(InvalidRequest, match="needs the columns file,labels; it has image,class"):
            read_folder(tmp_path)


class TestTestPart:
    def test_it_speaks_of_the_same_classes(self, tmp_path: Path) -> None:
        fill(tmp_path, "dog/1.jpg")
        assert read_folder(tmp_path, make_schema("bird", "dog")).schema.class_names == ("bird", "dog")
        with pytest.raises(InvalidRequest, match="has not: dog"):
            read_folder(tmp_path, make_schema("bird", "cat"))

    def test_several_labels_where_there_is_one_each(self, tmp_path: Path) -> None:
        table(fill(tmp_path, "1.jpg"), "1.jpg,cat|dog")
        with pytest.raises(InvalidRequest, match="no label or several"):
            read_folder(tmp_path, make_schema("cat", "dog"))

    @pytest.mark.parametrize("test", [None, "test"])
    def test_nothing_to_measure_on(self, tmp_path: Path, test: str | None) -> None:
        train = read_folder(fill(tmp_path / "train", "cat/1.jpg", "dog/1.jpg"))
        unreadable = test and read_folder(fill(tmp_path / test, "cat/2.jpg"), train.schema)
        with pytest.raises(TrainingImpossible, match="measure on"):
            fit_folder(train, [], unreadable or None, SETTINGS, lambda _step, _done, _total: None)


def test_parts_and_joined_ones_keep_images_and_labels_together(tmp_path: Path) -> None:
    first = read_folder(fill(tmp_path / "first", "cat/1.jpg", "dog/2.jpg", "dog/3.jpg"))
    second = read_folder(fill(tmp_path / "second", "dog/4.jpg"), first.schema)
    part = first.joined(second).part(np.array([True, False, True, True]))
    assert [path.name for path in part.paths] == ["1.jpg", "3.jpg", "4.jpg"]
    assert [image.class_names for image in part.labelled] == [("cat",), ("dog",), ("dog",)]
    assert part.digests == (first.digests[0], first.digests[2], second.digests[0])
