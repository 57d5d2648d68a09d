"""How results are shown: a table that fits the terminal, or one JSON object."""

from __future__ import annotations

import base64
import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from enum import Enum
from typing import Any

import orjson
import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prebake.errors import PrebakeError


def plain(value: Any) -> Any:
    """What JSON can say of a report: dataclasses and models as objects, bytes as base64, times as ISO 8601."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    return [plain(item) for item in value]


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    typer.echo(orjson.dumps(plain(value), default=str).decode())


def show(title: str, report: Any, json: bool) -> None:
    """A report as a two-column table, or as JSON."""
    if json:
        print_json(report)
        return
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in plain(report).items():
        if value not in (None, "", [], {}):
            table.add_row(name.replace("_", " "), escape(_cell(value)))
    Console().print(table)


def show_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """Rows as a table no wider than the terminal."""
    table = Table(title=title or None, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(plain(value))) for value in row))
    Console().print(table)


def complain(error: PrebakeError) -> None:
    """The trouble in one line on standard error; as JSON on standard output too where the caller asked for JSON."""
    typer.echo(f"prebake: {' '.join(str(error).split())}", err=True)
    if "--json" in sys.argv:
        print_json({"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code})


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_cell(item)}" for name, item in value.items())
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "\n".join("  ".join(_cell(item) for item in row.values()) for row in value)
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value[:8]) + (f" … ({len(value)})" if len(value) > 8 else "")
    return str(value)
