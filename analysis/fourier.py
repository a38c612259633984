"""``python -m analysis.fourier``: the frequencies in encoders' feature maps (figure 7, right, of the paper)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from analysis.inside import fourier_figures, survey
from analysis.inside.fourier import amplitudes

IMAGES = 100
"""As in the paper's appendix F."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the figures; the exit code is 2 where there is nothing to show."""
    parser = survey.parser("analysis.fourier", "Draw relative log amplitudes of feature maps.", images=IMAGES)
    return survey.run(parser, arguments, amplitudes, fourier_figures.figures)


if __name__ == "__main__":
    sys.exit(main())
