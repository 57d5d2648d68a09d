"""The commands of the tutorial run, in their order, in a fresh folder beside the checkout's own environment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def bash_blocks(page: Path) -> str:
    """All the page's bash blocks as one script."""
    return "\n".join(re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S))


@pytest.mark.slow
def test_every_command_of_the_tutorial_works_and_the_question_in_capitals_is_a_hit(tmp_path: Path) -> None:
    for name in ("examples", ".venv"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    if not (REPOSITORY / ".venv").is_dir():
        pytest.skip("the tutorial starts from the environment that `make demo` sets up in .venv; there is none here")
    script = tmp_path / "tutorial.sh"
    script.write_text(bash_blocks(REPOSITORY / "docs" / "tutorial.md"), encoding="utf-8")
    said = tmp_path / "said.txt"
    with said.open("wb") as out:
        run = subprocess.Popen(
            ["bash", "-euo", "pipefail", str(script)], cwd=tmp_path, stdout=out, stderr=out, start_new_session=True
        )
    try:
        code = run.wait(timeout=540)
    finally:
        with suppress(ProcessLookupError):  # the gateway in the background, where the script broke off before its end
            os.killpg(run.pid, signal.SIGKILL)
    text = said.read_text()
    assert code == 0, text[-3000:]
    assert "hit - " in text
