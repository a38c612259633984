"""What a cell's process and the lane that started it tell each other while it runs.

The lane holds the process's standard input: its end is the process's end, a first line sets a held process free. The
process says a word a line into a pipe whose number is in its environment. Neither has to look at files now and then.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress

PARENT_PIPE = "BENCH_PARENT_PIPE"  # set by whoever holds our standard input: the descriptor that takes our signs
READY = "ready"  # prepared, and waiting to be set free
WORKING = "working"  # the cell is claimed and its device is used from now on
ENDING = "ending"  # in its last epoch or in its scoring
WORKED = "worked"  # the result is committed; what follows needs no device

_said: set[str] = set()


def listen_to_parent(*, hold: bool = False) -> threading.Event:
    """End this process when the one that holds our standard input is gone, however it died.

    Args:
        hold: listen although nobody said to hold it.

    Returns:
        Set by the first line that comes.
    """
    free = threading.Event()

    def watch() -> None:
        while os.read(0, 1024):
            free.set()
        os._exit(130)

    pipe = os.environ.get(PARENT_PIPE)
    if pipe:
        with suppress(OSError):
            os.set_inheritable(int(pipe), False)  # its end is to be this process's end, whoever it has started
    if pipe or hold:
        threading.Thread(target=watch, daemon=True).start()
    return free


def say(sign: str) -> None:
    """Tell the lane, once; nobody may listen."""
    pipe = os.environ.get(PARENT_PIPE)
    if pipe and sign not in _said:
        _said.add(sign)
        with suppress(OSError):
            os.write(int(pipe), f"{sign}\n".encode())
