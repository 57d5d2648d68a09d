"""Settings that change while the gateway runs: SIGHUP makes it read the file again.

In: the file and the settings in force. Out: the new settings, or none and one line in the log that says why the old
ones stay. All or nothing: a file of which half would be in force is worse than either.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from prebake.errors import PrebakeError, SettingsError
from prebake.loading import load
from prebake.settings import Gateway, Settings

# The rest of [gateway], the store and the salt are built into what runs: sockets, processes, queues, maps.
CHANGEABLE = frozenset(
    {
        "upstream", "upstream_key", "connect_timeout_s", "timeout_s", "max_body_mb", "tenant_header", "user_header",
        "limits",
    }
)  # fmt: skip

logger = logging.getLogger(__name__)


def read_again(file: Path | None, old: Settings) -> Settings | None:
    """The settings as the file has them now. None if they are wrong, or change what only a restart can."""
    try:
        new = load(file)
        if fixed := list(_fixed(old, new)):
            raise SettingsError(
                f"{file}: {', '.join(fixed)} cannot change while the gateway runs; restart it, or put it back"
            )
    except PrebakeError as error:
        logger.error("SIGHUP: %s; the settings stay as they were", error)
        return None
    logger.info("SIGHUP: %s is in force", file)
    return new


def _fixed(old: Settings, new: Settings) -> Iterator[str]:
    for section in ("store", "privacy", "near"):
        if getattr(old, section) != getattr(new, section):
            yield f"[{section}]"
    for name in Gateway.model_fields.keys() - CHANGEABLE:
        if getattr(old.gateway, name) != getattr(new.gateway, name):
            yield f"gateway.{name}"
    if _looks_near(old) != _looks_near(new):  # whether there is a thread for it
        yield "routes.near from off, or to off, on all routes"


def _looks_near(settings: Settings) -> bool:
    return any(route.near != "off" for route in settings.routes)
