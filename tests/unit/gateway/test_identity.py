"""Who asks is said by a trusted header or by nobody; a user only ever reaches the log as a hash."""

from __future__ import annotations

import orjson
import pytest

from gateway.identity import Identity
from gateway.request_log import without_people
from gateway.upstream import is_inside
from prebake.settings import Gateway

IDENTITY = Identity(Gateway(tenant_header="X-Tenant", user_header="X-User"))


@pytest.mark.parametrize(
    ("headers", "tenant"),
    [
        ([(b"x-tenant", b"acme")], "acme"),
        ([(b"x-tenant", "Zoë".encode())], "Zoë"),
        ([(b"x-tenant", b"")], None),
        ([(b"x-tenant", b"\xff")], None),
        ([(b"x-tenant", b"acme"), (b"x-tenant", b"acme")], None),
        ([(b"tenant", b"acme")], None),
    ],
)
def test_the_tenant_is_what_one_sound_header_says(headers: list[tuple[bytes, bytes]], tenant: str | None) -> None:
    assert IDENTITY.tenant(headers) == tenant


def test_without_a_configured_header_nobody_is_a_tenant() -> None:
    assert Identity(Gateway()).tenant([(b"", b"acme"), (b"x-tenant", b"acme")]) is None


def test_the_user_is_the_headers_if_one_is_configured_else_the_bodys() -> None:
    assert IDENTITY.user([(b"x-user", b"joe")], {"user": "ann"}) == "joe"
    assert IDENTITY.user([], {"user": "ann"}) is None
    assert Identity(Gateway()).user([(b"x-user", b"joe")], {"user": "ann"}) == "ann"
    assert Identity(Gateway()).user([], {"safety_identifier": "ann"}) == "ann"
    assert Identity(Gateway()).user([], {"user": ["ann"]}) is None


def test_a_logged_body_keeps_everything_but_the_people() -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "user: metadata"}], "temperature": 0}
    people = {"user": "joe", "metadata": {"a": "joe"}, "safety_identifier": "joe", "prompt_cache_key": "joe"}
    assert orjson.loads(without_people(orjson.dumps(asked | people))) == asked


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("/v1/models", True),
        ("/v1/models/org/name..v2", True),
        ("/v1/..", False),
        ("/v1/a/../../b", False),
        ("/v1/./a", False),
        ("/v1/..\\a", False),
    ],
)
def test_dots_never_lead_out_of_the_upstreams_address(path: str, inside: bool) -> None:
    assert is_inside(path) is inside
