"""The description of the REST API, OpenAPI 3.1, made from the operations themselves."""

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from qgisd import __version__
from qgisd.http.handler import Handler, Operation
from qgisd.http.models import Problem

BASE = "/api/v1"
_METHODS = ("get", "post", "put", "delete")
#: What any operation may answer besides: a query that is wrong, somebody who may not ask, no such
#: pool or project.
_ALWAYS = (400, 401, 403, 404, 421)

Routes = Iterable[tuple[str, type[Handler]]]


def pattern(template: str) -> str:
    """The expression that finds what a template stands for. Names may hold plain slashes."""
    return BASE + re.sub(r"\{(\w+)\}", r"(?P<\1>.+)", template)


def describe(routes: Routes) -> dict[str, Any]:
    """The whole document."""
    operations = [
        (template, method, found)
        for template, handler in routes
        for method in _METHODS
        if (found := getattr(getattr(handler, method), "operation", None)) is not None
    ]
    types: dict[str, TypeAdapter[Any]] = {"Problem": TypeAdapter(Problem)}
    inputs: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = []
    for template, method, found in operations:
        key = f"{method} {template}"
        types[f"{key} 200"] = found.returns
        for status, kind in found.also.items():
            if kind is not None:
                types[f"{key} {status}"] = TypeAdapter(kind)
        for name, kind in found.path.items():
            inputs.append((f"{key} {name}", "validation", kind))
    outputs: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        (key, "serialization", kind) for key, kind in types.items()
    ]
    schemas, definitions = TypeAdapter.json_schemas(
        outputs + inputs,
        ref_template="#/components/schemas/{model}",
        schema_generator=GenerateJsonSchema,
    )
    paths: dict[str, dict[str, Any]] = {}
    for template, method, found in operations:
        key = f"{method} {template}"
        of_type = {name: schema for (name, _), schema in schemas.items()}
        paths.setdefault(BASE + template, {})[method] = _operation(key, found, of_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "qgisd",
            "version": __version__,
            "description": "The admin API of a qgisd daemon. Over TCP a token says who asks; "
            "over a Unix socket the kernel does.",
        },
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
        "paths": paths,
    }


def _operation(key: str, found: Operation, of_type: Mapping[str, Any]) -> dict[str, Any]:
    method, template = key.split(" ")
    text = " ".join(found.text.split())
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": of_type[f"{key} {name}"]}
        for name in found.path
    ]
    schema = TypeAdapter(found.query).json_schema()
    for name, kind in schema["properties"].items():
        # A parameter that is not given is left out: there is no null in a query.
        one = next((each for each in kind.get("anyOf", []) if each["type"] != "null"), kind)
        shown = {word: one[word] for word in ("type", "minimum", "maximum", "enum") if word in one}
        parameters.append(
            {
                "name": name,
                "in": "query",
                "required": False,
                "schema": shown,
                "description": kind.get("description", ""),
            }
        )
    responses = {"200": _response("Done", found.media_type, of_type[f"{key} 200"])}
    problem = of_type["Problem"]
    for status in sorted({*_ALWAYS, *found.also}):
        kind = found.also.get(status)
        media = "application/problem+json" if kind is None else "application/json"
        content = problem if kind is None else of_type[f"{key} {status}"]
        responses[str(status)] = _response(HTTPStatus(status).phrase, media, content)
    return {
        "operationId": re.sub(r"\W+", "-", f"{method}{template}").strip("-"),
        "summary": text.partition(".")[0].partition(";")[0],
        "description": text,
        "parameters": parameters,
        "responses": responses,
    }


def _response(description: str, media: str, schema: Any) -> dict[str, Any]:
    return {"description": description, "content": {media: {"schema": schema}}}
