"""``prebake init``: the commented settings file, written from the declarations of the settings themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, TypeAdapter
from pydantic_core import PydanticUndefined

from prebake.errors import SettingsError
from prebake.keys import Key
from prebake.loading import FILE_NAME
from prebake.routes import Route
from prebake.settings import Settings

HEAD = """\
# prebake's settings. What stands behind a # is the default; take the # away to change it.
# An environment variable overrides the file: PREBAKE_PLAN__BUDGET_USD=3 sets budget_usd in [plan].
# Relative paths start at this file. `prebake doctor` prints what is in force and where it came from.
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(init)


def init(
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path(FILE_NAME),
) -> None:
    """Write a commented settings file with every setting and its default.

    Example: prebake init
    """
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(settings_toml())
    except FileExistsError:
        raise SettingsError(f"{file} is there already; name another file or remove it first") from None
    except OSError as error:
        raise SettingsError(f"{file} cannot be written: {error.strerror}") from error
    typer.echo(f"wrote {file}; next: set [engine] model, then prebake doctor")


def settings_toml() -> str:
    """The settings file: every table, every key, its meaning and its default."""
    parts = [HEAD]
    for name, field in Settings.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            parts.extend(_tables(name, annotation))
    parts.append('# One name for models that may share answers.\n[aliases]\n# assistant = ["gpt-4o-mini*"]\n')
    parts.append("# Who may use the gateway; none: everybody who reaches it. `prebake key NAME` makes one.\n# [[keys]]")
    parts.extend(_keys(Key, skip=set()))
    parts.append("")
    parts.append('# Kinds of requests; the first that matches takes it.\n[[routes]]\nname = "default"\n')
    parts.extend(_keys(Route, skip={"name", "night"}))
    parts.append("")
    parts.extend(_tables("routes.night", Route.model_fields["night"].annotation))
    return "\n".join(parts).rstrip() + "\n"


def _tables(name: str, model: Any) -> Iterator[str]:
    """One table and the tables inside it."""
    inner = {
        key: field.annotation
        for key, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    yield f"# {(model.__doc__ or '').strip()}\n[{name}]"
    yield from _keys(model, skip=set(inner))
    yield ""
    for key, annotation in inner.items():
        yield from _tables(f"{name}.{key}", annotation)


def _keys(model: Any, skip: set[str]) -> Iterator[str]:
    for key, field in model.model_fields.items():
        if key in skip:
            continue
        yield textwrap.fill(field.description or "", 110, initial_indent="# ", subsequent_indent="# ")
        yield f"# {key} = {toml_value(field.get_default(call_default_factory=True))}"


def toml_value(value: Any) -> str:
    """A default as TOML writes it; empty where there is none."""
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        return f'"{TypeAdapter(timedelta).dump_python(value, mode="json")}"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else str(value)
