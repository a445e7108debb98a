"""The configuration page of the docs: keys and defaults from the models, why from etc/qgisd.toml.

A hook of mkdocs: it puts the tables where configuration.md says `<!-- keys -->`.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from qgisd.config import Config

EXAMPLE = Path(__file__).resolve().parents[1] / "etc" / "qgisd.toml"
MARK = "<!-- keys -->"
_LINE = re.compile(
    r"^(?:\[(?P<table>[\w.]+)\]|(?P<key>\w+) = (?P<value>.*?))(?:\s+# (?P<why>.*))?$"
)
_MORE = re.compile(r"^\s+# (.*)$")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What mkdocs calls for each page."""
    return markdown.replace(MARK, "\n".join(tables())) if MARK in markdown else markdown


def tables() -> Iterator[str]:
    """Markdown: a heading and a table for each table of the file."""
    told = explanations(EXAMPLE.read_text(encoding="utf-8"))
    table = None
    for key, default in keys(Config()):
        if key.rpartition(".")[0] != table:
            table = key.rpartition(".")[0]
            yield f"\n## [{table}]\n\n{told.get(table, ('', ''))[1]}\n"
            yield "| key | default | |\n|---|---|---|"
        value, why = told.get(key, (str(default), ""))
        yield f"| `{key.rpartition('.')[2]}` | `{_cell(value)}` | {_prose(why)} |"


def keys(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and default of every key, tables after the keys of their parent."""
    inner = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            inner.append((name, value))
        elif name != "pools":  # each overrides keys of [pool]
            yield prefix + name, value
    for name, value in inner:
        yield from keys(value, f"{prefix}{name}.")


def explanations(text: str) -> dict[str, tuple[str, str]]:
    """Table or dotted key → its value as written, and the comment beside and below it."""
    found: dict[str, tuple[str, str]] = {}
    table = last = ""
    for line in text.splitlines():
        if match := _LINE.match(line):
            if match["table"]:
                table = last = match["table"]
            else:
                last = f"{table}.{match['key']}"
            found[last] = (match["value"] or "", match["why"] or "")
        elif last and (more := _MORE.match(line)):
            value, why = found[last]
            found[last] = (value, f"{why} {more[1]}".strip())
        else:
            last = ""
    return found


def _prose(text: str) -> str:
    return _cell(re.sub(r"([*_])", r"\\\1", html.escape(text, quote=False)))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
