"""Connections to public addresses only, within a deadline.

Whoever can write a task can make Tandem open a URL (server-side request forgery, OWASP A10:2021). So a host's addresses
are checked where the connection is made, and the connection goes to the very address that was checked: a name that
resolves to something else a moment later (DNS rebinding), an address in an odd notation or a redirect gain nothing.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import cache, partial
from types import TracebackType
from typing import Any, Self

import structlog
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.response import HTTPResponse

from backend.errors import ImageForbidden

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 5.0
CONNECTIONS_PER_HOST = 16

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_CLOUD_PLATFORMS = (ipaddress.IPv4Network("168.63.129.16/32"), ipaddress.IPv4Network("192.0.0.0/24"))
"""Addresses that look public, where Azure's and Oracle's hosts answer their guests, credentials included."""

Resolve = Callable[[str, int], list[tuple[Any, ...]]]
"""From host and port to what ``socket.getaddrinfo`` returns."""


def resolve_host(host: str, port: int) -> list[tuple[Any, ...]]:
    """Return all addresses of a host, as the system knows them."""
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Tell whether an address is a host on the internet: neither private, local, reserved nor a cloud's metadata.

    An IPv6 address that stands for an IPv4 address (mapped, RFC 4291; NAT64, RFC 6052; 6to4, RFC 3056) is as public as
    that.
    """
    if isinstance(address, ipaddress.IPv4Address):
        platform = any(address in network for network in _CLOUD_PLATFORMS)
        return address.is_global and not (address.is_multicast or address.is_reserved or platform)
    if address.ipv4_mapped:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address.sixtofour:
        return is_public(address.sixtofour)
    return address in _GLOBAL_UNICAST and address.is_global


class Deadline:
    """Ends what its thread does on guarded connections once the time is over, however slowly bytes drip in.

    A timeout of a socket starts anew with every byte; this one does not.
    """

    def __init__(self, timeout_s: float) -> None:
        self._at = time.monotonic() + timeout_s
        self._timer = threading.Timer(timeout_s, self._end)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._watched: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._token = _deadline.set(self)
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        _deadline.reset(self._token)
        with self._lock:
            for connection in self._watched:
                connection.close()
            self._watched.clear()

    @property
    def remaining_s(self) -> float:
        """The seconds left, never below zero."""
        return max(0.0, self._at - time.monotonic())

    def watch(self, connection: socket.socket) -> None:
        """End this connection, too, when the time is over."""
        # A duplicate outlives what becomes of the original, which TLS takes the file descriptor from.
        duplicate = socket.socket(fileno=os.dup(connection.fileno()))
        with self._lock:
            self._watched.append(duplicate)
        if not self.remaining_s:
            self._end()

    def _end(self) -> None:
        with self._lock:
            for connection in self._watched:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # the other side was faster


_deadline: ContextVar[Deadline] = ContextVar("deadline")


class AddressGuard:
    """Connects to hosts with public addresses only, and to trusted hosts wherever they are.

    Args:
        trusted_hosts: as ``host`` or ``host:port``, in lower case; IPv6 addresses with a port in brackets.
        resolve: how host names become addresses.
    """

    def __init__(self, trusted_hosts: Iterable[str], resolve: Resolve = resolve_host) -> None:
        self._trusted_hosts = frozenset(map(_without_root, trusted_hosts))
        self._resolve = resolve

    def connect(self, host: str, port: int, timeout_s: float) -> socket.socket:
        """Return a connection to one of the host's addresses, all of which were checked.

        Raises:
            ImageForbidden: one of them is not public, and the host is not trusted.
            OSError: there is no address, or none answers.
        """
        addresses = self._resolve(host, port)
        if not self._trusts(host, port):
            for *_, address in addresses:
                if not is_public(ipaddress.ip_address(address[0])):
                    log.warning("address refused", host=host, port=port, address=address[0])
                    raise ImageForbidden(
                        f"{host} is not at a public address: if images may come from there, add {host} to IMAGE_HOSTS; "
                        "if it is Label Studio, set LABEL_STUDIO_URL to this very scheme, host and port"
                    )
        failure = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in addresses:
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(min(timeout_s, max(0.001, _deadline.get().remaining_s)))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.connect(address)
            except OSError as error:
                connection.close()
                failure = error
            else:
                return connection
        raise failure

    def _trusts(self, host: str, port: int) -> bool:
        name = _without_root(host.lower())
        return name in self._trusted_hosts or f"{name}:{port}" in self._trusted_hosts


def _without_root(host: str) -> str:
    """Return ``host`` or ``host:port`` without the dot that may end a complete name; an IPv6 address in brackets."""
    if host.count(":") > 1:
        return host if host.startswith("[") else f"[{host}]"
    name, colon, port = host.partition(":")
    return name.rstrip(".") + colon + port


class _GuardedConnection(HTTPConnection):
    def __init__(self, *args: Any, guard: AddressGuard, **options: Any) -> None:
        super().__init__(*args, **options)
        self._guard = guard

    def _new_conn(self) -> socket.socket:
        try:
            connection = self._guard.connect(self._dns_host, self.port, CONNECT_TIMEOUT_S)
        except (socket.gaierror, UnicodeError) as error:
            raise NameResolutionError(self.host, self, socket.gaierror(*error.args[:2])) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"connection to {self.host} timed out") from error
        except OSError as error:
            raise NewConnectionError(self, f"connection to {self.host} failed: {error}") from error
        _deadline.get().watch(connection)
        return connection

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # urllib3's own class is no http.client one
        if self.sock is not None:  # perhaps made for an earlier request
            _deadline.get().watch(self.sock)
        return super().getresponse()


class _GuardedTlsConnection(_GuardedConnection, HTTPSConnection):
    pass


class _GuardedPool(HTTPConnectionPool):
    ConnectionCls = _GuardedConnection


class _GuardedTlsPool(HTTPSConnectionPool):
    ConnectionCls = _GuardedTlsConnection


def guarded_connections(guard: AddressGuard, ca_file: str | None = None) -> PoolManager:
    """Return connections that are kept open between requests and made by a guard, in a ``with Deadline`` only.

    They know no proxy, cookie or password of the environment.
    """

    @cache
    def tls() -> ssl.SSLContext:
        # seven megabytes of certificates in each process, which many a one never needs
        return ssl.create_default_context(cafile=ca_file or DEFAULT_CA_BUNDLE_PATH)

    connections = PoolManager(num_pools=32, maxsize=CONNECTIONS_PER_HOST)
    connections.pool_classes_by_scheme = {  # functions, called like classes
        "http": partial(_GuardedPool, guard=guard),  # type: ignore[dict-item]
        "https": lambda *args, **options: _GuardedTlsPool(*args, guard=guard, ssl_context=tls(), **options),  # type: ignore[dict-item]
    }
    return connections
