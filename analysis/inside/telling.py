"""What is said about pictures of single images: which they are, what was scored, and the frame behind the csv."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from analysis.drawing import words
from analysis.inside.command import Shown
from analysis.inside.picks import Pick
from analysis.inside.session import device_name, git_state
from analysis.inside.subjects import Subject

TITLES = {"random": "images drawn at random", "difference": "images on which two methods differ most"}
"""Rule of :mod:`analysis.inside.picks` -> words of a heading."""

_SIZES = {
    "literature": "images and masks at the masks' own size",
    "paper": "images and masks squashed to the input's size",
}


def table(shown: Shown) -> pd.DataFrame:
    """A line for each image and method, in the order in which they are drawn.

    Scores and differences are fractions: ``score`` is the IoU of what is drawn, ``scored`` that of
    ``per_image.parquet``, ``mean`` that over seeds, ``difference`` the last method's mean minus that of the one before.
    """
    lines = []
    for pick in shown.picks:
        for row, cell in shown.subject.shown.items():
            answer = shown.views[pick.image].answers[row]
            lines.append({
                "image": pick.image, "test_set": shown.subject.test_set, "rule": shown.rule, "ahead": pick.ahead,
                "difference": pick.difference, "row": row, "method": cell.method, "seed": cell.seed, "cell": cell.id,
                "score": answer.score, "scored": answer.scored, "differing_pixels": answer.differing,
                "mean": shown.scores[row][pick.image],
            })  # fmt: skip
    return pd.DataFrame(lines)


def about(shown: Shown, *, paper: str) -> dict[str, Any]:
    """Facts of a card; ``paper`` names the figures it corresponds to."""
    own = {"rule": shown.rule, "images": [pick.image for pick in shown.picks], "device": device_name(shown.device)}
    return words.about(shown.subject.place, paper_figure=paper, **own, **git_state())


def label(shown: Shown, pick: Pick) -> tuple[str, ...]:
    """The lines beside an image."""
    if not pick.ahead:
        return (pick.image,)
    return pick.image, f"{shown.subject.titles[pick.ahead]} ahead", f"by {100 * abs(pick.difference):.1f}"


def notes(shown: Shown, pick: Pick) -> list[str]:
    """Under each method's panel its score, and the mean over seeds where there are several."""
    answers, several = shown.views[pick.image].answers, len(shown.subject.seeds) > 1
    means = {row: f" ({100 * shown.scores[row][pick.image]:.1f})" if several else "" for row in shown.subject.rows}
    return [f"{100 * answers[row].score:.1f}{means[row]}" for row in shown.subject.rows]


def choice(shown: Shown) -> str:
    """Which images these are and why."""
    subject, count = shown.subject, len(shown.picks)
    titles = [subject.titles[row] for row in subject.rows]
    models = f"{', '.join(titles)}: models of seed {subject.seed}, {_SIZES[subject.protocol]}."
    if shown.rule == "random":
        return f"{count} test images, drawn at random (seed {shown.draw}). {models}"
    ahead, behind = (sum(pick.ahead == row for pick in shown.picks) for row in (subject.rows[-1], subject.rows[-2]))
    return (
        f"The {count} test images with the largest differences of the IoU, {_seeds(subject)}: {ahead} where "
        f"{titles[-1]} is ahead of {titles[-2]}, {behind} where {titles[-2]} is. {models}"
    )


def numbers(shown: Shown) -> str:
    """What scores are, and whether what is drawn is what was scored."""
    subject = shown.subject
    of = "mean IoU over the classes in truth or prediction" if subject.classes else "IoU of the foreground"
    seen = [answer for pick in shown.picks for answer in shown.views[pick.image].answers.values()]
    off = max((abs(answer.score - answer.scored) for answer in seen if not math.isnan(answer.score)), default=0.0)
    same = "the same as when they were scored" if off < 1e-6 else f"up to {100 * off:.2g} off what was scored elsewhere"
    mean = f"; in parentheses {_seeds(subject)}" if len(subject.seeds) > 1 else ""
    return f"Numbers: {of}, times 100, of the models that are shown ({same}){mean}."


def _seeds(subject: Subject) -> str:
    return f"means over seeds {', '.join(map(str, subject.seeds))}" if len(subject.seeds) > 1 else "one seed"
