"""``python -m analysis.features``: what the encoders of two methods make of the same images, side by side.

The images are those of ``python -m analysis.predictions`` under the same rule.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from analysis.inside import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the figures; the exit code is 2 where there is nothing to show."""
    usual = ("lora", "conv_lora")  # those of the paper's figure 9
    options = command.parser("features", "Show feature maps of trained cells.", usual).parse_args(arguments)
    from analysis.inside.features import figure  # loads torch

    return command.run(options, figure, fewest=2)


if __name__ == "__main__":
    sys.exit(main())
