"""Every command that a page tells people to type exists, with the options and the arguments it is given.

Here they are only parsed. Run are the tutorial's (``tests/acceptance/test_tutorial.py``) and, by
``tests/integration/docs/test_code_in_pages.py``, the README's under "Use it" and the gateway page's for one answer and
for an admin's key; what ``make demo`` calls is run by ``tests/acceptance/test_demo.py``. All others are run by no test
as the page has them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from prebake.cli import app

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*/README.md"))]
GENERATED = "commands.md"
BENCHMARKS = {file.stem for file in (ROOT / "benchmarks").glob("[!_]*.py")} | {"all"}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def commands(page: Path) -> Iterator[str]:
    """What stands in fenced blocks and in back-ticks, line by line, continued lines joined, pipes and more cut off."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    for line in [*"\n".join(blocks).replace("\\\n", " ").splitlines(), *spans]:
        yield re.sub(r"^(\w+=\S+ )+|^\.venv/bin/", "", line.strip())


def those(begin: str) -> list[object]:
    """The commands of all pages that begin so."""
    found = [(page, line) for page in PAGES if page.name != GENERATED for line in commands(page)]
    return [pytest.param(line, id=f"{page.name}: {line}") for page, line in found if line.startswith(begin)]


def words(line: str) -> list[str]:
    """As a shell has them, up to what follows the command."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    taken = []
    for word in lexer:
        if word[0] in "|&;<>":
            break
        taken.append(word)
    return taken


@pytest.mark.parametrize("line", those("prebake "))
def test_a_prebake_command_is_one_that_there_is(line: str) -> None:
    arguments = ["1" if word == "N" else word for word in words(line)[1:]]
    group = typer.main.get_command(app)
    context = group.context_class(group, info_name="prebake")
    _, rest, _ = group.make_parser(context).parse_args(list(arguments))  # type: ignore[attr-defined]
    name, command, rest = group.resolve_command(context, rest)  # type: ignore[attr-defined]
    if rest:  # else it is only named
        command.parse_args(command.context_class(command, info_name=name, parent=context), list(rest))


@pytest.mark.parametrize("line", those("make "))
def test_a_make_target_is_one_that_there_is(line: str) -> None:
    assert words(line)[1] in TARGETS


@pytest.mark.parametrize("line", those("python -m benchmarks"))
def test_a_benchmark_is_one_that_there_is(line: str) -> None:
    for name in words(line)[3:4]:
        assert name in BENCHMARKS
