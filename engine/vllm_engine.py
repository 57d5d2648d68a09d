"""vLLM in this process, driven step by step. Every private seam of vLLM is in the files ``engine/vllm_*.py``."""

from __future__ import annotations

import dataclasses
import difflib
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

from vllm import LLM, EngineArgs, SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError

from engine.interface import Completion, Partial, Prompt, Status
from engine.vllm_request import RequestReader
from prebake.errors import SettingsError
from prebake.settings import Engine as EngineSettings

# "auto" lets the first request choose for all, and a later one that needs another backend fails (vllm#43920).
_BACKEND: Final = {"backend": "xgrammar"}
# Arguments that vLLM takes and that would be without effect here, and what to do instead.
_WITHOUT_EFFECT: Final = {
    "reasoning_parser": "a night stores the text as it is generated, thoughts included; turn thinking off by the "
    "requests' chat_template_kwargs or take a model that does not think",
    "enable_lora": "requests have no way to name an adapter; merge it into the model's folder",
}
_FINISHED: Final = {"stop": Status.ANSWERED, "length": Status.TRUNCATED}


@dataclass
class _Flight:
    """One prompt inside the engine."""

    prompt: Prompt
    resumed: Partial | None
    sampling: SamplingParams
    added_s: float
    state: Any  # vLLM's own, with what has arrived of the answer


