"""Whether to trace: OpenTelemetry's standard variables say so, with the extra ``otel``. In: the environment.

Without a variable that names where traces go there is no tracing and no cost. What is traced: ``spans``.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.spans import Tracing

# Either says where traces go (OpenTelemetry, "Environment Variable Specification").
WHERE = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

logger = logging.getLogger(__name__)


def wanted() -> bool:
    """Whether the environment asks for traces."""
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter == "none" or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return exporter == "otlp" or any(os.environ.get(name) for name in WHERE)


def open_tracing() -> Tracing | None:
    """This process's tracing; None where the environment wants none, or the extra is not installed (logged)."""
    if not wanted():
        return None
    try:
        from gateway.spans import Tracing  # half a second of imports that only tracing needs
    except ImportError as error:
        logger.error("OTEL_...: traces are wanted, but %s is missing; install prebake with its extra otel", error.name)
        return None
    return Tracing()
