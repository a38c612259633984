"""Which systems of the paper have no numbers of ours, and why: the one list of what was left out.

Whoever shows the paper's tables prints the reason where our number would stand. A test maps every number of
``paper.csv`` to a planned cell or to this list, and refuses a line of it that nothing needs.
"""

from __future__ import annotations

_SYSTEM = "a domain-specific system that is not here yet"

NOT_RUN: dict[str, str] = {
    "pranet": _SYSTEM,
    "transfuse": _SYSTEM,
    "sinet_v2": _SYSTEM,
    "fdrnet": _SYSTEM,
    "deeplabv3": _SYSTEM,
    "linknet34mtl": _SYSTEM,
    "translab": _SYSTEM,
    "trans2seg": _SYSTEM,
}
"""Reason by our name of the method, the column ``our_method`` of ``paper.csv``."""
