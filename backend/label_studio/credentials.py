"""The two kinds of API key that Label Studio has, told apart by their form."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from typing import ClassVar, Protocol

from backend.errors import ConfigurationError

RENEWAL_MARGIN_S = 30.0
UNKNOWN_LIFETIME_S = 60.0

PERSONAL_REFUSED = (
    "LABEL_STUDIO_API_KEY is a personal access token that this Label Studio does not accept: it is revoked, expired or "
    "from another server. Make a new one in Label Studio under Account & Settings > Personal Access Token"
)
LEGACY_SWITCHED_OFF = (
    "LABEL_STUDIO_API_KEY is a legacy token, and legacy tokens are switched off in this Label Studio organization. Use "
    "a personal access token (Account & Settings > Personal Access Token), or have an administrator switch legacy "
    "tokens on under Organization > Access Token Settings"
)
LEGACY_REFUSED = (
    "LABEL_STUDIO_API_KEY is a legacy token that this Label Studio does not know. Copy the right one from Account & "
    "Settings > Legacy Token, or use a personal access token"
)


class Credentials(Protocol):
    """How requests are authorized; ``kind`` says with what, in words."""

    kind: ClassVar[str]

    def authorization(self) -> str:
        """Return the value of the header ``Authorization``."""

    def renew(self, refused: str) -> bool:
        """Tell whether there is another value than the refused one to try."""

    def explain_refusal(self, answer: bytes) -> str:
        """Return what is wrong with the API key and what to do."""


class LegacyToken:
    """A token that is sent as it is."""

    kind: ClassVar[str] = "legacy token"

    def __init__(self, api_key: str) -> None:
        self._api_key = api_key

    def authorization(self) -> str:
        """Return the value of the header ``Authorization``."""
        return f"Token {self._api_key}"

    def renew(self, refused: str) -> bool:  # noqa: ARG002 - there is only the one
        """Tell that there is no other value."""
        return False

    def explain_refusal(self, answer: bytes) -> str:
        """Return whether the token is unknown or its kind is switched off."""
        return LEGACY_SWITCHED_OFF if b"legacy token" in answer else LEGACY_REFUSED


class PersonalAccessToken:
    """A refresh token in the form of a JWT, exchanged for access tokens that live some minutes.

    Threads that need a new access token at the same time make one exchange: the others wait for it.
    """

    kind: ClassVar[str] = "personal access token"

    def __init__(self, api_key: str, exchange: Callable[[str], str]) -> None:
        self._api_key = api_key
        self._exchange = exchange
        self._lock = threading.Lock()
        self._access = ""
        self._renew_at = 0.0

    def authorization(self) -> str:
        """Return the value of the header ``Authorization``, with an access token that is good for a while yet."""
        with self._lock:
            if not self._access or time.monotonic() >= self._renew_at:
                self._renew()
            return f"Bearer {self._access}"

    def renew(self, refused: str) -> bool:
        """Get a new access token, unless another thread has done so since the refused one was sent."""
        with self._lock:
            if refused == f"Bearer {self._access}":
                self._renew()
        return True

    def explain_refusal(self, answer: bytes) -> str:  # noqa: ARG002 - it tells nothing more
        """Return that the token is refused."""
        return PERSONAL_REFUSED

    def _renew(self) -> None:
        self._access = self._exchange(self._api_key)
        lifetime_s = _lifetime_s(self._access)
        self._renew_at = time.monotonic() + max(lifetime_s - RENEWAL_MARGIN_S, lifetime_s / 2)


def _lifetime_s(access_token: str) -> float:
    """Return how long a JWT is good from its issue on, in seconds; the two clocks need not agree (RFC 7519, 4.1)."""
    try:
        payload = access_token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return max(0.0, float(claims["exp"]) - float(claims["iat"]))
    except (ValueError, LookupError, TypeError):
        return UNKNOWN_LIFETIME_S


def make_credentials(api_key: str, exchange: Callable[[str], str]) -> Credentials:
    """Return credentials of the kind that an API key is: a personal access token is a JWT, which has two dots.

    Args:
        api_key: as the settings give it.
        exchange: returns a new access token for a personal access token.

    Raises:
        ConfigurationError: the key is neither kind.
    """
    api_key = api_key.strip()
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ConfigurationError("LABEL_STUDIO_API_KEY is empty or holds characters that no token has: copy it again")
    return PersonalAccessToken(api_key, exchange) if api_key.count(".") == 2 else LegacyToken(api_key)
