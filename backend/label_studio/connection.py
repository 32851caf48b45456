"""Authenticated HTTP to one Label Studio: retries, limits, and errors in plain words."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import structlog
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.exceptions import NewConnectionError

from backend.errors import LabelStudioRejected, LabelStudioUnauthorized, LabelStudioUnavailable
from backend.label_studio.credentials import PERSONAL_REFUSED, make_credentials

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 5.0
MAX_ATTEMPTS = 4
FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
MAX_ANSWER_BYTES = 128 * 2**20
TOO_LARGE = 413
PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Seconds of silence before the first question to the other machine, between questions, and their number, on Linux."""
KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in PROBES.items() if hasattr(socket, name)),
)
"""Label Studio is silent for minutes while it deletes much, and so is a machine that died: within one it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to the API.

    ``path`` is below the base URL; ``body`` is sent as JSON. A ``repeatable`` call does no harm when it is done twice:
    any other is sent again only when it never arrived. ``patience`` is a factor on the time to wait for the answer.
    """

    method: str
    path: str
    query: Mapping[str, str] | None = None
    body: object = None
    repeatable: bool = True
    patience: float = 1.0

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back, whatever its status; nothing of it may be shown to anybody unread."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class _TryAgain(LabelStudioUnavailable):
    """A failure that may pass by itself."""

    def __init__(self, message: str, *, delay_s: float = 0.0) -> None:
        super().__init__(message)
        self.delay_s = delay_s


