"""Files below a folder: nothing leads out of it."""

from __future__ import annotations

import os
import socket

import pytest

from backend.adapters.local_files import open_below
from backend.errors import ImageForbidden


@pytest.fixture
def root(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "c.png").write_bytes(b"image")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder-link").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "socket"))
    return root


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    assert open_below(tmp_path / "unmounted", "a/b/c.png") is None


@pytest.mark.parametrize("path", ["a/b/c.png", "/a/b/c.png", "a//b/./c.png"])
def test_a_file_below_is_opened(root, path):
    with open_below(root, path) as file:
        assert file.read() == b"image"


@pytest.mark.parametrize("path", ["a/x.png", "a/b/c.png/d", "/etc/passwd", "a/" + "x" * 256])
def test_a_file_that_is_not_there(root, path):
    assert open_below(root, path) is None


@pytest.mark.parametrize(
    "path",
    [
        *("../secret", "a/../../secret", "a/..", "link", "folder-link/secret", "pipe", "socket", "a", ""),
        *("a/b/c.png\0", "a/b/.."),
    ],
)
def test_nothing_leads_out(root, path):
    with pytest.raises(ImageForbidden):
        open_below(root, path)
