"""Load by wrk. In: an address and prepared requests. Out: requests per second and the time that 99 % stayed below."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks._rivals import debian

CONNECTIONS: Final = 64
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Request:
    """One request, whole: a GET if it has no body."""

    path: str
    body: bytes = b""


@dataclass(frozen=True)
class Load:
    """What wrk saw; ``failed`` counts other statuses than 2xx and connections that broke or timed out."""

    per_s: float
    p99_ms: float
    failed: int


def script(file: Path, requests: Sequence[Request], headers: Mapping[str, str]) -> Path:
    """Write wrk's script: it sends these requests in turn, made ready beforehand so that sending costs nothing."""
    named = ", ".join(f'["{name}"] = "{value}"' for name, value in headers.items())
    made = "".join(
        f'  ready[{number}] = wrk.format("{"POST" if request.body else "GET"}", "{request.path}", {{{named}}}'
        + (f", [==[{request.body.decode()}]==])\n" if request.body else ")\n")
        for number, request in enumerate(requests, 1)
    )
    file.write_text(
        f"local ready, last = {{}}, 0\ninit = function()\n{made}end\n"
        f"request = function()\n  last = last % {len(requests)} + 1\n  return ready[last]\nend\n"
    )
    return file


def load(address: str, lua: Path, seconds: int) -> Load:
    """Run wrk for so many whole seconds, with two threads; raises AssertionError if it does not run."""
    command = [*debian("wrk"), "-t2", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "30s", "--latency"]
    done = subprocess.run([*command, "-s", str(lua), address], capture_output=True, text=True, check=False)
    return _read(done.stdout + done.stderr)


def _read(printed: str) -> Load:
    per_s = re.search(r"Requests/sec:\s*([\d.]+)", printed)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s|m)", printed)
    if per_s is None or p99 is None:
        raise AssertionError(f"wrk did not run: {printed}")
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", printed)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", printed)
    failed = sum(int(number) for found in (refused, broken) if found for number in found.groups())
    return Load(float(per_s[1]), float(p99[1]) * _SECONDS[p99[2]] * 1e3, failed)
