"""A route past Flask, whose way to it and back takes as long as an answer to Label Studio about an image it knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from flask import Flask, Request

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


class Shortcut:
    """Answers what is posted to one route of an application itself; all others, and refusals, the application answers.

    Args:
        app: the application, which has the route as well.
        endpoint: its name of the route.
        check: refuses a request by an error that the application knows how to answer.
        answer: returns the JSON that answers a body.
    """

    def __init__(
        self, app: Flask, endpoint: str, check: Callable[[Request], None], answer: Callable[[bytes], bytes]
    ) -> None:
        self._app = app
        self._application: WSGIApplication = app.wsgi_app
        self._rule = next(app.url_map.iter_rules(endpoint))
        self._check = check
        self._answer = answer

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        if not self._is_meant(environ):
            return self._application(environ, start_response)
        asked = Request(environ)
        asked.url_rule = self._rule
        try:
            self._check(asked)
            content = self._answer(environ["wsgi.input"].read(asked.content_length))
        except Exception as error:  # noqa: BLE001 - the application has an answer to each
            with self._app.request_context(environ):
                return self._app.make_response(self._app.handle_user_exception(error))(environ, start_response)
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        start_response("200 OK", headers)
        # The two hold each other: together they would stay until garbage is collected.
        del environ["werkzeug.request"]
        return [content]

    def _is_meant(self, environ: WSGIEnvironment) -> bool:
        """Tell whether a request is to the route, with a body of which is known beforehand that it is not too large."""
        if environ["PATH_INFO"] != self._rule.rule or environ["REQUEST_METHOD"] != "POST":
            return False
        length: str = environ.get("CONTENT_LENGTH", "")
        return length.isdecimal() and int(length) <= int(self._app.config["MAX_CONTENT_LENGTH"])
