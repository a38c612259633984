"""``python -m analysis.predictions``: images, their truth and what each method predicts, side by side.

Trained cells are opened again and asked; what they answer has to be what was scored.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from analysis.inside import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the figures; the exit code is 2 where there is nothing to show."""
    usual = ("vpt", "lora", "conv_lora")  # those of the paper's figures
    options = command.parser("predictions", "Show predictions of trained cells.", usual).parse_args(arguments)
    from analysis.inside.predictions import figure  # loads torch

    return command.run(options, figure, fewest=1)


if __name__ == "__main__":
    sys.exit(main())
