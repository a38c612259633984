"""With this folder on PYTHONPATH, cells have a slow disk, so that their short moments can be met from outside.

Python imports it at its start. What is synced (a saved state), linked (the end of an attempt) or moved from one folder
to another (the files of a commit) takes its time first.
"""

import sys

if "bench.cell" in sys.orig_argv:
    import os
    import time

    def slowly(function, seconds, moves_only=False):
        def slow(*given, **more):
            if not moves_only or os.path.basename(given[0]) == os.path.basename(given[1]):
                time.sleep(seconds)
            return function(*given, **more)

        return slow

    os.fsync = slowly(os.fsync, 0.1)
    os.link = slowly(os.link, 0.2)
    os.replace = slowly(os.replace, 0.05, moves_only=True)
