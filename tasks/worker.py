"""A bake worker as a process of its own: settings come by standard input, and its end means that the night has ended.

``python -m tasks.worker PLAN RUN`` is what ``tasks/processes.py`` starts; by hand, ``prebake bake`` does the same.
"""

from __future__ import annotations

import sys
import threading

from prebake.errors import PrebakeError
from prebake.settings import Settings
from prebake.stop import Stop, stop_on_signals
from storage.store import open_store
from tasks.bake import bake
from tasks.owner import owner_name


def main(plan_id: str, run_id: str) -> int:
    """Bake what is left of the plan; the exit code is that of the error, whose sentence is the last line of output."""
    settings = Settings.model_validate_json(sys.stdin.readline())
    with stop_on_signals() as stop:
        threading.Thread(target=_stop_with_the_night, args=(stop,), daemon=True).start()
        try:
            with open_store(settings) as store:
                bake(store, settings, plan_id, run_id=run_id, owner=owner_name(), stop=stop)
        except PrebakeError as error:
            print(error, flush=True)
            return error.exit_code
    return 0


def _stop_with_the_night(stop: Stop) -> None:
    sys.stdin.read()
    stop.request("the night that started this worker has ended")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
