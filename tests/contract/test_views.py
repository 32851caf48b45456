"""Views of the Data Manager and sampling: the fake and a real Label Studio promise the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import requests

from backend.domain import Sampling, TaskView
from backend.errors import LabelStudioRejected
from backend.label_studio.client import LabelStudioClient
from backend.local_label_studio import LocalLabelStudio
from backend.ports import LabelStudioGateway
from tests.factories import make_snapshot
from tests.fakes import FakeGateway

CONFIG = (
    '<View><Image name="img" value="$image"/><Choices name="c" toName="img"><Choice value="cat"/>'
    '<Choice value="dog"/></Choices></View>'
)


@dataclass
class Place:
    """A project in a Label Studio, real or not."""

    gateway: LabelStudioGateway
    project: int
    tasks: list[int]
    session: requests.Session | None = None
    url: str = ""

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        assert self.session
        answer = self.session.request(method, self.url + path, timeout=60, **arguments)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json()


@pytest.fixture
def real(label_studio: LocalLabelStudio) -> Iterator[Place]:
    client = LabelStudioClient(label_studio.url, label_studio.token, None)
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = f"Token {label_studio.token}"
        place = Place(gateway=client, project=0, tasks=[], session=session, url=label_studio.url)
        place.project = place.call("POST", "/api/projects/", json={"title": "views", "label_config": CONFIG})["id"]
        images = [{"image": f"http://images.example/{number}.png"} for number in range(6)]
        place.call("POST", f"/api/projects/{place.project}/import", json=images)
        listed = place.call("GET", "/api/tasks/", params={"project": place.project, "fields": "all"})
        place.tasks = [task["id"] for task in listed["tasks"]]
        yield place
    client.close()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.label_studio)])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "real":
        return request.getfixturevalue("real")
    gateway = FakeGateway()
    gateway.add_project(make_snapshot())
    return Place(gateway=gateway, project=5, tasks=[1, 2, 3, 4, 5, 6])


def test_the_first_view_keeps_all_tasks_in_sight(place: Place) -> None:
    assert place.gateway.views(place.project) == []
    made = place.gateway.create_view(place.project, "Label next", place.tasks[1:3])
    everything, view = place.gateway.views(place.project)
    assert (everything.title, everything.task_ids) == ("Default", None)
    assert view == TaskView(id=made, title="Label next", task_ids=frozenset(place.tasks[1:3]))


def test_a_view_is_made_to_show_other_tasks(place: Place) -> None:
    made = place.gateway.create_view(place.project, "Label next", place.tasks[:2])
    other = place.gateway.create_view(place.project, "Check these labels", place.tasks[:1])
    before = place.gateway.views(place.project)
    for tasks in (place.tasks[3:], []):
        place.gateway.update_view(place.project, made, tasks)
        after = place.gateway.views(place.project)
        assert after == [replace(view, task_ids=frozenset(tasks)) if view.id == made else view for view in before]
    assert other in {view.id for view in after}


def test_a_view_that_is_gone(place: Place) -> None:
    with pytest.raises(LabelStudioRejected) as caught:
        place.gateway.update_view(place.project, 999_999, place.tasks)
    assert caught.value.status == 404


def test_sampling(place: Place) -> None:
    assert place.gateway.project(place.project).sampling is Sampling.SEQUENTIAL
    for sampling in (Sampling.UNCERTAINTY, Sampling.UNIFORM):
        place.gateway.set_sampling(place.project, sampling)
        assert place.gateway.project(place.project).sampling is sampling


@pytest.mark.label_studio
class TestRealLabelStudio:
    def shown(self, place: Place, view: int) -> list[int]:
        return [task["id"] for task in place.call("GET", "/api/tasks/", params={"view": view})["tasks"]]

    def test_a_view_shows_its_tasks_and_no_others(self, real: Place) -> None:
        view = real.gateway.create_view(real.project, "Label next", real.tasks[4:1:-1])
        assert self.shown(real, view) == real.tasks[2:5]
        for least_sure_first in (True, False):
            other = real.gateway.create_view(real.project, "v", real.tasks, least_sure_first=least_sure_first)
            ordering = real.call("GET", f"/api/dm/views/{other}/")["data"]["ordering"]
            assert ordering == ["tasks:predictions_score" if least_sure_first else "-tasks:predictions_score"]
        real.gateway.update_view(real.project, view, [])
        assert self.shown(real, view) == []

    def test_what_a_user_arranged_stays(self, real: Place) -> None:
        view = real.gateway.create_view(real.project, "Label next", real.tasks[:1])
        data = real.call("GET", f"/api/dm/views/{view}/")["data"] | {"title": "My own", "gridWidth": 7}
        data |= {"ordering": ["-tasks:id"], "hiddenColumns": {"explore": ["tasks:id"], "labeling": ["tasks:id"]}}
        real.call("PATCH", f"/api/dm/views/{view}/", json={"project": real.project, "data": data})
        real.gateway.update_view(real.project, view, real.tasks[1:3])
        after = real.call("GET", f"/api/dm/views/{view}/")["data"]
        assert after == data | {"filters": after["filters"]}
        assert self.shown(real, view) == real.tasks[2:0:-1]

    def test_what_tells_whether_a_label_fits_is_in_sight(self, real: Place) -> None:
        view = real.gateway.create_view(real.project, "Label next", real.tasks[:1])
        columns = real.call("GET", "/api/dm/columns", params={"project": real.project})["columns"]
        names = {f"tasks:{'data.' if column.get('parent') else ''}{column['id']}" for column in columns}
        hidden = real.call("GET", f"/api/dm/views/{view}/")["data"]["hiddenColumns"]
        assert names - set(hidden["explore"]) == {
            "tasks:data",
            "tasks:data.image",
            "tasks:id",
            "tasks:annotations_results",
            "tasks:predictions_results",
            "tasks:predictions_score",
        }
        assert {"tasks:data.image"} <= names - set(hidden["labeling"]) < names

    @pytest.mark.parametrize(
        "filters",
        [
            None,
            {"conjunction": "and", "items": []},
            {
                "conjunction": "or",
                "items": [{"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": 3}],
            },
            {
                "conjunction": "or",
                "items": [
                    {"filter": "filter:tasks:id", "operator": "equal", "type": "Number", "value": 3},
                    {"filter": "filter:tasks:total_annotations", "operator": "equal", "type": "Number", "value": 0},
                ],
            },
        ],
    )
    def test_filters_of_other_kinds(self, real: Place, filters: dict[str, Any] | None) -> None:
        data = {"title": "mine"} | ({"filters": filters} if filters else {})
        real.call("POST", "/api/dm/views/", json={"project": real.project, "data": data})
        (view,) = real.gateway.views(real.project)
        assert view.task_ids is None
