"""The page at `/docs`: the OpenAPI document as plain HTML, under the policy of the page at `/`. It
has no script and loads nothing from other servers."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from medray.serving.page import home

JsonObject = Mapping[str, Any]


def html(document: JsonObject) -> str:
    info = document["info"]
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    routes = "".join(_operation(path, method, operation) for path, method, operation in operations)
    schemas = "".join(
        _schema(name, schema) for name, schema in document["components"]["schemas"].items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta '
        'name="color-scheme" content="light dark">'
        f'<title>{escape(info["title"])}: routes</title><link rel="icon" '
        f'href="data:,"><style>{home.sheet()}</style></head><body>'
        f'<header><p class="kicker"><b>{escape(info["title"])}</b> '
        f"{escape(info['version'])}</p><h1>Routes</h1>"
        '<p class="disclaimer" '
        f'role="note">{escape(info.get("description", ""))}</p></header><main>'
        "<p>Programs can read <a "
        f'href="openapi.json">openapi.json</a>.</p>{routes}<h2>Schemas</h2>{schemas}</main></body></html>'
    )


def _operation(path: str, method: str, operation: JsonObject) -> str:
    body = "".join(_types(operation.get("requestBody", {}).get("content", {})))
    answers = "".join(
        f"<tr><td>{escape(status)}</td><td>{' '.join(_types(answer.get('content', {})))}</td>"
        f"<td>{escape(answer.get('description', ''))}</td></tr>"
        for status, answer in operation["responses"].items()
    )
    request_body = f"<p>Body: {body}</p>" if body else ""
    return (
        f"<section><h2><code>{method.upper()} "
        f"{escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>{request_body}"
        "<div "
        f'class="scroll"><table><tr><th>status</th><th>response</th><th></th></tr>{answers}</table></div></section>'
    )


def _types(content: JsonObject) -> Iterator[str]:
    for kind, media in content.items():
        yield f"{_type(media['schema'])} ({escape(kind)})" if media.get("schema") else escape(kind)


def _schema(name: str, schema: JsonObject) -> str:
    mandatory = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{_type(about)}"
        f"{', required' if field in mandatory else ''}</td>"
        f"<td>{escape(about.get('description', ''))}</td></tr>"
        for field, about in schema.get("properties", {}).items()
    )
    return (
        "<section "
        f'id="{escape(name)}"><h3>{escape(name)}</h3><p>{escape(schema.get("description", ""))}</p>'
        "<div "
        f'class="scroll"><table><tr><th>field</th><th>type</th><th></th></tr>{rows}</table></div></section>'
    )


def _type(schema: JsonObject) -> str:
    if "$ref" in schema:
        name = escape(str(schema["$ref"]).rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(map(_type, choices))
    if "const" in schema or "enum" in schema:
        return " or ".join(
            f"<code>{escape(str(value))}</code>"
            for value in schema.get("enum", [schema.get("const")])
        )
    if items := schema.get("items"):
        return f"list of {_type(items)}"
    return escape(str(schema.get("type", "anything")))
