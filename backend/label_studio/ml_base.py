"""Tandem as a model for Label Studio's own server of backends, the package ``label-studio-ml``.

That server replaces Tandem's web process only. A worker and an embedding process (``tandem worker``) share the database
and ``MODEL_DIR`` with it, and do all the learning; what it is asked here, the same services answer as in Tandem's own
web process. Written for 1.0.9, the release on the package index, and for 2.x, which is a git address.

An entry point, although it lies beside the wire format: the server makes the class by itself and hands it nothing, so
it fetches its services from the composition root. Importing it imports the server's package, which, where torch is
installed, sets the start method of the process's ``multiprocessing`` to spawn; nothing else of Tandem imports it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from label_studio_ml.model import LabelStudioMLBase

from backend.domain import ProjectSnapshot
from backend.errors import InvalidRequest
from backend.label_studio.codecs import read_label_config
from backend.label_studio.payloads import PredictRequest, encode_predict_response, parse_event, parse_identity

if TYPE_CHECKING:
    from backend.bootstrap import Container


@cache
def container() -> Container:
    """Return the services of this process, wired by the settings in the environment."""
    from backend.bootstrap import STORAGE_PATIENCE_S, Container
    from backend.processes import one_linear_algebra_thread
    from backend.settings import load_settings

    one_linear_algebra_thread()
    return Container(load_settings(), storage_patience_s=STORAGE_PATIENCE_S)


class Tandem(LabelStudioMLBase):  # type: ignore[misc]  # the package has no types
    """Answers with Tandem's services.

    2.x makes an instance for each request and tells it the project. 1.0.9 makes one at each ``/setup``, for whatever
    project comes next, and does not tell which: there the tasks do.
    """

    def setup(self) -> None:
        """Tell 2.x, after each construction, which version of the project suggestions come from."""
        identity = parse_identity(self.project_id)
        if identity is not None:
            config = read_label_config(self.label_config) if self.label_config else None
            snapshot = ProjectSnapshot(identity=identity, label_config=config)
            self.set("model_version", container().ingestion.setup(snapshot))

    def set_extra_params(self, extra_params: object) -> None:
        """Take no parameters: 2.x itself fails on the JSON object that Label Studio sends."""

    def predict(
        self, tasks: Sequence[Mapping[str, Any]], context: Mapping[str, Any] | None = None, **_: Any
    ) -> list[dict[str, Any]]:
        """Return an entry per task, in order, empty where nothing is known.

        Raises:
            InvalidRequest: neither the server nor the tasks say which project they belong to.
        """
        if not tasks:
            return []
        project = getattr(self, "project_id", None) or tasks[0].get("project")
        asked = PredictRequest.parse(
            {"project": project, "label_config": self.label_config, "tasks": tasks, "params": {"context": context}}
        )
        answer = container().prediction.predict(asked.project, asked.tasks)
        return encode_predict_response(answer.results, answer.schema)["results"]

    def process_event(self, event: str, data: Mapping[str, Any], job_id: str, additional_params: Any) -> None:
        """Take in every event: the server's own list lacks most of them, Start Training too in 1.0.9."""
        self.fit(event=event, data=data, job_id=job_id, **additional_params)

    def fit(
        self,
        *given: Any,
        event: str = "",
        data: Mapping[str, Any] | None = None,
        workdir: str | None = None,
        **_: Any,
    ) -> None:
        """Store an event durably; the worker learns from it.

        2.x gives event and data by position or name. 1.0.9 gives an empty list of tasks by position, the event by name,
        and in ``workdir`` a folder for results. Nothing is left there: 1.0.9 would take it for a model of its own, and
        it has written the whole event to it, the project's token included.
        """
        if len(given) == 2:
            event, data = given
        if data is None:
            raise InvalidRequest("there is no event to take in: the server gave no data")
        container().ingestion.handle(parse_event({**data, "action": event}))
        if workdir:
            shutil.rmtree(workdir, ignore_errors=True)
