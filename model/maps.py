"""What the frozen stages of a network make of images: computed once, kept in a file, read again in every epoch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from model.batches import Batch

_FLOAT16_MAX = float(torch.finfo(torch.float16).max)


class StoredMaps:
    """Maps of images in a file without a name, which is gone with the process; use it in a ``with`` statement.

    They are float16, as stored features are: all that bfloat16 can tell, in half the room of float32. Append all, then
    read.

    Args:
        folder: where the file has room.
        targets: (n_sources, n_classes).
    """

    def __init__(self, folder: Path | None, targets: torch.Tensor) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._targets = targets
        self._shape: tuple[int, ...] = (1,)
        self._place: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, rows: Sequence[int], maps: torch.Tensor) -> None:
        """Store the maps of these rows (n_rows, *shape), of one shape for all rows there are.

        Raises:
            OSError: there is no room in the folder.
        """
        self._shape = tuple(maps.shape[1:])
        self._file.write(maps.clamp(-_FLOAT16_MAX, _FLOAT16_MAX).half().cpu().numpy().tobytes())
        self._place |= {row: place for place, row in enumerate(rows, start=len(self._place))}

    def batches(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield batches of rows, without those that have no map."""
        self._file.flush()
        shape = (len(self._place), *self._shape)
        maps = np.memmap(self._file, np.float16, mode="r", shape=shape) if self._place else np.empty(shape, np.float16)
        for rows in batches:
            known = [int(row) for row in rows if int(row) in self._place]
            inputs = torch.from_numpy(maps[[self._place[row] for row in known]])
            yield Batch(inputs=inputs, targets=self._targets[known])
