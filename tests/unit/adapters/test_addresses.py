"""Which addresses are public, and that a connection goes to the address that was checked."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time

import pytest

from backend.adapters.addresses import AddressGuard, Deadline, is_public
from backend.errors import ImageForbidden
from tests.fakes import resolver

PUBLIC = "93.184.216.34"


@pytest.mark.parametrize(
    "address", [PUBLIC, "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"]
)
def test_hosts_on_the_internet_are_public(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.8.8.8",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.192",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::10.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a00:1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a00:1::",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_all_others_are_not(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0177.0.0.1", "0x7f.1", "0x7f000001", "127.1", "0", "localhost", "::1"]
)
def test_loopback_is_refused_in_every_notation(host):
    with Deadline(5), pytest.raises(ImageForbidden, match="not at a public address"):
        AddressGuard(()).connect(host, 80, 1)


def test_one_private_address_among_public_ones_is_enough():
    with Deadline(5), pytest.raises(ImageForbidden):
        AddressGuard((), resolver(PUBLIC, "10.0.0.1")).connect("images.example", 80, 1)


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch):
    """DNS rebinding: the second answer would be loopback, but nobody asks a second time."""
    answers = [resolver(PUBLIC), resolver("127.0.0.1")]
    connected = []

    class RecordingSocket(socket.socket):
        def connect(self, address):
            connected.append(address)

    monkeypatch.setattr(socket, "socket", RecordingSocket)
    guard = AddressGuard((), lambda host, port: answers.pop(0)(host, port))
    with Deadline(5):
        guard.connect("rebinding.example", 8080, 1).close()
    assert connected == [(PUBLIC, 8080)]
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("host", "port", "trusted"),
    [
        ("minio.internal", 9000, True),
        ("MinIO.internal.", 1, True),
        ("minio.cluster", 1, True),
        ("bucket.cluster.", 9000, True),
        ("store", 9000, True),
        ("store", 9001, False),
        ("x.minio.internal", 9000, False),
        ("internal", 9000, False),
        ("::1", 80, True),
        ("fd00::5", 80, True),
        ("fd00::6", 9000, True),
        ("fd00::6", 80, False),
    ],
)
def test_trusted_hosts_may_be_anywhere(host, port, trusted):
    listener = socket.create_server(("127.0.0.1", 0))

    def resolve(host, _port):
        return resolver("127.0.0.1")(host, listener.getsockname()[1])

    trusting = (
        "minio.internal",
        "store:9000",
        "minio.cluster.",
        "bucket.cluster.:9000",
        "[::1]",
        "fd00::5",
        "[fd00::6]:9000",
    )
    guard = AddressGuard(trusting, resolve)
    with listener, Deadline(5):
        if trusted:
            guard.connect(host, port, 1).close()
        else:
            with pytest.raises(ImageForbidden):
                guard.connect(host, port, 1)


def test_the_next_address_is_tried_when_one_does_not_resolver():
    listener = socket.create_server(("127.0.0.1", 0))

    def resolve(host, port):
        port = listener.getsockname()[1]
        return [*resolver("127.0.0.2")(host, port), *resolver("127.0.0.1")(host, port)]

    with listener, Deadline(5):
        AddressGuard(("store",), resolve).connect("store", 80, 1).close()


def test_a_host_without_an_address():
    with Deadline(5), pytest.raises(OSError, match="has no address"):
        AddressGuard((), resolver()).connect("images.example", 80, 1)


def test_a_deadline_ends_what_it_watches():
    ours, theirs = socket.socketpair()
    start = time.monotonic()
    with ours, theirs, Deadline(0.1) as deadline:
        deadline.watch(ours)
        assert ours.recv(1) == b""
        assert deadline.remaining_s == 0
    assert 0.05 < time.monotonic() - start < 5


def test_a_deadline_that_has_passed_ends_what_it_is_given():
    ours, theirs = socket.socketpair()
    with ours, theirs, Deadline(0) as deadline:
        time.sleep(0.01)
        deadline.watch(ours)
        assert ours.recv(1) == b""


def test_a_deadline_leaves_a_connection_alone_after_its_block():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with Deadline(0.05) as deadline:
            deadline.watch(ours)
        time.sleep(0.1)
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"
        assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
