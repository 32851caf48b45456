"""The gateway to Label Studio's API, as the services need it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import structlog

from backend.domain import AnnotatedTask, LabelSchema, ProjectSnapshot, Sampling, Suggestion, TaskView, Webhook
from backend.errors import LabelStudioRejected
from backend.label_studio.answers import (
    BackendPayload,
    ImportPayload,
    ModelVersionsPayload,
    ProjectPage,
    TaskPage,
    WebhookPayload,
    parse_answer,
)
from backend.label_studio.codecs import decode_task, encode_predictions
from backend.label_studio.connection import FIRST_DELAY_S, MAX_ANSWER_BYTES, TOO_LARGE, Call, Connection
from backend.label_studio.fields import parse_each
from backend.label_studio.payloads import SAMPLINGS, ProjectPayload, decode_annotations
from backend.label_studio.views import DataManager

log = structlog.get_logger()

SECRET_HEADER = "X-Webhook-Secret"  # noqa: S105 - the name of a header
PROJECTS_PER_PAGE = 100
TASKS_PER_PAGE = 200
PREDICTIONS_PER_IMPORT = 500
MAX_REFUSED_IMPORTS = 50
AS_IT_SHOULD_BE = {"is_active": True, "send_payload": True, "send_for_all_actions": True}
SLOW, VERY_SLOW = 4.0, 20.0
"""Patience with calls that keep Label Studio busy: it deletes some hundred predictions in a second."""


class LabelStudioClient:
    """Label Studio's API, as a ``LabelStudioGateway``; safe for threads.

    Written against Label Studio 1.23.2. The API key may be a legacy token or a personal access token; what it may see
    and change is what its user may.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        webhook_secret: str | None,
        *,
        timeout_s: float = 30.0,
        pool_size: int = 16,
        ca_file: str | None = None,
        first_delay_s: float = FIRST_DELAY_S,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        """Connect to nothing yet.

        Args:
            base_url: where Label Studio is, with its path when it is installed below one.
            api_key: legacy token or personal access token.
            webhook_secret: what webhooks should send us in ``X-Webhook-Secret``, if anything.
            timeout_s: longest silence of Label Studio.
            pool_size: how many connections are kept open, best one for each thread.
            ca_file: certificates of the authorities to trust, in PEM; those of ``certifi`` without it.
            first_delay_s: before the second try of a failed call; it doubles from try to try.
            max_answer_bytes: largest answer that is taken in.

        Raises:
            ConfigurationError: the API key cannot be one.
        """
        self._webhook_secret = webhook_secret
        self._connection = Connection(
            base_url,
            api_key,
            timeout_s=timeout_s,
            pool_size=pool_size,
            ca_file=ca_file,
            first_delay_s=first_delay_s,
            max_answer_bytes=max_answer_bytes,
        )
        self._data_manager = DataManager(self._connection)

    @property
    def base_url(self) -> str:
        """Where Label Studio is, without a slash at the end."""
        return self._connection.base_url

    def authorization(self) -> dict[str, str]:
        """Return the header that authorizes a download from Label Studio right now; send it to no other origin.

        Raises:
            LabelStudioError: a personal access token could not be exchanged.
        """
        return self._connection.authorization()

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._connection.close()

    # --- projects ----------------------------------------------------------------------------------------

    def project(self, project: int) -> ProjectSnapshot:
        """Return a project as it is now."""
        return parse_answer(ProjectPayload, self._get(f"/api/projects/{project}/")).snapshot()

    def connected_projects(self, backend_url: str) -> list[int]:
        """Return the ids of the projects that have a backend with this URL, in ascending order.

        Label Studio calls ``/health`` and ``/setup`` of every backend of a project each time it is asked for them.
        """
        connected = []
        for project in self._project_ids():
            try:
                backends = self._backends(project)
            except LabelStudioRejected as error:
                log.warning("backends of a project cannot be listed", label_studio_project=project, problem=str(error))
                continue
            if any(_lead_to_the_same(backend.url, backend_url) for backend in backends):
                connected.append(project)
        return sorted(connected)

    def titles_of_others(self, project: int, backend_url: str) -> set[str]:
        """Return the titles that only backends with another URL have in a project.

        Label Studio calls ``/health`` and ``/setup`` of each of them.
        """
        titles: dict[bool, set[str]] = {True: set(), False: set()}
        for backend in self._backends(project):
            titles[_lead_to_the_same(backend.url, backend_url)].add(backend.title or "")
        return titles[False] - titles[True]

    def _backends(self, project: int) -> list[BackendPayload]:
        return parse_each(BackendPayload, _items(self._get("/api/ml", {"project": str(project)})))

    def _project_ids(self) -> set[int]:
        ids: set[int] = set()
        for number in itertools.count(1):
            query = {"page": str(number), "page_size": str(PROJECTS_PER_PAGE), "include": "id"}
            page = parse_answer(ProjectPage, self._get("/api/projects/", query))
            ids.update(project.id for project in page.results)
            if not page.next:
                break
        return ids

    # --- tasks -------------------------------------------------------------------------------------------

    def annotated_tasks(self, project: int, schema: LabelSchema) -> Iterator[list[AnnotatedTask]]:
        """Yield all tasks of a project page by page, with all their annotations, skipped ones included.

        Pages go by task id, not by number: tasks that come or go meanwhile move no other out of sight. URLs are not
        resolved, so that they are the same as in webhook events and requests for suggestions. Where the answers are
        too large, because tasks hold whole images, pages get smaller.
        """
        last_id = 0
        page_size = TASKS_PER_PAGE
        while True:
            try:
                page = self._task_page(project, last_id, page_size)
            except LabelStudioRejected as error:
                if error.status != TOO_LARGE or page_size == 1:
                    raise
                page_size = max(1, page_size // 8)
                continue
            if not page.tasks:
                return
            yield [
                AnnotatedTask(
                    task=decode_task(task, schema), annotations=tuple(decode_annotations(task.annotations, schema))
                )
                for task in page.tasks
            ]
            last_id = max(task.id for task in page.tasks)

    def _task_page(self, project: int, last_id: int, page_size: int) -> TaskPage:
        after_last = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": last_id}
        selection = {"filters": {"conjunction": "and", "items": [after_last]}, "ordering": ["tasks:id"]}
        query = {
            "project": str(project),
            "page": "1",
            "page_size": str(page_size),
            "fields": "all",
            "resolve_uri": "false",
            "query": json.dumps(selection),
        }
        return parse_answer(TaskPage, self._get("/api/tasks/", query, patience=SLOW))

    # --- webhooks ----------------------------------------------------------------------------------------

    def webhooks(self, project: int) -> list[Webhook]:
        """Return a project's webhooks."""
        answer = self._get("/api/webhooks/", {"project": str(project)})
        return [
            Webhook(
                id=webhook.id,
                url=webhook.url,
                is_active=webhook.is_active,
                sends_payload=webhook.send_payload,
                all_actions=webhook.send_for_all_actions,
                header_names=tuple(webhook.headers),
                has_our_secret=self._has_our_secret(webhook.headers),
            )
            for webhook in parse_each(WebhookPayload, _items(answer))
        ]

    def _has_our_secret(self, headers: Mapping[str, str]) -> bool:
        """Tell whether a webhook sends what we ask for; asked for nothing, each does."""
        sent = [value for name, value in headers.items() if _is_secret_header(name)]
        return self._webhook_secret is None or sent == [self._webhook_secret]

    def create_webhook(self, project: int, url: str) -> None:
        """Create a webhook for all actions, with payload and our secret header."""
        body = {"project": project, "url": url, "headers": self._with_our_secret({}), **AS_IT_SHOULD_BE}
        self._connection.run(Call(method="POST", path="/api/webhooks/", body=body, repeatable=False))

    def repair_webhook(self, project: int, webhook: Webhook) -> None:  # noqa: ARG002 - the webhook's id says it all
        """Make an existing webhook active, for all actions, with payload and our secret header; other headers stay."""
        path = f"/api/webhooks/{webhook.id}/"
        current = parse_answer(WebhookPayload, self._get(path))
        body = {"headers": self._with_our_secret(current.headers), **AS_IT_SHOULD_BE}
        self._connection.run(Call(method="PATCH", path=path, body=body))

    def _with_our_secret(self, headers: Mapping[str, str]) -> dict[str, str]:
        if self._webhook_secret is None:
            return dict(headers)
        others = {name: value for name, value in headers.items() if not _is_secret_header(name)}
        return {**others, SECRET_HEADER: self._webhook_secret}

    # --- predictions -------------------------------------------------------------------------------------

    def import_predictions(self, project: int, schema: LabelSchema, suggestions: Sequence[Suggestion]) -> int:
        """Store predictions and return how many Label Studio says it made.

        Suggestions for tasks that are gone are left out: Label Studio refuses a whole import because of one. When an
        answer is lost, nobody knows whether the import was done; it is not sent again. Nested choices go one by one,
        which takes Label Studio about a quarter of a second each.
        """
        predictions = encode_predictions(suggestions, schema)
        chunk_size = 1 if schema.nested else PREDICTIONS_PER_IMPORT
        pending = [predictions[start : start + chunk_size] for start in range(0, len(predictions), chunk_size)]
        created = refused = 0
        while pending:
            chunk = pending.pop(0)
            try:
                created += self._store(project, chunk, nested=schema.nested)
            except LabelStudioRejected as error:
                refused += 1
                if error.status != 400 or refused > MAX_REFUSED_IMPORTS:
                    raise
                if len(chunk) > 1:
                    pending[:0] = [chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]]
                else:
                    log.info("prediction refused, its task is gone", label_studio_task=chunk[0]["task"])
        return created

    def _store(self, project: int, chunk: Sequence[Mapping[str, Any]], *, nested: bool) -> int:
        if nested:
            # An import drops them without a word: the check it makes knows no nested choices.
            self._connection.run(Call(method="POST", path="/api/predictions/", body=chunk[0], repeatable=False))
            return 1
        path = f"/api/projects/{project}/import/predictions"
        answer = self._connection.run(Call(method="POST", path=path, body=chunk, repeatable=False, patience=SLOW))
        created = parse_answer(ImportPayload, answer).created
        if created < len(chunk):
            log.warning("predictions dropped by label studio", label_studio_project=project, n=len(chunk) - created)
        return created

    def model_versions(self, project: int) -> dict[str, int]:
        """Return how many predictions are stored under each model version; titles of backends are left out."""
        counts = parse_answer(ModelVersionsPayload, self._get(f"/api/projects/{project}/model-versions/")).root
        return {version: count for version, count in counts.items() if count}

    def set_model_version(self, project: int, version: str) -> None:
        """Make a version the one whose predictions annotators see and sampling looks at.

        Label Studio refuses one under which there are no predictions, unless a backend has it as title.
        """
        body = {"model_version": version}
        self._connection.run(Call(method="PATCH", path=f"/api/projects/{project}/", body=body))

    def delete_predictions(self, project: int, version: str) -> None:
        """Delete all predictions of a version.

        While the project's ``model_version`` is the title of a backend, Label Studio clears it together with the
        predictions of any version whatever, which would switch pre-annotation off: then it is set again. When the
        version deleted is the one in use, it stays cleared.
        """
        before = self.project(project).model_version
        path = f"/api/projects/{project}/model-versions/"
        deletion = Call(
            method="DELETE", path=path, body={"model_version": version}, repeatable=False, patience=VERY_SLOW
        )
        self._connection.run(deletion)
        if before and before != version and self.project(project).model_version != before:
            self.set_model_version(project, before)

    # --- what is labelled next -------------------------------------------------------------------------

    def views(self, project: int) -> list[TaskView]:
        """Return a project's views in the Data Manager, from left to right."""
        return self._data_manager.views(project)

    def create_view(self, project: int, title: str, task_ids: Sequence[int], *, least_sure_first: bool = True) -> int:
        """Make a view of these tasks, the least sure prediction first or the surest, and return its id."""
        return self._data_manager.create_view(project, title, task_ids, least_sure_first=least_sure_first)

    def update_view(self, project: int, view_id: int, task_ids: Sequence[int]) -> None:
        """Make a view show these tasks; its title, order, columns and the like stay."""
        self._data_manager.update_view(project, view_id, task_ids)

    def set_sampling(self, project: int, sampling: Sampling) -> None:
        """Set by what the label stream chooses the next task."""
        name = next(name for name, meaning in SAMPLINGS.items() if meaning is sampling)
        self._connection.run(Call(method="PATCH", path=f"/api/projects/{project}/", body={"sampling": name}))

    def _get(self, path: str, query: Mapping[str, str] | None = None, *, patience: float = 1.0) -> Any:
        return self._connection.run(Call(method="GET", path=path, query=query, patience=patience))


def _items(answer: object) -> list[object]:
    return answer if isinstance(answer, list) else []


def _is_secret_header(name: str) -> bool:
    return name.lower() == SECRET_HEADER.lower()


def _lead_to_the_same(one_url: str, another_url: str) -> bool:
    return _normalised(one_url) == _normalised(another_url)


def _normalised(url: str) -> tuple[str, str, int | None, str]:
    """Return what makes two URLs lead to the same place."""
    parts = urlsplit(url.strip())
    try:
        port = parts.port
    except ValueError:
        port = None
    default_port = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname or "", port or default_port, parts.path.rstrip("/")
