"""Questions to Label Studio about its connection with Tandem, for who looks for a fault: nothing is changed there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from backend.errors import LabelStudioRejected, LabelStudioUnavailable
from backend.label_studio.answers import (
    AccountPayload,
    BackendPayload,
    RefusalPayload,
    VersionPayload,
    parse_answer,
)
from backend.label_studio.connection import Answer, Call, Connection
from backend.label_studio.fields import parse_each
from backend.ports import ConnectedBackend, LabelStudioServer, UrlVerdict

TIMEOUT_S = 20.0
SHOWN_CHARACTERS = 200


class Inspection:
    """A ``LabelStudioInspector``, written against Label Studio 1.23.2."""

    def __init__(
        self, base_url: str, api_key: str, *, ca_file: str | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Connect to nothing yet.

        Raises:
            ConfigurationError: the API key cannot be one.
        """
        self._connection = Connection(base_url, api_key, timeout_s=timeout_s, pool_size=1, ca_file=ca_file)

    def close(self) -> None:
        """Close the connection that is kept open."""
        self._connection.close()

    @property
    def key_kind(self) -> str:
        """What kind of API key the settings give, in words."""
        return self._connection.key_kind

    def server(self) -> LabelStudioServer:
        """Return what is running there; no API key is needed for that."""
        answer = self._connection.exchange(Call(method="GET", path="/api/version"), authorized=False)
        version = parse_answer(VersionPayload, _read(answer)).release
        return LabelStudioServer(version=version, time=_read_date(answer.headers))

    def account(self) -> str:
        """Return whose API key it is: an e-mail address."""
        return parse_answer(AccountPayload, self._run("GET", "/api/current-user/whoami")).email

    def backends(self, project: int) -> list[ConnectedBackend]:
        """Return the backends of a project; listing them makes Label Studio call ``/health`` and ``/setup`` of each."""
        answer = self._run("GET", "/api/ml", query={"project": str(project)})
        return [
            ConnectedBackend(
                url=backend.url,
                title=backend.title or "",
                is_connected=backend.state == "CO",
                problem=_shown(backend.error_message or f"Label Studio shows it as {backend.readable_state}"),
            )
            for backend in parse_each(BackendPayload, answer if isinstance(answer, list) else [])
        ]

    def judge_backend_url(self, project: int, url: str) -> UrlVerdict:
        """Return whether Label Studio would connect a backend with this URL."""
        return self._judge("/api/ml", {"project": project, "url": url, "timeout": "this is no number"})

    def judge_webhook_url(self, project: int, url: str) -> UrlVerdict:
        """Return whether Label Studio would make a webhook with this URL."""
        return self._judge("/api/webhooks/", {"project": project, "url": url, "send_payload": "this is no flag"})

    def send_event(self, project: int) -> None:
        """Make Label Studio send an event about a project: it is saved with the title that it has."""
        path = f"/api/projects/{project}/"
        title = self._run("GET", path).get("title")
        self._run("PATCH", path, body={"title": title})

    def _judge(self, path: str, body: Mapping[str, object]) -> UrlVerdict:
        """Ask for what cannot be made, because another field is wrong: what is said of the URL is the verdict."""
        call = Call(method="POST", path=path, body=body, repeatable=False)
        answer = self._connection.exchange(call)
        refusal = parse_answer(RefusalPayload, _read(answer))
        if answer.status == 400 and refusal.validation_errors:
            return UrlVerdict.MALFORMED if "url" in refusal.validation_errors else UrlVerdict.ACCEPTED
        if "reserved network address" in refusal.detail:
            return UrlVerdict.BLOCKED
        if "resolve hostname" in refusal.detail:
            return UrlVerdict.UNRESOLVED
        raise LabelStudioRejected(f"Label Studio answered {call} with {answer.status}", status=answer.status)

    def _run(self, method: str, path: str, **options: Any) -> Any:
        return self._connection.run(Call(method=method, path=path, **options))


def _read(answer: Answer) -> Any:
    try:
        return json.loads(answer.content)
    except (ValueError, RecursionError):
        raise LabelStudioUnavailable(
            f"something answered with {answer.status}, but not with Label Studio's JSON: check that LABEL_STUDIO_URL "
            "is the address of Label Studio itself"
        ) from None


def _read_date(headers: Mapping[str, str]) -> datetime | None:
    try:
        return parsedate_to_datetime(headers.get("Date", "")).astimezone(UTC)
    except ValueError:
        return None


def _shown(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text[:SHOWN_CHARACTERS])
