"""The page at /docs: the OpenAPI document as plain HTML, without scripts or external resources."""

import html
import json
from collections.abc import Iterator
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
pre { background: #f4f4f4; padding: .7rem; overflow-x: auto; } h2 { border-top: 1px solid #ccc; padding-top: 1rem; }
td, th { text-align: left; padding: .1rem 1rem .1rem 0; vertical-align: top; }
"""


def docs_page(document: dict[str, Any]) -> str:
    """Render an OpenAPI document as HTML: routes with parameters, statuses, body and a working request."""
    title = html.escape(document["info"]["title"])
    routes = "".join(
        _route(path, method, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    schemas = "".join(
        f"<h3 id='{html.escape(name)}'>{html.escape(name)}</h3>{_json(schema)}"
        for name, schema in document.get("components", {}).get("schemas", {}).items()
    )
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>"
        f"</head><body><h1>{title}</h1><p>The same as data: <a href='/openapi.json'>/openapi.json</a>.</p>"
        f"{routes}<h2>Schemas</h2>{schemas}</body></html>"
    )


def _route(path: str, method: str, operation: dict[str, Any]) -> str:
    return "".join(_route_parts(path, method, operation))


def _route_parts(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<h2>{method.upper()} {html.escape(path)}</h2>"
    yield _table("parameter", {each["name"]: each.get("description", "") for each in operation.get("parameters", [])})
    yield _table("status", {status: each["description"] for status, each in operation["responses"].items()})
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content:
        example = json.dumps(content["example"])
        yield _pre(f"curl -X POST $URL{path} -H 'content-type: application/json' -d '{example}'")
        yield _json(content["schema"])


def _table(heading: str, rows: dict[str, str]) -> str:
    if not rows:
        return ""
    lines = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>" for name, text in rows.items())
    return f"<table><tr><th>{heading}</th><th></th></tr>{lines}</table>"


def _json(value: object) -> str:
    return _pre(json.dumps(value, indent=2))


def _pre(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"
