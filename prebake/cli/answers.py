"""Single answers: explain what happens to a request, block it, unblock it, approve its answer."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer

from prebake.cli.context import Json, settings_of
from prebake.cli.output import print_json, show, show_rows
from prebake.errors import InputError
from prebake.settings import Settings

FINGERPRINT: Final = re.compile(r"[0-9a-fA-F]{32}")

Which = Annotated[
    list[str],
    typer.Argument(help="Fingerprints (32 hexadecimal digits), or files with a request's JSON; - is standard input."),
]
Tenant = Annotated[str | None, typer.Option(help="Tenant who asks, for requests of routes that answer per tenant.")]
Namespace = Annotated[str, typer.Option(help="Namespace the request asks in.")]
Note = Annotated[str, typer.Option(help="Why, for those who read it later.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (explain, block, unblock, approve):
        app.command()(command)


def explain(
    context: typer.Context,
    request: Annotated[
        str, typer.Argument(help="A file with the request's JSON body, - for standard input, or a fingerprint.")
    ],
    tenant: Tenant = None,
    namespace: Namespace = "",
    json: Json = False,
) -> None:
    """Say what the gateway does with a request, and why: route, fingerprint, answer, verdicts, the plan's decision.

    Example: prebake explain request.json --tenant acme
    """
    from gateway.explain import explain_fingerprint, explain_request
    from storage.store import open_store

    settings, now = settings_of(context), datetime.now(UTC)
    with open_store(settings) as store:
        if FINGERPRINT.fullmatch(request):
            found = explain_fingerprint(store, settings, bytes.fromhex(request), now=now)
        else:
            body = _body(request)
            found = explain_request(store, settings, body, now=now, tenant=tenant, namespace=namespace)
    show(found.cache if found.reason is None else f"{found.cache}: {found.reason}", found, json)


def block(
    context: typer.Context,
    which: Which,
    tenant: Tenant = None,
    namespace: Namespace = "",
    note: Note = "",
    json: Json = False,
) -> None:
    """Stop serving an answer, now: every gateway sends these requests to the model within seconds.

    No later night bakes them and no later snapshot holds them, until they are unblocked.

    Example: prebake block d170ac07a251a00921d4938586169dc3 --note "wrong since the new price list"
    """
    from storage.objects import open_objects
    from storage.verdicts import block as run

    settings = settings_of(context)
    fingerprints = _fingerprints(settings, which, tenant, namespace)
    run(open_objects(settings.store), fingerprints, now=datetime.now(UTC), note=note)
    _show_done("blocked", fingerprints, json)


def unblock(
    context: typer.Context, which: Which, tenant: Tenant = None, namespace: Namespace = "", json: Json = False
) -> None:
    """Serve an answer again; if a night has published meanwhile, after the next `prebake publish`.

    Example: prebake unblock d170ac07a251a00921d4938586169dc3
    """
    from storage.objects import open_objects
    from storage.verdicts import unblock as run

    settings = settings_of(context)
    fingerprints = _fingerprints(settings, which, tenant, namespace)
    run(open_objects(settings.store), fingerprints)
    _show_done("unblocked", fingerprints, json)


def approve(
    context: typer.Context,
    which: Which,
    tenant: Tenant = None,
    namespace: Namespace = "",
    digest: Annotated[
        str | None, typer.Option(help="Approve only if the answer is still this one, as explain shows it.")
    ] = None,
    note: Note = "",
    json: Json = False,
) -> None:
    """Approve the answer that is stored now, for routes with `approval = true`; it is served within seconds.

    A night that bakes another text for the same request needs another approval.

    Example: prebake approve d170ac07a251a00921d4938586169dc3 --digest 5d41402abc4b2a76b9719d911017c592
    """
    from gateway.explain import open_served
    from prebake.verdicts import answer_digest
    from storage.objects import open_objects
    from storage.verdicts import approve as run

    settings, now = settings_of(context), datetime.now(UTC)
    objects = open_objects(settings.store)
    fingerprints = _fingerprints(settings, which, tenant, namespace)
    served = open_served(settings, objects)
    if served is None:
        raise InputError(f"{objects.uri}: no snapshot is published, so there is no answer to approve; run: nightly")
    with served:
        answers = {fingerprint: served.get(fingerprint, now) for fingerprint in fingerprints}
    approved = {}
    for fingerprint, answer in answers.items():
        if answer is None:
            raise InputError(
                f"{fingerprint.hex()}: no good answer is stored; nothing was approved; see: prebake explain"
            )
        approved[fingerprint] = answer_digest(answer)
        if digest not in (None, approved[fingerprint]):
            raise InputError(
                f"{fingerprint.hex()}: its answer is now {approved[fingerprint]}, not {digest}; nothing was approved; "
                "read it again: prebake explain"
            )
    run(objects, approved, now=now, note=note)
    rows = [
        {"fingerprint": key.hex(), "digest": approved[key], "route": answer.route, "message": answer.message}
        for key, answer in answers.items()
        if answer
    ]
    if json:
        print_json({"approved": rows})
    else:
        show_rows(list(rows[0]), [list(row.values()) for row in rows], "approved")


def _fingerprints(settings: Settings, which: Sequence[str], tenant: str | None, namespace: str) -> list[bytes]:
    return [_fingerprint(settings, one, tenant, namespace) for one in which]


def _fingerprint(settings: Settings, which: str, tenant: str | None, namespace: str) -> bytes:
    from prebake.request import Bypass, key_request

    if FINGERPRINT.fullmatch(which):
        return bytes.fromhex(which)
    key = key_request(_body(which), settings.route_table, tenant, namespace)
    if isinstance(key, Bypass):
        raise InputError(f"{which}: never answered from the store ({key}), so it has no fingerprint; see: explain")
    return key.fingerprint


def _body(place: str) -> Any:
    """The JSON of a file or of standard input."""
    name = "standard input" if place == "-" else place
    try:
        return orjson.loads(sys.stdin.buffer.read() if place == "-" else Path(place).read_bytes())
    except OSError as error:
        raise InputError(
            f"{place}: neither a fingerprint (32 hexadecimal digits) nor a file that can be read: {error.strerror}"
        ) from None
    except orjson.JSONDecodeError as error:
        raise InputError(f"{name}: not valid JSON at character {error.pos + 1}: {error.msg}") from None


def _show_done(what: str, fingerprints: Sequence[bytes], json: bool) -> None:
    names = [fingerprint.hex() for fingerprint in fingerprints]
    if json:
        print_json({what: names})
    else:
        typer.echo(f"{what}: {', '.join(names)}; gateways follow within seconds")
