"""One upstream for all of the gateway's tests; stores and gateways are made by the tests that need their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_bed import Running, answer_to, ask, gateway_server, publish, settings_of, upstream_server

CAPITAL = "What is the capital of France?"
TOOL_QUESTION = "What is the weather in Paris?"
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}},
    {"id": "call_2", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lyon"}'}},
]
# As the client's helper writes it for a class `Capital` with a field `city`.
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "Capital",
        "strict": True,
        "schema": {
            "description": "A structured answer.",
            "properties": {"city": {"title": "City", "type": "string"}},
            "required": ["city"],
            "title": "Capital",
            "type": "object",
            "additionalProperties": False,
        },
    },
}
PARIS = 'Paris. "Ville Lumière" ✨\nOn the Seine.'


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The model server."""
    with upstream_server(tmp_path_factory.mktemp("upstream")) as server:
        yield server


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with settings and a published store."""
    folder = tmp_path_factory.mktemp("store")
    settings = settings_of(folder)
    tool_message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None, "tool_calls": CALLS}
    thought = {"role": "assistant", "content": "42", "refusal": None, "reasoning_content": "6 times 7"}
    refusal = {"role": "assistant", "content": None, "refusal": "I will not."}
    structured = ask("The capital of France, structured", response_format=SCHEMA)
    publish(
        folder,
        [
            answer_to(settings, structured, '{"city": "Paris"}'),
            answer_to(settings, ask(CAPITAL), PARIS),
            answer_to(settings, ask(TOOL_QUESTION, tools=TOOLS), tool_message),
            answer_to(settings, ask("Six times seven?"), thought),
            answer_to(settings, ask("Do evil"), refusal),
            answer_to(settings, ask("My secret?", model="mine"), "A's secret", tenant="a"),
        ],
    )
    return folder


@pytest.fixture(scope="session")
def gateway(store: Path, upstream: Running) -> Iterator[Running]:
    """A gateway over that store, behind a proxy that names tenants."""
    with gateway_server(store, upstream.url, tenant_header="x-tenant") as server:
        yield server
