"""With this folder on PYTHONPATH, ``python -m bench.cell`` does all that schedulers see of a cell, and no work.

Python imports it at its start, so that it reaches the processes of processes: schedulers and dask workers run as they
are. A cell waits for the file STUB_UNTIL, if one is named, and then takes STUB_SECONDS.
"""

import sys

if "bench.cell" in sys.orig_argv:
    import os
    import signal
    import time

    from bench.signs import ENDING, READY, WORKED, WORKING, listen_to_parent, say
    from bench.store import AlreadyRunning, Results

    words = sys.orig_argv[sys.orig_argv.index("bench.cell") + 1 :]
    folder = Results(words[words.index("--results") + 1]).cell(words[0])
    free = listen_to_parent()
    if "--hold" in words:
        say(READY)
        free.wait()
    if folder.status()["state"] == "done" and "--again" not in words:
        os._exit(0)
    try:
        attempt = folder.claim(device=os.environ["BENCH_DEVICE_LABEL"])
    except AlreadyRunning:
        os._exit(3)

    def interrupt(*_):
        attempt.revoke()
        folder.set_state("interrupted", reason="stopped by a signal", attempt=attempt.number)
        os._exit(130)

    signal.signal(signal.SIGTERM, interrupt)
    folder.set_state("running", attempt=attempt.number)
    say(WORKING)
    say(ENDING)
    attempt.beat({"stage": "training"})
    give_up = time.monotonic() + 600
    while not os.path.exists(os.environ.get("STUB_UNTIL", os.curdir)) and time.monotonic() < give_up:
        time.sleep(0.02)
    time.sleep(float(os.environ["STUB_SECONDS"]))
    seen = {"words": words, "variables": dict(os.environ), "parent": os.getppid()}
    attempt.commit([], {"attempt": attempt.number, "resolved": folder.read()["spec"], "seen": seen})
    say(WORKED)
    os._exit(0)
