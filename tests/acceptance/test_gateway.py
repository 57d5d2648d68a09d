"""The gateway in front of vLLM's own server: what the night baked is a hit, the rest is vLLM's answer, unchanged.

So it is for OpenAI's client, for litellm's and for LangChain's chat model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.gateway_bed import Running, answer_to, ask, free_port, gateway_server, publish, running, settings_of

BAKED = "How do I reset my password?"
STORED = "Open the settings."
OPEN = "Where can I find my invoice?"
TOKENS = 12
START_S = 420.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def vllm_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """vLLM's OpenAI server on the CPU with a tiny model."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_model)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    command += ["--enforce-eager", "--max-num-seqs", "8", "--uvicorn-log-level", "warning"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = tmp_path_factory.mktemp("vllm") / "vllm.log"
    with running(command, f"http://127.0.0.1:{port}", "/health", log, environment, start_s=START_S) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(vllm_server: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway in front of it, with one baked answer."""
    folder = tmp_path_factory.mktemp("gateway")
    publish(folder, [answer_to(settings_of(folder), ask(BAKED, temperature=0), STORED)])
    with gateway_server(folder, vllm_server.url) as server:
        yield server


def test_what_was_baked_is_a_hit_and_the_rest_is_vllms_own_answer(gateway: Running, vllm_server: Running) -> None:
    hit = gateway.client.chat.completions.create(**ask(BAKED, temperature=0))
    assert hit.choices[0].message.content == STORED
    question = ask(OPEN, temperature=0, max_tokens=TOKENS)
    raw = gateway.client.chat.completions.with_raw_response.create(**question)
    assert raw.headers["x-prebake"] == "miss"
    through, direct = raw.parse(), vllm_server.client.chat.completions.create(**question)
    ChatCompletion.model_validate(through.to_dict())
    volatile = {"id", "created"}
    assert through.model_dump(exclude=volatile) == direct.model_dump(exclude=volatile)


def test_a_hit_has_every_field_that_vllms_answer_must_have(gateway: Running, vllm_server: Running) -> None:
    def required(answer: ChatCompletion) -> set[str]:
        return {name for name, field in ChatCompletion.model_fields.items() if field.is_required()} & set(
            answer.to_dict()
        )

    hit = gateway.client.chat.completions.create(**ask(BAKED, temperature=0))
    miss = vllm_server.client.chat.completions.create(**ask(OPEN, max_tokens=3))
    assert required(hit) == required(miss)


def test_vllms_stream_passes_through_and_adds_up_to_its_answer(gateway: Running) -> None:
    question = ask(OPEN, temperature=0, max_tokens=TOKENS)
    whole = gateway.client.chat.completions.create(**question).choices[0].message.content
    options = {"include_usage": True}
    chunks = list(gateway.client.chat.completions.create(**question, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == TOKENS


def by_openai(url: str, question: str) -> tuple[str, str]:
    """The answer that OpenAI's client reads from a server, whole and streamed."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=0)
    request = asked(question)
    whole = client.chat.completions.create(**request).choices[0].message.content
    chunks = client.chat.completions.create(**request, stream=True)
    return whole or "", "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def by_litellm(url: str, question: str) -> tuple[str, str]:
    """The answer that litellm reads from a server, whole and streamed."""
    import litellm

    request = asked(question, model="openai/tiny")
    server = {"api_base": f"{url}/v1", "api_key": "sk-test", "max_retries": 0}
    whole = litellm.completion(**request, **server).choices[0].message.content
    chunks = list(litellm.completion(**request, **server, stream=True))
    return whole, litellm.stream_chunk_builder(chunks).choices[0].message.content


def by_langchain(url: str, question: str) -> tuple[str, str]:
    """The answer that LangChain's chat model reads from a server, whole and streamed."""
    from langchain_openai import ChatOpenAI

    fields = {name: value for name, value in asked(question).items() if name != "messages"}
    model = ChatOpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=0, **fields)
    return str(model.invoke(question).content), "".join(str(part.content) for part in model.stream(question))


def asked(question: str, model: str = "tiny") -> dict[str, Any]:
    """The fields of a request; those of the baked question must be just those it was baked for."""
    limit = {} if question == BAKED else {"max_tokens": TOKENS}
    return ask(question, model, temperature=0, **limit)


@pytest.mark.parametrize("read", [by_openai, by_litellm, by_langchain])
def test_each_client_reads_hits_and_vllms_own_answers_whole_and_streamed(
    read: Callable[[str, str], tuple[str, str]],
    gateway: Running,
    vllm_server: Running,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # the price list it carries, nothing downloaded
    assert read(gateway.url, BAKED) == (STORED, STORED)
    whole, streamed = read(gateway.url, OPEN)
    assert whole == streamed != ""
    assert (whole, streamed) == read(vllm_server.url, OPEN)


def test_vllms_errors_and_other_paths_pass_through(gateway: Running, vllm_server: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        gateway.client.chat.completions.create(**ask(OPEN, "nobody"))
    with pytest.raises(openai.BadRequestError):
        gateway.client.chat.completions.create(**ask(OPEN, max_tokens=100_000))
    assert [model.id for model in gateway.client.models.list()] == ["tiny"]
    through, direct = (
        httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 3, "seed": 1})
        for server in (gateway, vllm_server)
    )
    assert through.json()["choices"] == direct.json()["choices"]
