"""``prebake key``: a new API key for the gateway. Nothing is stored here: the settings keep its digest."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from pydantic import ValidationError

from prebake.cli.context import Json
from prebake.cli.output import print_json
from prebake.cli.settings_file import toml_value
from prebake.errors import SettingsError
from prebake.keys import Key, new_key


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(key)


def key(
    name: Annotated[str, typer.Argument(help="The key's name: small letters, digits, - and _.")],
    tenant: Annotated[str, typer.Option(help="Tenant of all requests with this key; empty: none.")] = "",
    requests_per_minute: Annotated[int, typer.Option(help="Most requests in a minute; 0: no limit.")] = 0,
    admin: Annotated[bool, typer.Option("--admin", help="The key opens the gateway's own page.")] = False,
    json: Json = False,
) -> None:
    """Make a random API key for the gateway: it is shown once; its digest goes into the settings.

    Example: prebake key acme-app --tenant acme --requests-per-minute 600
    """
    secret, digest = new_key()
    try:
        made = Key(name=name, sha256=digest, tenant=tenant, requests_per_minute=requests_per_minute, admin=admin)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(f"key: {first['loc'][0]}: {first['msg']}, got {first['input']!r}") from None
    values: dict[str, Any] = made.model_dump(exclude_defaults=True)
    if json:
        return print_json({"key": secret, **values})
    block = "\n".join(f"{field} = {toml_value(value)}" for field, value in values.items())
    typer.echo(
        f"The key, shown this once; give it to whoever it is for:\n\n{secret}\n\n"
        f"Add this to prebake.toml, then send the gateway a SIGHUP:\n\n[[keys]]\n{block}"
    )
    return None
