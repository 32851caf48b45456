"""A real S3-compatible server on the loopback address, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

START_TIMEOUT_S = 120.0


class S3Server:
    """moto's server; ``environment`` holds the usual variables by which a client finds it and its credentials."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "s3.log"
        self._numbers = count(1)
        credentials = folder / "credentials"
        credentials.write_text("[default]\naws_access_key_id = tandem\naws_secret_access_key = only for this server\n")
        self.environment = {
            "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def __enter__(self) -> Self:
        outside = os.environ  # noqa: TID251 - handed on to a child
        environment = {name: value for name, value in outside.items() if not name.startswith("AWS_")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.environment["AWS_ENDPOINT_URL"] = self._address()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(10)

    def new_bucket(self) -> str:
        """Make an empty bucket and return its name."""
        name = f"bucket-{next(self._numbers)}"
        requests.put(f"{self.environment['AWS_ENDPOINT_URL']}/{name}", timeout=30).raise_for_status()
        return name

    def _address(self) -> str:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            log = self._log.read_text()
            assert self._process.poll() is None, log
            if found := re.search(r"http://127\.0\.0\.1:\d+", log):
                return found[0]
            time.sleep(0.1)
        raise AssertionError(f"moto's server does not start: {self._log.read_text()}")
