"""The programs that the gateway is measured beside, installed once under ``bench-cache/``.

In: nothing. Out: paths of programs. nginx and wrk are taken from the machine or, without changing it, unpacked from
Debian's packages; LiteLLM's proxy and the servers that we did not choose get virtual environments of their own, because
their requirements are not ours.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

CACHE: Final = Path("bench-cache")
_PACKAGES: Final = {"nginx": ("nginx",), "wrk": ("wrk", "libluajit-5.1-2")}
_LITELLM: Final = ("litellm[proxy]",)
_SERVERS: Final = ("granian[uvloop]", "uvicorn[standard]", "starlette")


class UnavailableError(Exception):
    """A program is not there and cannot be had; the message says which and how to get it."""


def missing(*programs: Callable[[], object]) -> str:
    """Why one of these programs cannot be had; empty where all can."""
    try:
        for program in programs:
            program()
    except UnavailableError as error:
        return str(error)
    return ""


@cache
def debian(name: str) -> list[str]:
    """The command that runs nginx or wrk."""
    if found := shutil.which(name) or shutil.which(name, path="/usr/sbin"):
        return [found]
    root = (CACHE / name).resolve()
    if not any(root.glob(f"usr/*bin/{name}")):
        _unpack(_PACKAGES[name], root)
    program = next(root.glob(f"usr/*bin/{name}"))
    libraries = ":".join(str(folder) for folder in root.glob("usr/lib/*-linux-gnu"))
    return ["env", f"LD_LIBRARY_PATH={libraries}", str(program)] if libraries else [str(program)]


@cache
def litellm() -> str:
    """The program of LiteLLM's proxy."""
    return str(_environment("litellm", _LITELLM) / "litellm")


@cache
def servers() -> str:
    """The Python that has granian, uvicorn and Starlette."""
    return str(_environment("servers", _SERVERS) / "python")


def _environment(name: str, packages: tuple[str, ...]) -> Path:
    """The programs of an environment that has these packages."""
    home = (CACHE / name).absolute()
    done = home / "installed"
    if not done.exists():
        shutil.rmtree(home, ignore_errors=True)
        remedy = "pip install " + " ".join(f"'{package}'" for package in packages)
        _run(remedy, [sys.executable, "-m", "venv", str(home)])
        _run(remedy, [str(home / "bin" / "pip"), "install", "--quiet", *packages])
        done.touch()
    return home / "bin"


def _unpack(packages: tuple[str, ...], root: Path) -> None:
    remedy = f"apt-get install {packages[0]}"
    if shutil.which("apt-get") is None:
        raise UnavailableError(f"{packages[0]} is not there: install it, on Debian by `{remedy}`")
    downloads = root / "packages"
    downloads.mkdir(parents=True, exist_ok=True)
    _run(remedy, ["apt-get", "download", *packages], downloads)
    for package in downloads.glob("*.deb"):
        _run(remedy, ["dpkg", "-x", str(package), str(root)])


def _run(remedy: str, command: list[str], folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UnavailableError(f"`{' '.join(command[:3])}` failed ({' '.join(said)}); try `{remedy}` by hand")
