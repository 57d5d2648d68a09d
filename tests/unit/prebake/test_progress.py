"""What a person sees of a bake: one line of 80 columns in a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console

from prebake.progress import Bars, bake_bar
from prebake.pulse import Pulse

_LARGEST = Pulse(
    answers=9_999_998,
    planned=9_999_999,
    tokens_per_s=999_999,
    seconds_left=86_399,
    usd=9_999.99,
    budget_usd=9_999.99,
)


def _drawn(pulse: Pulse) -> str:
    paper = StringIO()
    Console(file=paper, width=80).print(bake_bar(pulse))
    return paper.getvalue()


def test_the_bar_says_answers_speed_time_left_and_money() -> None:
    line = _drawn(Pulse(answers=1024, planned=2500, tokens_per_s=2130, seconds_left=131, usd=0.12, budget_usd=5))
    assert re.fullmatch(r"bake ━+.* 1,024/2,500 2,130 tok/s 2m11s left \$0.120 of \$5.00\n", line)


@pytest.mark.parametrize(
    "pulse", [_LARGEST, Pulse(), Pulse(planned=9_999_999, budget_usd=9_999.99)], ids=["large", "empty", "loading"]
)
def test_the_bar_fits_80_columns_and_leaves_nothing_out(pulse: Pulse) -> None:
    (line,) = _drawn(pulse).splitlines()
    assert len(line) <= 80
    assert "…" not in line
    assert f"{pulse.answers:,}/{pulse.planned:,}" in line


def test_a_terminal_of_80_columns_shows_the_bar_and_keeps_the_last_one() -> None:
    program = (
        "from prebake.progress import Bars; from prebake.pulse import Pulse\n"
        "with Bars().watch(lambda: Pulse(answers=7, planned=9, tokens_per_s=5, usd=1, budget_usd=2)): pass\n"
        "print('result')"
    )
    ours, theirs = pty.openpty()
    run = subprocess.run(
        [sys.executable, "-c", program],
        stderr=theirs,
        stdout=subprocess.PIPE,
        env=os.environ | {"COLUMNS": "80", "TERM": "xterm"},
        check=True,
        timeout=120,
    )
    os.close(theirs)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(ours, 65_536).decode())
    os.close(ours)
    lines = [line for line in re.split(r"[\r\n]+", shown) if line.strip()]
    assert lines[-1].split() == ["bake", lines[-1].split()[1], "7/9", "5", "tok/s", "?", "left", "$1.00", "of", "$2.00"]
    assert max(map(len, lines)) <= 80
    assert run.stdout == b"result\n"


def test_without_a_terminal_a_plain_line_comes_now_and_then_and_a_last_one_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = []

    def look() -> Pulse:
        seen.append(None)
        return Pulse(answers=len(seen), planned=10_000, tokens_per_s=1, seconds_left=9, usd=1, leases_lost=1)

    with Bars(line_every_s=0.001).watch(look):
        while len(seen) < 3:
            pass
    with Bars(line_every_s=3600).watch(lambda: Pulse(answers=10_000, planned=10_000)):
        pass
    shown = capsys.readouterr()
    assert shown.out == ""
    *lines, last = shown.err.splitlines()
    assert lines == [
        f"bake: {n} of 10,000 answers, 1 tokens/s, 9s left, $1.00, leases lost: 1" for n in range(1, len(seen) + 1)
    ]
    assert last == "bake: 10,000 of 10,000 answers, no engine yet, ? left, $0.00"
