"""The command ``python -m benchmarks``: lists the benchmarks, runs one or all, prints a table or JSON."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import Measured, machine, names


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="prebake beside the plain tools.")
    parser.add_argument("name", nargs="?", choices=[*names(), "all"], help="which one; without: list them")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--size", type=int, help="rows or answers instead of the benchmark's own size")
    parser.add_argument("--traces", type=Path, help="spot: play these traces instead of its own (a folder or file)")
    arguments = parser.parse_args()
    if arguments.name is None:
        for name in names():
            print(f"{name:10} {_title(name)}")
        return 0
    chosen = names() if arguments.name == "all" else [arguments.name]
    results = {}
    for name in chosen:
        if reason := _unavailable(name):
            print(f"benchmark {name}: {reason}", file=sys.stderr)
            if arguments.name == "all":
                continue
            return 1
        options: dict[str, Any] = {"size": arguments.size} if arguments.size else {}
        if arguments.traces and name == "spot":
            options["traces"] = arguments.traces
        measured: Measured = import_module(f"benchmarks.{name}").run(**options)
        results[name] = _as_json(measured)
        _show(name, measured, Console(stderr=arguments.json))
    if arguments.json:
        alone = results[chosen[0]] if arguments.name != "all" else results
        print(json.dumps({"benchmark": arguments.name, **alone, "machine": machine()}))
    return 0


def _title(name: str) -> str:
    """The first line of what a benchmark says of itself, read without what it imports."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


def _unavailable(name: str) -> str:
    """Why it cannot run on this machine; empty where it can, as most can everywhere."""
    try:
        module = import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed; set up what benchmarks need: make .venv/.dev"
    reason: str = getattr(module, "unavailable", str)()
    return reason


def _as_json(measured: Measured) -> dict[str, Any]:
    return {**measured.ratios, "sizes": measured.sizes, "figures": measured.figures}


def _show(name: str, measured: Measured, console: Console) -> None:
    table = Table(title=f"benchmark {name}", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    for label, value in measured.ratios.items():
        table.add_row(f"[bold]{label}", f"[bold]{value:.3f}")
    for label, value in measured.figures.items():
        table.add_row(label, f"{value:,.3f}" if value < 1000 else f"{value:,.0f}")
    for label, size in measured.sizes.items():
        table.add_row(label, f"{size:,}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