class VllmEngine:
    """The Engine interface on one vLLM ``LLM``, made from settings or handed in."""

    def __init__(self, settings: EngineSettings, llm: LLM | None = None) -> None:
        self._llm = llm or LLM(**_arguments(settings))
        self._core = self._llm.llm_engine
        self._logprobs = settings.logprobs
        self._reader = RequestReader(self._llm, logprobs=settings.logprobs)
        self._flights: dict[str, _Flight] = {}
        self._refused: list[Completion] = []
        self.model = _name(settings)
        self.restarts = 0  # it lives and dies with its process
        self.capacity = settings.max_in_flight or 2 * self._core.vllm_config.scheduler_config.max_num_seqs

    @property
    def in_flight(self) -> int:
        """Prompts that were added and have not come back."""
        return len(self._flights) + len(self._refused)

    @property
    def alive(self) -> bool:
        """Whether vLLM's own processes live; a blocked step() does not find out (seen with vLLM 0.32 and 0.33)."""
        resources = getattr(self._core.engine_core, "resources", None)
        return not getattr(resources, "engine_dead", False)

    @property
    def limits(self) -> dict[str, int]:
        """The engine arguments that memory hangs on, as they are in force: smaller ones need less."""
        scheduler = self._core.vllm_config.scheduler_config
        limits = {"max_num_seqs": scheduler.max_num_seqs}
        if scheduler.enable_chunked_prefill:  # without, a prompt must fit into one batch
            limits["max_num_batched_tokens"] = scheduler.max_num_batched_tokens
        return limits

    def warm_up(self) -> None:
        """Generate one token: the first step of a process compiles, takes seconds, and cannot be stopped."""
        sampling = SamplingParams(max_tokens=1, logprobs=0 if self._logprobs else None)
        self._llm.generate({"prompt_token_ids": [0]}, sampling, use_tqdm=False)

    def add(self, prompt: Prompt) -> None:
        """Take a prompt; one that vLLM does not accept comes back from step() as refused."""
        try:
            asked, engine_input = self._reader.read(prompt)
            sampling, resumed = asked.sampling, None
            if asked.resumable and self._fits(prompt.partial, sampling):
                resumed = prompt.partial
                engine_input = self._reader.with_partial(engine_input, resumed.token_ids)
                sampling = sampling.clone()
                sampling.max_tokens -= len(resumed.token_ids)
            request_id = self._core.add_request(prompt.key.hex(), engine_input, sampling)
        except EngineDeadError:
            raise
        except Exception as error:  # noqa: BLE001 - users' text through the model's own template may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            self._refused.append(Completion(prompt.key, Status.REFUSED, error=reason))
        else:
            state = self._core.output_processor.request_states[request_id]
            # Keep vLLM from spelling each token beside its log-probability: of those only the sum is wanted.
            state.logprobs_processor.tokenizer = None
            self._flights[prompt.key.hex()] = _Flight(prompt, resumed, sampling, time.monotonic(), state)

    def step(self) -> list[Completion]:
        """What finished in the next step of the engine; blocks for that long."""
        done, self._refused = self._refused, []
        if not self._flights:
            return done
        return done + [self._completion(output) for output in self._core.step() if output.finished]

    def salvage(self) -> list[Completion]:
        """Stop all that is in flight and give it back; the engine can be used again."""
        done, self._refused = self._refused, []
        # abort_request() would drop the tokens; a sleep that aborts hands them back as finished outputs.
        asleep = self._sleeps()
        with suppress(EngineDeadError):
            while self._flights:
                done += self.step()
            if asleep:
                self._core.wake_up(["scheduling"])
        return done + self.remains()

    def remains(self) -> list[Completion]:
        """What there is of each answer when the core has died: all that it had sent."""
        flights, self._flights = self._flights, {}
        now = time.monotonic()
        return [
            Completion(
                flight.prompt.key,
                Status.PARTIAL,
                engine_s=now - flight.added_s,
                partial=self._so_far(
                    flight,
                    flight.state.detokenizer.output_token_ids,
                    flight.state.logprobs_processor.cumulative_logprob,
                ),
            )
            for flight in flights.values()
        ]

    def _sleeps(self) -> bool:
        """Abort all; False if the core has had a signal of its own: then it does so by itself, and takes no orders."""
        try:
            self._core.sleep(level=0, mode="abort")
        except Exception:  # noqa: BLE001 - vLLM has no type for a call that is turned down
            return False
        return True

    def close(self) -> None:
        """End vLLM's processes."""
        self._core.engine_core.shutdown()

    def _fits(self, partial: Partial | None, sampling: SamplingParams) -> TypeGuard[Partial]:
        """Whether it is ours to go on from, and leaves something to do."""
        return partial is not None and partial.model == self.model and 0 < len(partial.token_ids) < sampling.max_tokens

    def _completion(self, output: Any) -> Completion:
        flight = self._flights.pop(output.request_id)
        answer = output.outputs[0]
        so_far = self._so_far(flight, answer.token_ids, answer.cumulative_logprob)
        engine_s = time.monotonic() - flight.added_s
        if answer.finish_reason == "abort":
            return Completion(flight.prompt.key, Status.PARTIAL, engine_s=engine_s, partial=so_far)
        token_ids, logprob_sum = so_far.token_ids, so_far.logprob_sum
        resumed_tokens = len(token_ids) - len(answer.token_ids)
        status = _FINISHED.get(answer.finish_reason)
        if status is None:
            error = f"the engine ended it with finish reason {answer.finish_reason!r}"
            return Completion(flight.prompt.key, Status.REFUSED, error=error, engine_s=engine_s)
        return Completion(
            flight.prompt.key,
            status,
            finish_reason=answer.finish_reason,
            message={"role": "assistant", "content": self._text(flight, output, token_ids)},
            prompt_tokens=len(output.prompt_token_ids) - resumed_tokens,
            completion_tokens=len(token_ids),
            mean_logprob=logprob_sum / len(token_ids) if logprob_sum is not None and token_ids else None,
            engine_s=engine_s,
            resumed_tokens=resumed_tokens,
            restarted=flight.resumed is None and flight.prompt.partial is not None,
        )

    def _so_far(self, flight: _Flight, token_ids: Sequence[int], logprob_sum: float | None) -> Partial:
        """These tokens, behind those that the answer went on from."""
        before = flight.resumed or Partial(self.model, (), 0.0)
        return Partial(self.model, (*before.token_ids, *token_ids), _add(before.logprob_sum, logprob_sum))

    def _text(self, flight: _Flight, output: Any, token_ids: tuple[int, ...]) -> str:
        answer = output.outputs[0]
        if flight.resumed is None:
            return str(answer.text)
        prompt_ids = output.prompt_token_ids[: -len(flight.resumed.token_ids)]
        return self._reader.text(prompt_ids, token_ids, flight.sampling, stopped=answer.finish_reason == "stop")


def _arguments(settings: EngineSettings) -> dict[str, Any]:
    """LLM's arguments; SettingsError naming the nearest where vLLM knows no such argument."""
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    for name in settings.args:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "see vLLM's EngineArgs for what there is"
            raise SettingsError(f"engine.args: vLLM knows no argument {name!r}; {hint}")
    for name, remedy in _WITHOUT_EFFECT.items():
        if settings.args.get(name):
            raise SettingsError(f"engine.args: {name!r} has no effect on a night: {remedy}")
    if "model" in settings.args:
        raise SettingsError("engine.args: 'model' belongs one level up, in engine.model")
    structured = _BACKEND | settings.args.get("structured_outputs_config", {})
    return {"model": settings.model, **settings.args, "structured_outputs_config": structured}


def _name(settings: EngineSettings) -> str:
    served = settings.args.get("served_model_name")
    if served:
        return str(served if isinstance(served, str) else served[0])
    return Path(settings.model).name if Path(settings.model).is_dir() else settings.model


def _add(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before + after
