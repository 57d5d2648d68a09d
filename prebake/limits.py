"""How much of the gateway one client may take: bytes, headers, time. Part of the settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """What a client may send, and how slowly. Beyond it the request is refused and the connection closed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    request_mb: float = Field(default=100, gt=0, description="Longest request, also of other paths, in MB (413).")
    headers: int = Field(default=100, ge=1, description="Most header lines (431).")
    header_kb: float = Field(default=64, ge=4, description="Request line and headers together, in kB (431).")
    slow_s: float = Field(
        default=30,
        gt=0,
        description="A request's headers must be complete after this many seconds, and its body must go on by at least "
        "1 kB per second, counted over as long (408). A client that does not take its answer is left after as long.",
    )
