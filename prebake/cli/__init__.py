"""The command line: every step of the night by its name, for people by default and for programs with ``--json``."""

from __future__ import annotations

import sys

import storage  # noqa: F401 - chooses the allocator of Arrow
from prebake.cli.app import app
from prebake.cli.output import complain
from prebake.errors import PrebakeError


def main() -> None:
    """Run the command; a known trouble is one line and its exit code, never a traceback (unless ``--debug``)."""
    try:
        app()
    except PrebakeError as error:
        if "--debug" in sys.argv:
            raise
        complain(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away (prebake sql ... | head): nothing to say to anybody.
        sys.stderr.close()
        sys.exit(141)
