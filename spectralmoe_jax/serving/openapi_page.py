"""An OpenAPI description as a page of its own, without scripts, readable offline."""

from __future__ import annotations

from typing import Any

from spectralmoe_jax.escapes import html

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }
code { background: #8882; padding: 0 .25em; border-radius: 3px; }
h2 { margin-top: 2.5rem; font-size: 1.15rem; }
td, th { text-align: left; vertical-align: top; padding: .15rem 1rem .15rem 0; }
:root { color-scheme: light dark; }
"""


def as_page(description: dict[str, Any]) -> str:
    """Return HTML with every operation of an OpenAPI description: parameters, bodies and responses."""
    title, version = (html(description["info"][key]) for key in ("title", "version"))
    operations = [
        _operation(method, path, operation)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f'<body><h1>{title}</h1><p>Version {version}. For programs: <a href="openapi.json">openapi.json</a>.'
        f"</p>{''.join(operations)}</body></html>\n"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = [
        (parameter["name"], f"in the {parameter['in']}: {_values(parameter['schema'])}")
        for parameter in operation.get("parameters", [])
    ]
    bodies = [(media, "body") for media in operation.get("requestBody", {}).get("content", {})]
    responses = [
        (status, " or ".join([response["description"], *response.get("content", {})]))
        for status, response in operation["responses"].items()
    ]
    return (
        f"<section><h2><code>{html(method.upper())} {html(path)}</code></h2>"
        f"<p>{html(' '.join(operation.get('description', '').split()))}</p>"
        f"{_table('Given', [*parameters, *bodies])}{_table('Answers', responses)}</section>"
    )


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    cells = "".join(f"<tr><th><code>{html(a)}</code></th><td>{html(b)}</td></tr>" for a, b in rows)
    return f"<h3>{title}</h3><table>{cells}</table>"


def _values(schema: dict[str, Any]) -> str:
    """Return the values that a schema lists."""
    allowed = [value for part in schema.get("anyOf", [schema]) for value in part.get("enum", [])]
    return ", ".join(map(str, allowed)) or str(schema.get("type", "any"))
