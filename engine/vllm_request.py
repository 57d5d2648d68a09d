"""From the canonical request to what vLLM is asked: sampling parameters and prompt tokens, as vLLM's own server does.

The parameters are read by vLLM's own request class, so that a prompt means at night what it means by day; it is read
once per set of parameters. Text that looks like a control token of the model is taken as text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Final

import orjson
from vllm import SamplingParams
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers import ChatParams, TokenizeParams
from vllm.utils.mistral import is_mistral_tokenizer
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from engine.interface import Prompt

# What the request class knows and an answer in the store can honour; OpenAI's fields and vLLM's own.
_HONOURED: Final = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "max_tokens", "min_tokens", "seed", "stop", "stop_token_ids",
        "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "bad_words", "allowed_token_ids",
        "ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens",
        "response_format", "structured_outputs", "chat_template_kwargs", "documents", "reasoning_effort",
        "repetition_detection", "parallel_tool_calls",
    }
)  # fmt: skip
# With one of these, prompt + partial answer is not the state the engine was in: such a prompt starts again.
_NEVER_RESUMED: Final = frozenset(
    {
        "stop", "seed", "min_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty", "bad_words",
        "response_format", "structured_outputs", "repetition_detection",
    }
)  # fmt: skip


class UnansweredError(ValueError):
    """The request cannot be answered by this engine; the message says why."""


@dataclass(frozen=True)
class Asked:
    """One set of parameters as vLLM wants it; ``resumable``: whether a partial answer may be gone on from."""

    sampling: SamplingParams
    chat: ChatParams
    tokens: TokenizeParams
    resumable: bool


class RequestReader:
    """Reads requests for one loaded model. ``llm`` is vLLM's LLM; ``logprobs``: whether to have them counted."""

    def __init__(self, llm: Any, *, logprobs: bool) -> None:
        self._logprobs = logprobs
        self._renderer = llm.renderer
        self._model_config = llm.model_config
        self._defaults = llm.model_config.get_diff_sampling_param()
        self._tokenizer = llm.get_tokenizer()
        # Mistral's own tokenizer makes tokens of messages without a text in between: nothing to be misread.
        self._tokenizes_itself = is_mistral_tokenizer(self._tokenizer)
        self._control = None if self._tokenizes_itself else _any_of(self._tokenizer.all_special_tokens)
        # Private-use characters around a random word: no template changes them, no user can guess them.
        self._mark = f"\ue000{secrets.token_hex(8)}:"
        self._asked = lru_cache(maxsize=256)(self._read_params)

    def read(self, prompt: Prompt) -> tuple[Asked, dict[str, Any]]:
        """The parameters and the engine's input for a prompt. Raises whatever vLLM or the chat template raise."""
        request = orjson.loads(prompt.request)
        params = orjson.dumps(request.get("params", {}), option=orjson.OPT_SORT_KEYS)
        asked = self._asked(params, prompt.max_tokens, prompt.temperature)
        return asked, self._render(request["messages"], asked)

    def with_partial(self, engine_input: dict[str, Any], token_ids: tuple[int, ...]) -> dict[str, Any]:
        """The engine's input, gone on by tokens that were generated before."""
        limits = TokenizeParams(max_total_tokens=self._model_config.max_model_len, add_special_tokens=False)
        return self._from_tokens([*engine_input["prompt_token_ids"], *token_ids], limits)

    def text(
        self, prompt_ids: list[int], token_ids: tuple[int, ...], sampling: SamplingParams, *, stopped: bool
    ) -> str:
        """The text of an answer that was generated in two goes, as vLLM would have written it in one."""
        request = SimpleNamespace(
            request_id="", prompt_token_ids=prompt_ids, prompt_embeds=None, sampling_params=sampling
        )
        detokenizer = IncrementalDetokenizer.from_new_request(self._tokenizer, request)
        detokenizer.update(list(token_ids), stopped)
        text: str = detokenizer.get_next_output_text(finished=True, delta=False)
        return text

    def _read_params(self, params: bytes, max_tokens: int, temperature: float | None) -> Asked:
        fields = orjson.loads(params)
        _check_honoured(fields)
        if temperature is not None:
            fields["temperature"] = temperature
        request = ChatCompletionRequest(messages=[{"role": "user", "content": ""}], model="", **fields)
        sampling = request.to_sampling_params(fields.get("max_tokens", max_tokens), self._defaults)
        tools = [tool.model_dump() for tool in request.tools] if request.tools else None
        template = {"tools": tools, "tokenize": self._tokenizes_itself}
        if self._logprobs:
            sampling.logprobs, sampling.flat_logprobs = 0, True  # the chosen token's own, nothing more
        # Shared by all prompts that ask so: vLLM gives each a shallow copy (its request class sets skip_clone). Enough,
        # for to what the fields hold it only adds the model's own end tokens, the same ones each time.
        return Asked(
            sampling,
            request.build_chat_params(None, "auto").with_defaults(template),
            request.build_tok_params(self._model_config),
            resumable=not _NEVER_RESUMED & fields.keys(),
        )

    def _render(self, messages: list[dict[str, Any]], asked: Asked) -> dict[str, Any]:
        hidden = list[str]()
        if self._control is not None:
            messages = [_map_texts(message, lambda text: self._hide(text, hidden)) for message in messages]
        if not hidden:
            _, (engine_input,) = self._renderer.render_chat([messages], asked.chat, asked.tokens)
            return dict(engine_input)
        _, rendered = self._renderer.render_messages(messages, asked.chat)
        return self._from_tokens(list(self._encode(rendered["prompt"], hidden)), asked.tokens)

    def _hide(self, text: str, hidden: list[str]) -> str:
        def mark(match: re.Match[str]) -> str:
            hidden.append(match[0])
            return f"{self._mark}{len(hidden) - 1}\ue001"

        return self._control.sub(mark, text) if self._control is not None else text

    def _encode(self, rendered: str, hidden: list[str]) -> Iterator[int]:
        """Tokens of the rendered text, with what was hidden spelt letter by letter: so no control token arises."""
        for position, piece in enumerate(re.split(f"{self._mark}(\\d+)\ue001", rendered)):
            for text in [piece] if position % 2 == 0 else hidden[int(piece)]:
                yield from self._tokenizer.encode(text, add_special_tokens=False)

    def _from_tokens(self, token_ids: list[int], tokens: TokenizeParams) -> dict[str, Any]:
        (engine_input,) = self._renderer.render_cmpl([{"prompt_token_ids": token_ids}], tokens)
        return dict(engine_input)


def _check_honoured(fields: dict[str, Any]) -> None:
    if "tools" in fields and fields.get("tool_choice") != "none":
        raise UnansweredError("tools: calling tools needs a tool-call parser, which the night does not run")
    unknown = sorted(fields.keys() - _HONOURED - {"tools", "tool_choice"})
    if unknown:
        raise UnansweredError(f"parameter {unknown[0]!r}: the night's engine cannot honour it")


def _any_of(words: list[str]) -> re.Pattern[str] | None:
    words = sorted(filter(None, words), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, words))) if words else None


def _map_texts(message: dict[str, Any], change: Any) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": change(content)}
    if isinstance(content, list):
        return {**message, "content": [{**part, "text": change(part["text"])} for part in content]}
    return message
