"""Files below one folder, and nothing outside it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

import structlog

from backend.errors import ImageForbidden

log = structlog.get_logger()

REFUSALS = {
    errno.ELOOP: "a path through a symbolic link is not opened",
    errno.EACCES: "the user that Tandem runs as may not read this file",
    errno.ENXIO: "this is not a file",
}


def open_below(root: Path, path: str) -> BinaryIO | None:
    """Open a regular file below a folder for reading, ``None`` when it is not there.

    Each part of the path is opened relative to the one before, without following links: neither ``..`` nor a link,
    not even one made a moment ago, leads out of the folder.

    Raises:
        ImageForbidden: the path leads through a link, to something other than a file or out of the folder.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise ImageForbidden("a path that leads out of the local files is not opened")
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        log.warning("the folder of local files cannot be opened", folder=str(root), reason=error.strerror)
        return None
    try:
        for part in parts:
            # Without O_NONBLOCK a named pipe would be waited for.
            child = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = child
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ImageForbidden("this is not a file")
        return os.fdopen(os.dup(descriptor), "rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        if error.errno in REFUSALS:
            raise ImageForbidden(REFUSALS[error.errno]) from None
        raise
    finally:
        os.close(descriptor)
