"""Who may come in, how often, and what browsers may do with what they get."""

from __future__ import annotations

import hmac
import math
import time

import structlog
from flask import Response, request
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from backend.errors import CrossSiteRequest, RateLimited, Unauthorized
from backend.settings import Settings

log = structlog.get_logger()

OPEN_PATHS = {"/", "/health", "/ready"}
FAILED_LOGINS = RateLimitItemPerMinute(10)
CHANGES = RateLimitItemPerMinute(120)
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""What OWASP's secure headers project recommends for answers that are no pages."""


class Access:
    """Lets in who may come in; counts in this process, by the address that a request comes from."""

    def __init__(self, settings: Settings, webhook_secret: str | None) -> None:
        self._user = settings.basic_auth_user
        self._password = settings.basic_auth_pass.get_secret_value() if settings.basic_auth_pass else None
        self._webhook_secret = webhook_secret
        self._requests = RateLimitItemPerMinute(settings.rate_limit_per_minute)
        self._counts = FixedWindowRateLimiter(MemoryStorage())

    def check(self) -> None:
        """Refuse the present request, or return.

        Raises:
            RateLimited: the client has sent too many of its kind.
            CrossSiteRequest: a page of somebody else made a browser send it.
            Unauthorized: the credentials are missing or wrong.
        """
        if request.path in OPEN_PATHS:
            return
        self._count(self._requests, "requests")
        if request.method not in SAFE_METHODS:
            self._refuse_other_sites()
        if request.path == "/webhook" and self._webhook_secret:
            self._let_in_webhooks(self._webhook_secret)
        elif self._user:
            self._let_in_users()
        if request.path.startswith("/api/") and request.method not in SAFE_METHODS:
            self._count(CHANGES, "changes")

    def _refuse_other_sites(self) -> None:
        """Refuse what a page elsewhere sends with the credentials that a browser keeps (fetch metadata, W3C)."""
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise CrossSiteRequest("a page of another site asked a browser for this: use Tandem's own address")

    def _let_in_webhooks(self, secret: str) -> None:
        """Label Studio sends events without a backend's Basic auth credentials, but with the webhook's own headers."""
        self._check_failures("webhook")
        if _same(request.headers.get("X-Webhook-Secret", ""), secret) or self._has_credentials():
            return
        log.warning("webhook refused: X-Webhook-Secret is missing or wrong; reconciliation repairs the webhook")
        self._fail("webhook", "the header X-Webhook-Secret is missing or wrong")

    def _let_in_users(self) -> None:
        self._check_failures("login")
        if not self._has_credentials():
            self._fail("login", "Basic auth is missing or wrong")

    def _has_credentials(self) -> bool:
        given = request.authorization
        if not self._user or not self._password or given is None or given.type != "basic":
            return False
        same_user = _same(given.username or "", self._user)
        return _same(given.password or "", self._password) and same_user

    def _check_failures(self, kind: str) -> None:
        """Refuse even the right credentials after too many wrong ones: else guessing would cost nothing."""
        if not self._counts.test(FAILED_LOGINS, kind, _client()):
            raise self._limited(FAILED_LOGINS, kind, "failed logins")

    def _fail(self, kind: str, message: str) -> None:
        # Nobody guesses without credentials: a first request without any is how a browser asks for them.
        if request.authorization or request.headers.get("X-Webhook-Secret"):
            self._counts.hit(FAILED_LOGINS, kind, _client())
        raise Unauthorized(message)

    def _count(self, limit: RateLimitItem, kind: str) -> None:
        if not self._counts.hit(limit, kind, _client()):
            raise self._limited(limit, kind, kind)

    def _limited(self, limit: RateLimitItem, kind: str, shown: str) -> RateLimited:
        reset_s = self._counts.get_window_stats(limit, kind, _client()).reset_time - time.time()
        log.warning("client sends too much", client=_client(), what=shown, limit=str(limit))
        return RateLimited(f"more than {limit.amount} {shown} a minute", retry_after_s=max(1, math.ceil(reset_s)))


def add_headers(response: Response) -> Response:
    """Add what browsers should know about every answer."""
    response.headers.extend(HEADERS)
    return response


def _client() -> str:
    return request.remote_addr or "unknown"


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())
