"""Dollars: what a token costs online and what a GPU second costs at night."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict, Field


class TokenPrice(BaseModel):
    """What the online path pays for one model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_usd_per_million: float = Field(ge=0, description="Dollars per million prompt tokens.")
    output_usd_per_million: float = Field(ge=0, description="Dollars per million completion tokens.")

    def usd(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Dollars for one request of that many tokens."""
        return (
            prompt_tokens * self.input_usd_per_million + completion_tokens * self.output_usd_per_million
        ) / 1_000_000


class GpuPrice(BaseModel):
    """What the night's machine costs and how fast it is, both as measured by its owner."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    usd_per_hour: float = Field(default=1.0, ge=0, description="Dollars per hour of one machine.")
    prompt_tokens_per_s: float = Field(default=20_000, gt=0, description="Prompt tokens read per second.")
    completion_tokens_per_s: float = Field(default=2_000, gt=0, description="Completion tokens written per second.")

    def seconds(self, prompt_tokens: float, completion_tokens: float) -> float:
        """GPU seconds for one answer in a full batch."""
        return prompt_tokens / self.prompt_tokens_per_s + completion_tokens / self.completion_tokens_per_s

    def usd(self, gpu_s: float) -> float:
        """Dollars for that many GPU seconds."""
        return gpu_s * self.usd_per_hour / 3600


def online_price(prices: Mapping[str, TokenPrice], model: str) -> TokenPrice | None:
    """The price of a model by the first matching name; None where the settings give none."""
    return next((price for pattern, price in prices.items() if fnmatchcase(model, pattern)), None)
