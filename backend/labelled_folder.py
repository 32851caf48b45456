"""A folder of images with their labels: a sub-folder for each class, or a table."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.domain import LabelledImage, LabelSchema
from backend.errors import InvalidRequest

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledFolder:
    """Image files with their labels."""

    schema: LabelSchema
    paths: tuple[Path, ...]
    labelled: tuple[LabelledImage, ...]

    def part(self, rows: NDArray[np.bool_]) -> LabelledFolder:
        """Return some of the images."""
        kept = np.flatnonzero(rows)
        return replace(
            self, paths=tuple(self.paths[row] for row in kept), labelled=tuple(self.labelled[row] for row in kept)
        )

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each image's content, in hex."""
        return tuple(image.image_digest for image in self.labelled)

    def joined(self, other: LabelledFolder) -> LabelledFolder:
        """Return these images and after them those of another folder, of the same classes."""
        return replace(self, paths=self.paths + other.paths, labelled=self.labelled + other.labelled)


def read_folder(folder: Path, schema: LabelSchema | None = None) -> LabelledFolder:
    """Read a folder with one sub-folder per class, or with a ``labels.csv`` of columns ``file,labels``.

    In ``labels.csv`` several labels of one image are joined by ``|``. With a ``schema``, as for a test part, only
    its classes may occur.

    Raises:
        InvalidRequest: there is nothing to learn from in the folder, or a label that the schema does not have.
    """
    table = folder / "labels.csv"
    rows = _read_table(table) if table.is_file() else _read_subfolders(folder)
    if not rows:
        raise InvalidRequest(f"{folder} holds neither sub-folders with images nor a labels.csv: see tandem fit --help")
    names = tuple(sorted({name for _, labels in rows for name in labels}))
    multiple = table.is_file() and any(len(labels) != 1 for _, labels in rows)
    if schema is None:
        schema = LabelSchema(
            control_name="choice", object_name="image", data_key="image", class_names=names, multiple=multiple
        )
    unknown = set(names) - set(schema.class_names)
    if unknown:
        raise InvalidRequest(f"{folder} has classes that the training part has not: {', '.join(sorted(unknown))}")
    if not schema.multiple and any(len(labels) != 1 for _, labels in rows):
        raise InvalidRequest(f"{folder} has images with no label or several: in the training part each one has one")
    labelled = [
        LabelledImage(task_id=row, image_digest=hashlib.sha256(path.read_bytes()).hexdigest(), class_names=labels)
        for row, (path, labels) in enumerate(rows)
    ]
    return LabelledFolder(schema=schema, paths=tuple(path for path, _ in rows), labelled=tuple(labelled))


def image_files(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _read_subfolders(folder: Path) -> list[tuple[Path, tuple[str, ...]]]:
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is not a folder")
    subfolders = sorted(each for each in folder.iterdir() if each.is_dir())
    return [(path, (each.name,)) for each in subfolders for path in image_files(each)]


def _read_table(table: Path) -> list[tuple[Path, tuple[str, ...]]]:
    try:
        return _read_rows(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequest(f"{table} cannot be read ({error}): save it as comma-separated text in UTF-8") from None


def _read_rows(table: Path) -> list[tuple[Path, tuple[str, ...]]]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"file", "labels"} <= set(reader.fieldnames or ()):
            raise InvalidRequest(f"{table} needs the columns file,labels; it has {','.join(reader.fieldnames or ())}")
        files = {name: path for path in image_files(table.parent) for name in (path.name, str(path))}
        rows = []
        for line in reader:
            # a path says more than a bare name, which several folders may hold
            path = files.get(str(table.parent / line["file"])) or files.get(line["file"])
            if path is None:
                raise InvalidRequest(f"{table} names {line['file']!r}, which is no image file below {table.parent}")
            labels = tuple(dict.fromkeys(name.strip() for name in (line["labels"] or "").split("|") if name.strip()))
            rows.append((path, labels))
    return rows
