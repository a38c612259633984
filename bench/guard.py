"""Make sure that ``datasets`` and ``methods`` are this project's packages.

Hugging Face's library is also called ``datasets``. Which one an import finds depends on the path; the
wrong one would fail far from the cause.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


class WrongPackage(ImportError):
    """Another package of the same name stands first on the path."""


def check_packages() -> None:
    """Stop if another package hides one of ours.

    Raises:
        WrongPackage: with the file that would be imported and the remedy.
    """
    for name in ("methods", "datasets"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found != PROJECT / name / "__init__.py":
            raise WrongPackage(
                f"`import {name}` finds {found or 'nothing'}, not {PROJECT / name}: another package of that name is in "
                f"the way. Start from the project's folder: `cd {PROJECT} && python -m bench.run ...`."
            )
