"""Who may come in, how often, and what browsers may do with what they get."""

from __future__ import annotations

import hmac
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from backend.errors import CrossSiteRequest, RateLimited, Unauthorized
from backend.settings import Settings

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from werkzeug import Request

log = structlog.get_logger()

OPEN_PATHS = {"/", "/health", "/ready"}
WINDOW_S = 60.0
FAILED_LOGINS = 10
"""In a window of a minute."""
CHANGES = 120
"""In a window of a minute."""
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
]
"""What OWASP's secure headers project recommends for answers that are no pages."""


@dataclass(slots=True)
class Window:
    """How often something happened in the minute from ``began_s`` on, on the monotonic clock."""

    began_s: float
    n_times: int = 0

    @property
    def remaining_s(self) -> float:
        """How long it goes on."""
        return self.began_s + WINDOW_S - time.monotonic()


class Counts:
    """How often each client did something in its present minute.

    By hand, because every request is counted: the library for it starts a thread a hundred times a second to forget.
    """

    def __init__(self, max_windows: int = 10_000) -> None:
        self._windows: dict[tuple[str, str], Window] = {}
        self._max_windows = max_windows
        self._lock = threading.Lock()

    def window(self, kind: str, client: str) -> Window:
        """Return the present window of a client."""
        with self._lock:
            return self._window((kind, client))

    def add(self, kind: str, client: str) -> int:
        """Count once more, and return how often by now."""
        with self._lock:
            window = self._window((kind, client))
            window.n_times += 1
            return window.n_times

    def _window(self, key: tuple[str, str]) -> Window:
        window = self._windows.get(key)
        if window is None or window.remaining_s <= 0:
            if len(self._windows) >= self._max_windows:
                self._windows = {key: each for key, each in self._windows.items() if each.remaining_s > 0}
            window = self._windows[key] = Window(began_s=time.monotonic())
        return window


class Access:
    """Lets in who may come in; counts in this process, by the address that a request comes from."""

    def __init__(self, settings: Settings, webhook_secret: str | None) -> None:
        self._user = settings.basic_auth_user
        self._password = settings.basic_auth_pass.get_secret_value() if settings.basic_auth_pass else None
        self._webhook_secret = webhook_secret
        self._max_requests = settings.rate_limit_per_minute
        self._counts = Counts()

    def check(self, asked: Request) -> None:
        """Refuse a request, or return.

        Raises:
            RateLimited: the client has sent too many of its kind.
            CrossSiteRequest: a page of somebody else made a browser send it.
            Unauthorized: the credentials are missing or wrong.
        """
        if asked.path in OPEN_PATHS:
            return
        self._count(asked, self._max_requests, "requests")
        if asked.method not in SAFE_METHODS:
            self._refuse_other_sites(asked)
        if asked.path == "/webhook" and self._webhook_secret:
            self._let_in_webhooks(asked, self._webhook_secret)
        elif self._user:
            self._let_in_users(asked)
        if asked.path.startswith("/api/") and asked.method not in SAFE_METHODS:
            self._count(asked, CHANGES, "changes")

    def _refuse_other_sites(self, asked: Request) -> None:
        """Refuse what a page elsewhere sends with the credentials that a browser keeps (fetch metadata, W3C)."""
        if asked.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise CrossSiteRequest("a page of another site asked a browser for this: use Tandem's own address")

    def _let_in_webhooks(self, asked: Request, secret: str) -> None:
        """Label Studio sends events without a backend's Basic auth credentials, but with the webhook's own headers."""
        self._check_failures(asked, "webhook")
        if _same(asked.headers.get("X-Webhook-Secret", ""), secret) or self._has_credentials(asked):
            return
        log.warning("webhook refused: X-Webhook-Secret is missing or wrong; reconciliation repairs the webhook")
        self._fail(asked, "webhook", "the header X-Webhook-Secret is missing or wrong")

    def _let_in_users(self, asked: Request) -> None:
        self._check_failures(asked, "login")
        if not self._has_credentials(asked):
            self._fail(asked, "login", "Basic auth is missing or wrong")

    def _has_credentials(self, asked: Request) -> bool:
        given = asked.authorization
        if not self._user or not self._password or given is None or given.type != "basic":
            return False
        same_user = _same(given.username or "", self._user)
        return _same(given.password or "", self._password) and same_user

    def _check_failures(self, asked: Request, kind: str) -> None:
        """Refuse even the right credentials after too many wrong ones: else guessing would cost nothing."""
        if self._counts.window(kind, _client(asked)).n_times >= FAILED_LOGINS:
            raise self._limited(asked, FAILED_LOGINS, kind, "failed logins")

    def _fail(self, asked: Request, kind: str, message: str) -> None:
        # Nobody guesses without credentials: a first request without any is how a browser asks for them.
        if asked.authorization or asked.headers.get("X-Webhook-Secret"):
            self._counts.add(kind, _client(asked))
        raise Unauthorized(message)

    def _count(self, asked: Request, limit: int, kind: str) -> None:
        if self._counts.add(kind, _client(asked)) > limit:
            raise self._limited(asked, limit, kind, kind)

    def _limited(self, asked: Request, limit: int, kind: str, shown: str) -> RateLimited:
        remaining_s = self._counts.window(kind, _client(asked)).remaining_s
        log.warning("client sends too much", client=_client(asked), what=shown, limit_per_minute=limit)
        return RateLimited(f"more than {limit} {shown} a minute", retry_after_s=max(1, math.ceil(remaining_s)))


class Guarded:
    """Tells browsers with every answer of an application what they may do with it."""

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
            return start_response(status, headers + HEADERS, *error)

        return self._application(environ, start)


def _client(asked: Request) -> str:
    return asked.remote_addr or "unknown"


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())
