"""Field types for messages of Label Studio: what is missing or malformed in one part does not lose the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, TypeVar

import structlog
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from backend.errors import InvalidRequest
from backend.label_studio.codecs import is_storable

log = structlog.get_logger()


def _to_utc(moment: datetime) -> datetime:
    try:
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("this moment is out of range") from error


def _drop_malformed(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    try:
        return handler(value)
    except ValidationError:
        return None


def _check_storable(text: str) -> str:
    if not is_storable(text):
        raise ValueError("this text holds characters that cannot be stored")
    return text


def _id_of(value: object) -> object:
    """Return the id where a related object stands in place of its id."""
    return value.get("id") if isinstance(value, Mapping) else value


T = TypeVar("T")
Lenient = Annotated[T | None, WrapValidator(_drop_malformed)]
"""A part without which the rest is still of use: ``None`` when it is malformed."""

Id = Annotated[int, Field(ge=1, lt=2**63)]
RelatedId = Annotated[Id, BeforeValidator(_id_of)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, AfterValidator(_check_storable)]
Moment = Annotated[datetime, AfterValidator(_to_utc)]
Flag = Annotated[bool, BeforeValidator(lambda value: value or False)]
Mapped = Annotated[dict[str, object], BeforeValidator(lambda value: value if isinstance(value, Mapping) else {})]
Items = Annotated[list[object], BeforeValidator(lambda value: value if isinstance(value, list) else [])]
OneOrMany = Annotated[list[object], BeforeValidator(lambda value: value if isinstance(value, list) else [value])]


class Payload(BaseModel):
    """A message, or a part of one."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


P = TypeVar("P", bound=Payload)


def parse_each(model: type[P], items: Sequence[object]) -> list[P]:
    """Return the items that can be understood; the others are skipped with a log line."""
    parsed = []
    for item in items:
        try:
            parsed.append(model.model_validate(item))
        except ValidationError as error:
            log.warning("malformed part skipped", part=model.__name__, fields=field_names(error))
    return parsed


def field_names(error: ValidationError) -> str:
    """Return the names of the fields that are wrong, without what is in them."""
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    return ", ".join(sorted({".".join(str(step) for step in problem["loc"]) or "whole" for problem in problems}))


def read_json_object(body: object) -> dict[str, object]:
    """Return a request body, bytes or already parsed, as a JSON object.

    Raises:
        InvalidRequest: it is not one.
    """
    if isinstance(body, bytes | bytearray | str):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"the body is not JSON ({type(error).__name__}): send a JSON object") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body is a JSON {type(body).__name__}: send a JSON object")
    return body


class Reference(Payload):
    """Anything of which only the id counts."""

    id: Id
