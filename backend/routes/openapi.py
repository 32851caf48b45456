"""The published description of every endpoint, as an OpenAPI document."""

from __future__ import annotations

from pathlib import Path

from flask import Blueprint, Response

DOCUMENT = Path(__file__).with_name("openapi.json")


def openapi_blueprint() -> Blueprint:
    """Return the endpoint that publishes the document."""
    routes = Blueprint("openapi", __name__)

    @routes.get("/openapi.json")
    def openapi() -> Response:
        return Response(DOCUMENT.read_bytes(), mimetype="application/json")

    return routes
