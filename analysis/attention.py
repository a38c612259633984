"""``python -m analysis.attention``: how far the heads of encoders attend (figures 5 and 7, left, of the paper)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from analysis.inside import attention_figures, survey
from analysis.inside.attention_distance import distances

IMAGES = 500
"""As in the paper's appendix F."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the figures; the exit code is 2 where there is nothing to show."""
    parser = survey.parser("analysis.attention", "Draw mean attention distances.", images=IMAGES)
    return survey.run(parser, arguments, distances, attention_figures.figures)


if __name__ == "__main__":
    sys.exit(main())
