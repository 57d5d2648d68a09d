"""What every command needs: the settings, a progress display, a polite stop."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated

import typer

from prebake.errors import InputError
from prebake.loading import find_file, load
from prebake.progress import Bars, Progress, Silent
from prebake.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Route = Annotated[list[str] | None, typer.Option("--route", "-r", help="Only this route; may be given again.")]


@dataclass
class Shared:
    """The options that stand before the command."""

    settings_file: Path | None

    @cached_property
    def settings(self) -> Settings:
        """The effective settings."""
        return load(self.settings_file)


def settings_of(context: typer.Context) -> Settings:
    """The effective settings of this command."""
    shared = context.obj
    assert isinstance(shared, Shared)  # noqa: S101 - set by the callback that typer always runs first
    return shared.settings


def settings_file_of(context: typer.Context) -> Path | None:
    """The settings file named on the command line, or the one found from here; None: there is none."""
    shared = context.obj
    assert isinstance(shared, Shared)  # noqa: S101 - set by the callback that typer always runs first
    return shared.settings_file or find_file()


def progress_for(json: bool) -> Progress:
    """Bars for a person, silence for a program."""
    return Silent() if json else Bars()


def parse_day(text: str) -> date:
    """A day as YYYY-MM-DD, ``today`` or ``yesterday`` (UTC)."""
    from datetime import timedelta

    today = datetime.now(UTC).date()
    if text in ("today", "yesterday"):
        return today - timedelta(days=text == "yesterday")
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InputError(f"{text!r} is no day; give YYYY-MM-DD, today or yesterday") from None
