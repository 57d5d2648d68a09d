"""Routes: which requests belong together and what may be done with them. All policy, no mechanism.

A route is one ``[[routes]]`` block of ``prebake.toml``; the first one that matches a request takes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prebake.tables import SKETCH_SIZE


class Night(BaseModel):
    """What the night asks its own model, where that differs from what the user asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float | None = Field(
        default=None, ge=0, description="Temperature of the night's answers; empty: as the request says."
    )
    max_tokens: int = Field(
        default=512, gt=0, description="Longest answer, in tokens, where the request sets no limit of its own."
    )


class Route(BaseModel):
    """One kind of request and its policy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="The route's name: small letters, digits, - and _.")
    models: tuple[str, ...] = Field(
        default=("*",), description="Model names it takes, as clients write them; * and ? stand for any text."
    )
    tenants: tuple[str, ...] = Field(default=("*",), description="Tenants it takes; * and ? stand for any text.")
    system_contains: str = Field(
        default="", description="It takes only requests whose system prompt contains this text; empty: any."
    )
    enabled: bool = Field(default=True, description="Off: its requests go to the model and nothing is baked.")
    scope: Literal["shared", "tenant"] = Field(
        default="tenant",
        description="Who may be given an answer: every tenant (shared), or only the tenant whose users asked.",
    )
    fold: Literal["none", "text"] = Field(
        default="none",
        description="What counts as the same text: the same characters (none), or the same after folding "
        "Unicode forms, case, white space and closing punctuation (text); x² stays x², and 5! stays 5!.",
    )
    knowledge: str = Field(
        default="", description="Version of what the answers rest on; a new value makes every older answer a miss."
    )
    max_temperature: float = Field(
        default=1.0, ge=0, description="Requests hotter than this are never answered from the store."
    )
    ttl: timedelta = Field(
        default=timedelta(days=7),
        gt=timedelta(0),
        description="How long an answer stays good, as ISO 8601 (P7D) or D days HH:MM:SS.",
    )
    min_count: int = Field(default=2, ge=1, description="Fewest requests in the window before a prompt is baked.")
    min_users: int = Field(
        default=2, ge=1, le=SKETCH_SIZE, description="Fewest distinct users before a prompt is baked."
    )
    min_tenants: int = Field(
        default=1,
        ge=1,
        le=SKETCH_SIZE,
        description="Fewest distinct tenants before a prompt of a shared route is baked; those who name none are one.",
    )
    multi_turn: bool = Field(default=False, description="Bake conversations of more than one user message too.")
    coalesce: bool = Field(
        default=False,
        description="Identical requests of one tenant that are in flight at the same time go to the model once, and "
        "each gets the one answer; not where callers ask again to be answered differently.",
    )
    serve_truncated: bool = Field(default=False, description="Serve answers that the length limit cut off.")
    approval: bool = Field(
        default=False, description="Serve only answers that a person has approved (`prebake approve`)."
    )
    near: Literal["off", "record", "serve"] = Field(
        default="off",
        description="Misses with a baked question near by: nothing (off), noted for judging (record), or answered too "
        "where a threshold was calibrated (serve). record and serve need [near] model.",
    )
    never: tuple[str, ...] = Field(
        default=(), description="Never bake prompts that match one of these regular expressions (Python, any case)."
    )
    night: Night = Night()

    @model_validator(mode="after")
    def _tenants_are_counted_where_they_share(self) -> Self:
        if self.min_tenants > 1 and self.scope != "shared":
            raise ValueError(
                f"min_tenants = {self.min_tenants}, but an answer of scope {self.scope!r} has one tenant: nothing "
                'would be baked; leave it at 1, or set scope = "shared"'
            )
        return self


class Routes:
    """The routes in their order, and the names that stand for one model."""

    def __init__(self, routes: Sequence[Route], aliases: Mapping[str, Sequence[str]]) -> None:
        self._routes = tuple(routes)
        self._aliases = {name: tuple(patterns) for name, patterns in aliases.items()}
        self._candidates: dict[tuple[str, str | None], tuple[Route, ...]] = {}
        self.templates: dict[bytes, Any] = {}  # what prebake/request.py remembers; it changes with the routes

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process without what this one remembers."""
        return Routes, (self._routes, self._aliases)

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    def __getitem__(self, name: str) -> Route:
        """The route of that name; KeyError if there is none."""
        for route in self._routes:
            if route.name == name:
                return route
        raise KeyError(name)

    def match(self, model: str, tenant: str | None, messages: Sequence[Any]) -> Route | None:
        """The first route that takes the request."""
        candidates = self._candidates.get((model, tenant))
        if candidates is None:
            candidates = self._remember(model, tenant)
        for route in candidates:
            if not route.system_contains or route.system_contains in _system_text(messages):
                return route
        return None

    def alias(self, model: str) -> str:
        """The one name that stands for this model in every key; its own where the settings give none."""
        return next((name for name, patterns in self._aliases.items() if _fits(model, patterns)), model)

    def _remember(self, model: str, tenant: str | None) -> tuple[Route, ...]:
        candidates = tuple(
            route for route in self._routes if _fits(model, route.models) and _fits(tenant or "", route.tenants)
        )
        # Clients choose model names: invented ones must neither fill the memory nor push out the real ones for good.
        if len(model) + len(tenant or "") <= _LONGEST_REMEMBERED:
            if len(self._candidates) >= _MOST_REMEMBERED:
                self._candidates.clear()
            self._candidates[model, tenant] = candidates
        return candidates


_MOST_REMEMBERED = 10_000
_LONGEST_REMEMBERED = 512


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _system_text(messages: Sequence[Any]) -> str:
    texts = []
    for message in messages:
        if isinstance(message, dict) and message.get("role") in ("system", "developer"):
            content = message.get("content")
            if isinstance(content, str):
                texts.append(content)
            elif isinstance(content, list):
                texts.extend(part["text"] for part in content if isinstance(part, dict) and "text" in part)
    return "\n".join(text for text in texts if isinstance(text, str))
