"""Sets of photos that learning is measured on: a fixed test part, and labelled images drawn from the rest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backend.labelled_folder import LabelledFolder, read_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What one run may see: labelled images, unlabelled ones, and those to measure on."""

    train: LabelledFolder
    pool: tuple[Path, ...]
    test: LabelledFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """A set of photos; the images of ``pool`` have labels too, which a draw reveals for some of them."""

    name: str
    pool: LabelledFolder
    test: LabelledFolder

    @classmethod
    def read(cls, folder: Path, test_files: list[str]) -> ImageSet:
        """Read the set in a folder; ``test_files`` are relative to it."""
        everything = read_folder(folder)
        is_test = np.isin([path.relative_to(folder).as_posix() for path in everything.paths], test_files)
        if is_test.sum() != len(test_files):
            missing = len(test_files) - int(is_test.sum())
            raise SystemExit(f"{missing} of {len(test_files)} files of the test part are not in {folder}")
        return cls(name=folder.name, pool=everything.part(~is_test), test=everything.part(is_test))

    def n_labels(self, n_per_class: int) -> int:
        """Return how many images a draw labels at most."""
        return min(n_per_class * len(self.pool.schema.class_names), len(self.pool.paths))

    def draw(self, n_per_class: int, seed: int) -> Split:
        """Label the first images of each class in a random order of the pool.

        Where images may have several labels, so many are drawn per label, but from all images alike.
        """
        order = np.random.default_rng(seed).permutation(len(self.pool.paths))
        is_labelled = np.zeros(len(order), dtype=bool)
        if self.pool.schema.multiple:
            is_labelled[order[: self.n_labels(n_per_class)]] = True
        else:
            class_names = np.array([image.class_names[0] for image in self.pool.labelled])
            for class_name in self.pool.schema.class_names:
                is_labelled[order[class_names[order] == class_name][:n_per_class]] = True
        return Split(
            train=self.pool.part(is_labelled),
            pool=self.pool.part(~is_labelled).paths,
            test=self.test,
        )


def read_image_sets(images: Path, test_split: Path, names: list[str] | None) -> list[ImageSet]:
    """Read sets below a folder, of which a JSON file names the files of the test parts; all of them without names."""
    test_files: dict[str, list[str]] = json.loads(test_split.read_text(encoding="utf-8"))
    unknown = set(names or ()) - set(test_files)
    if unknown:
        raise SystemExit(f"{test_split.name} has no {', '.join(sorted(unknown))}: it has {', '.join(test_files)}")
    return [ImageSet.read(images / name, test_files[name]) for name in names or test_files]
