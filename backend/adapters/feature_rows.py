"""One generation of a backbone's feature rows: which files they are in, and what a process sees of them."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.adapters.durable import write_whole
from backend.adapters.feature_keys import KEY_BYTES, KeyIndex, Keys
from backend.errors import ConfigurationError, StoreUnavailable

FORMAT_VERSION = 2
HEADER_FILE = "features.json"

Features = NDArray[np.float16]
_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Which files count, and from how many columns of which block of the backbone a row is put together."""

    folder: Path
    suffix: str
    block_sizes: tuple[int, ...]

    @classmethod
    def new(cls, folder: Path, block_sizes: tuple[int, ...]) -> Generation:
        """Return a generation whose files have names that were never used before."""
        return cls(folder=folder, suffix=f"-{secrets.token_hex(8)}", block_sizes=block_sizes)

    @classmethod
    def read(cls, header_path: Path) -> Generation:
        """Read which generation counts.

        Raises:
            FileNotFoundError: none.
            ConfigurationError: the files have another format.
            StoreUnavailable: the file was damaged.
        """
        content = header_path.read_bytes()
        try:
            header = json.loads(content)
            block_sizes = tuple(int(size) for size in header["block_sizes"])
            suffix = str(header.get("suffix", ""))  # version 1 knew one generation only, and no suffix
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise StoreUnavailable(
                f"{header_path} is damaged: delete its folder, and the images are embedded again"
            ) from error
        if header.get("format_version") not in (1, FORMAT_VERSION):
            raise ConfigurationError(
                f"{header_path} has format version {header.get('format_version')}, this Tandem knows {FORMAT_VERSION}: "
                "run the Tandem that wrote it, or delete the folder and the images are embedded again"
            )
        return cls(folder=header_path.parent, suffix=suffix, block_sizes=block_sizes)

    def make_current(self) -> None:
        """Make this the generation that counts; its files are on the disk already."""
        header = {"format_version": FORMAT_VERSION, "suffix": self.suffix, "block_sizes": self.block_sizes}
        write_whole(self.folder / HEADER_FILE, json.dumps(header).encode())

    @property
    def rows_path(self) -> Path:
        """Where the features are."""
        return self.folder / f"rows{self.suffix}.f16"

    @property
    def keys_path(self) -> Path:
        """Where the keys are."""
        return self.folder / f"keys{self.suffix}.bin"

    @property
    def row_bytes(self) -> int:
        """How long a row is."""
        return sum(self.block_sizes) * np.dtype(np.float16).itemsize


class MappedRows:
    """The rows of one generation up to those that were there at the last look."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.features: Features = np.empty((0, sum(generation.block_sizes)), np.float16)
        self.keys: Keys = np.empty((0, KEY_BYTES), np.uint8)
        self._index = KeyIndex()

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.keys)

    def find(self, wanted: Keys) -> NDArray[np.int64]:
        """Return the row number of each wanted key, shape (n_wanted,), -1 where there is none."""
        return self._index.find(wanted, self.keys)

    def extend(self) -> None:
        """Take in the rows appended since.

        Raises:
            FileNotFoundError: the files are gone.
        """
        generation = self.generation
        # A row is complete when both files have it: after a power failure either may be the longer one.
        n_keys = generation.keys_path.stat().st_size // KEY_BYTES
        n_rows = min(n_keys, generation.rows_path.stat().st_size // generation.row_bytes)
        if n_rows == self.count:
            return
        self.features = _map(generation.rows_path, np.float16, (n_rows, sum(generation.block_sizes)))
        self.keys = _map(generation.keys_path, np.uint8, (n_rows, KEY_BYTES))
        self._index.extend(self.keys)


def _map(path: Path, dtype: type[_Number], shape: tuple[int, int]) -> NDArray[_Number]:
    """Return a read-only view of the first rows of a file, of which there may be none."""
    if shape[0] == 0:
        return np.empty(shape, dtype)
    return np.asarray(np.memmap(path, dtype, "r", shape=shape))
