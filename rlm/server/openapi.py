"""The OpenAPI document. Bodies are parsed by hand, so what they may hold is told here."""

from collections.abc import Callable

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from rlm.server.errors import STATUSES, ErrorReply

TEXT = {"type": "string"}
EVENT = {"type": "object", "required": ["data"], "properties": {"event": TEXT, "data": TEXT}}
# Beside JSON: events when `stream` is set, bare text when it is asked for.
EVENTS = {"content": {"text/event-stream": {"schema": EVENT}}}
EVENTS_AND_TEXT = {"content": EVENTS["content"] | {"text/plain": {"schema": TEXT}}}
HEALTH = {
    "description": "the state of the server",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["status", "model", "format", "max_tokens", "key_required"],
            }
        }
    },
}
AT = "#/components/schemas/{model}"


def errors(*statuses: int) -> dict:
    """Return the error replies of an operation."""
    return {status: {"model": ErrorReply, "description": STATUSES[status]} for status in statuses}


def json_body(model: type[BaseModel]) -> dict:
    """Return the request body of an operation; `describe` puts the model's schema in place."""
    schema = {"$ref": AT.format(model=model.__name__)}
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def describe(app: FastAPI, bodies: tuple, with_key: bool) -> Callable[[], dict]:
    """Return what makes the document, once, when somebody asks for it. bodies: their models."""
    made: dict = {}

    def document() -> dict:
        if not made:
            made.update(_document(app, bodies, with_key))
        return made

    return document


def _document(app: FastAPI, bodies: tuple, with_key: bool) -> dict:
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = found["components"]["schemas"]
    for model in bodies:
        schema = model.model_json_schema(ref_template=AT)
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    if with_key:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in found["paths"].items():
            if path != "/health":
                for operation in operations.values():
                    operation["security"] = [{"key": []}]
    return found
