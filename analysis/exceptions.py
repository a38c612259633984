"""Which systems of the paper read "not run" where the results hold none of their cells, and why.

The paper opens its tables with systems that were built for a task. They are cells like all others, but many runs go
without them, since comparing fine-tuning methods needs none.
"""

from __future__ import annotations

SYSTEMS = ("pranet", "transfuse", "sinet_v2", "fdrnet", "deeplabv3", "linknet34mtl", "translab", "trans2seg")
"""Our names of them, of the column ``our_method`` of ``paper.csv``."""

NOT_RUN: dict[str, str] = dict.fromkeys(SYSTEMS, "a system built for the task that these results do not hold")
"""The reason, by name."""
