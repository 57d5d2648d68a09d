"""The engine's own process: ``python -m engine.host FD`` takes prompts from a socket and sends completions back.

It leads a process group of its own, so that it and all that vLLM starts can be ended together. When the other end of
the socket is gone, or vLLM's core dies under it, it ends the whole group at once. One process alone stands outside: it
removes the shared memory that a killed group leaves behind.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Final, NoReturn

from engine.process import SEE_LOG
from prebake.errors import EngineError, PrebakeError
from prebake.settings import Engine as EngineSettings

BEAT_S: Final = 1.0
_speaking: Final = threading.Lock()  # messages of two threads must not mix


def main() -> None:
    """Serve the engine on the socket whose file descriptor is the first argument."""
    # A signal to all processes, as systemd sends, ends vLLM's; this one stays, to tell what there was of each answer.
    # A handler, and not SIG_IGN, which all that vLLM starts would inherit.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    socket = Connection(int(sys.argv[1]))
    settings: EngineSettings = socket.recv()
    orders: queue.Queue[tuple[str, Any]] = queue.Queue()
    _track_resources()
    threading.Thread(target=_receive, args=(socket, orders), daemon=True).start()
    try:
        engine = _open(settings, socket)
    except PrebakeError as error:
        _say(socket, "failed", error)
        return
    _say(socket, "ready", (engine.model, engine.capacity, engine.limits))
    try:
        _serve(engine, socket, orders)
    except Exception:  # noqa: BLE001 - whatever it is, this engine is lost; the log has the traceback
        traceback.print_exc()
        sys.stderr.flush()
        _tell_and_end(engine, socket)
    engine.close()
    _say(socket, "closed")


def _open(settings: EngineSettings, socket: Connection) -> Any:
    from engine import vllm_engine  # slow, and the environment must be set first

    try:
        engine = vllm_engine.VllmEngine(settings)
        threading.Thread(target=_watch, args=(engine, socket), daemon=True).start()
        engine.warm_up()
        return engine
    except PrebakeError:
        raise
    except Exception as error:  # noqa: BLE001 - vLLM raises anything while it loads; the log has the traceback
        traceback.print_exc()
        reason = " ".join(str(error).split()) or type(error).__name__
        if SEE_LOG in reason:
            sys.stderr.flush()
            _end_group()  # the other end reads the log of the dead
        raise EngineError(f"engine.model {settings.model!r}: vLLM cannot load it: {reason[:500]}") from None


def _track_resources() -> None:
    """Start Python's resource tracker outside the group, where it outlives us by the moment it needs.

    All processes of the group hold the pipe that it reads. When the last has ended, however that was, it removes what
    they had made in /dev/shm and not removed; by itself Python would start it inside the group, to be killed with it.
    """
    ours, theirs = os.pipe()
    subprocess.Popen(
        [sys.executable, "-c", f"from multiprocessing.resource_tracker import main; main({ours})"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[ours],
        start_new_session=True,
    )
    os.close(ours)
    # As multiprocessing.spawn tells a child of its parent's tracker.
    resource_tracker._resource_tracker._fd = theirs  # type: ignore[attr-defined]


def _receive(socket: Connection, orders: queue.Queue[tuple[str, Any]]) -> None:
    try:
        while True:
            orders.put(socket.recv())
    except (EOFError, OSError):
        _end_group()


def _watch(engine: Any, socket: Connection) -> None:
    while engine.alive:
        time.sleep(0.2)
    time.sleep(0.2)  # a step that is not blocked is through by now
    _tell_and_end(engine, socket)


def _say(socket: Connection, kind: str, value: Any = None) -> None:
    with _speaking:
        socket.send((kind, value))


def _tell_and_end(engine: Any, socket: Connection) -> NoReturn:
    with _speaking:  # and never again
        try:
            socket.send(("done", engine.remains()))
        finally:
            _end_group()


def _end_group() -> NoReturn:
    # Only if the group is our own: under a debugger it may be the shell's.
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _serve(engine: Any, socket: Connection, orders: queue.Queue[tuple[str, Any]]) -> None:
    beaten = time.monotonic()
    while True:
        while not orders.empty() or not engine.in_flight:
            order, value = orders.get()
            if order == "close":
                return
            if order == "salvage":
                _say(socket, "salvaged", engine.salvage())
            else:
                engine.add(value)
        done = engine.step()
        if done:
            _say(socket, "done", done)
        if time.monotonic() - beaten > BEAT_S:
            _say(socket, "beat")
            beaten = time.monotonic()


if __name__ == "__main__":
    main()