class _KeepAlive(HTTPAdapter):
    """Notices while it waits for an answer that the machine that owes it is gone."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        socket_options = [*HTTPConnection.default_socket_options, *KEEP_ALIVE]
        super().init_poolmanager(*arguments, **options, socket_options=socket_options)


class Connection:
    """Calls to the API of one Label Studio; safe for threads.

    Proxy and netrc settings of the environment are ignored, cookies refused (with its session cookie Label Studio asks
    for CSRF tokens), and redirects never followed: the API key goes to this one place.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        timeout_s: float,
        pool_size: int,
        ca_file: str | None = None,
        first_delay_s: float = FIRST_DELAY_S,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._first_delay_s = first_delay_s
        self._max_answer_bytes = max_answer_bytes
        self._credentials = make_credentials(api_key, self._exchange)
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = ca_file or True
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = _KeepAlive(pool_connections=1, pool_maxsize=pool_size)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._session.close()

    @property
    def key_kind(self) -> str:
        """What kind of API key it is, in words."""
        return self._credentials.kind

    def authorization(self) -> dict[str, str]:
        """Return the header that authorizes a request right now.

        Raises:
            LabelStudioError: a personal access token could not be exchanged.
        """
        return {"Authorization": self._credentials.authorization()}

    def run(self, call: Call) -> Any:
        """Make a call and return the JSON of the answer, ``None`` for an empty one.

        Raises:
            LabelStudioUnavailable: no answer, a 5xx or too many requests, after some tries.
            LabelStudioUnauthorized: the API key is refused.
            LabelStudioRejected: any other refusal, a redirect, an answer that is too large or not JSON.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return self._read(call, self._send_authorized(call))
            except _TryAgain as failure:
                if attempt == MAX_ATTEMPTS or failure.delay_s > MAX_DELAY_S:
                    raise
                log.info("call to Label Studio failed, trying again", attempt=attempt, problem=str(failure))
                time.sleep(max(failure.delay_s, self._first_delay_s * 2 ** (attempt - 1)))
        raise AssertionError("the last attempt returns or raises")

    def exchange(self, call: Call, *, authorized: bool = True) -> Answer:
        """Make a call once and return the answer, also one that is a refusal.

        Raises:
            LabelStudioUnavailable: no answer.
            LabelStudioUnauthorized: the API key is refused.
        """
        return self._send_authorized(call) if authorized else self._send(call, {})

    def _send_authorized(self, call: Call) -> Answer:
        authorization = self._credentials.authorization()
        answer = self._send(call, {"Authorization": authorization})
        if answer.status == 401 and self._credentials.renew(authorization):
            answer = self._send(call, self.authorization())
        if answer.status == 401:
            raise LabelStudioUnauthorized(self._credentials.explain_refusal(answer.content))
        return answer

    def _send(self, call: Call, headers: Mapping[str, str]) -> Answer:
        try:
            with self._session.request(
                call.method,
                self.base_url + call.path,
                params=call.query,
                json=call.body,
                headers=headers,
                timeout=(CONNECT_TIMEOUT_S, self._timeout_s * call.patience),
                allow_redirects=False,
                stream=True,
            ) as response:
                return Answer(status=response.status_code, headers=response.headers, content=self._load(response))
        except requests.RequestException as error:
            problem = f"Label Studio at {self.base_url} {_describe(error)} ({call})"
            if call.repeatable or _never_arrived(error):
                raise _TryAgain(problem) from None
            raise LabelStudioUnavailable(problem) from None

    def _load(self, response: requests.Response) -> bytes:
        content = bytearray()
        for chunk in response.iter_content(2**16):
            content += chunk
            if len(content) > self._max_answer_bytes:
                raise LabelStudioRejected(
                    f"Label Studio's answer has more than {self._max_answer_bytes} bytes: ask for less at a time",
                    status=TOO_LARGE,
                )
        return bytes(content)

    def _read(self, call: Call, answer: Answer) -> Any:
        problem = f"Label Studio at {self.base_url} answered {call} with {answer.status}"
        if answer.status == 429:
            retry_after = answer.headers.get("Retry-After", "")
            raise _TryAgain(problem, delay_s=float(retry_after) if retry_after.isdecimal() else 0.0)
        if answer.status >= 500:
            raise _TryAgain(problem) if call.repeatable else LabelStudioUnavailable(problem)
        if answer.status >= 400:
            raise LabelStudioRejected(problem, status=answer.status)
        if answer.status >= 300:
            target = urlsplit(urljoin(self.base_url, answer.headers.get("Location", "")))
            raise LabelStudioRejected(
                f"{problem}, a redirect to {target.scheme}://{target.hostname}: set LABEL_STUDIO_URL to where Label "
                "Studio really is",
                status=answer.status,
            )
        try:
            return json.loads(answer.content) if answer.content else None
        except (ValueError, RecursionError):
            raise LabelStudioRejected(
                f"{problem}, but not with JSON: check that LABEL_STUDIO_URL is the address of Label Studio itself",
                status=answer.status,
            ) from None

    def _exchange(self, personal_access_token: str) -> str:
        """Return a new access token; only one try, because ``run`` tries again."""
        call = Call(method="POST", path="/api/token/refresh", body={"refresh": personal_access_token})
        answer = self._send(call, {})
        if answer.status == 401:
            raise LabelStudioUnauthorized(PERSONAL_REFUSED)
        access_token = (self._read(call, answer) or {}).get("access")
        if not isinstance(access_token, str) or not access_token.isascii():
            raise LabelStudioRejected(
                f"Label Studio at {self.base_url} gave no access token for the personal access token",
                status=answer.status,
            )
        return access_token


def _describe(error: requests.RequestException) -> str:
    """Return what happened, without what was sent or received."""
    if isinstance(error, requests.exceptions.SSLError):
        return (
            "has a TLS certificate that is not accepted: name a file with its authority's certificate in "
            "REQUESTS_CA_BUNDLE"
        )
    if isinstance(error, requests.Timeout):
        return "did not answer in time"
    if _never_arrived(error):
        return "cannot be reached: check LABEL_STUDIO_URL, and that it is up"
    return f"broke off ({type(error).__name__})"


def _never_arrived(error: requests.RequestException) -> bool:
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, NewConnectionError)
