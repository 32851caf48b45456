"""What the web server is told to listen on."""

from __future__ import annotations

from itertools import pairwise

import pytest
from gunicorn.util import parse_address  # type: ignore[import-untyped]

from backend.commands.servers import web_arguments
from backend.settings import Settings


@pytest.mark.parametrize("host", ["0.0.0.0", "localhost", "::", "::1", "[::1]"])
def test_both_ports_are_listened_on_at_any_kind_of_address(host: str) -> None:
    settings = Settings(host=host, port=9090, metrics_host=host, metrics_port=9100)
    arguments = web_arguments(settings)
    bound = [value for option, value in pairwise(arguments) if option == "--bind"]
    address = host.strip("[]")
    assert [parse_address(each) for each in bound] == [(address, 9090), (address, 9100)]
