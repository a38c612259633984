"""What a comparison of methods says, before any format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """A method minus the reference, on the same seeds and the same images, in the printed scale (times 100).

    Attributes:
        row: the method's row in tables; ``method`` is its name alone, which gives its colour.
        per_seed: the difference in each seed, in the order of ``seeds``.
        mean: their mean.
        low, high: the bounds of the 95 % interval over seeds and images; over images alone where there is one seed.
        p: two-sided, from the same bootstrap; ``p_holm`` corrected by Holm over the comparison's methods.
        effect: the mean over the standard deviation between images (each averaged over seeds); None for metrics that
            are pooled over images, and where all images differ by the same.
        better: whether it is better ("better", "worse") by a ``p_holm`` below 0.05, else "".
    """

    row: str
    method: str
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    mean: float
    low: float
    high: float
    p: float
    p_holm: float
    effect: float | None
    better: str


@dataclass(frozen=True)
class Comparison:
    """All methods beside one reference: one setting, protocol, dataset, test set and metric.

    Attributes:
        name: of its files, without an ending.
        setting: in words.
        data, test_set, metric, label, direction: of the column; ``direction`` is "higher" or "lower".
        reference: the row that the others are compared with.
        values: row -> seed -> score in the printed scale, the reference first; also of what could not be compared.
        images: in the test set, as far as any file of single images could be read.
        differences: from the best to the worst; none where nothing can be compared, of which ``warnings`` say why.
        detectable: the smallest true difference that a design with these seeds and images finds with a probability of
            0.8 in a single test, by the mean variances of the differences; None with a single seed.
        warnings, notes: as in a table's caption.
        cells: ids behind it.
    """

    name: str
    setting: str
    protocol: str
    data: str
    test_set: str
    metric: str
    label: str
    direction: str
    reference: str
    values: dict[str, dict[int, float]]
    images: int
    differences: tuple[Difference, ...]
    detectable: float | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """Average ranks of methods over datasets (Demšar 2006), 1 being the best.

    Attributes:
        name: of its files, without an ending.
        setting: in words.
        places: two or more, "dataset/test set: metric", one a dataset's test set, by its leading metric.
        ranks: row -> rank in each place, ties averaged, rows by their average rank.
        methods: row -> method name.
        friedman_p: of the hypothesis that all methods are alike; None for fewer than three methods.
        critical_difference: of Nemenyi's test at 0.05: average ranks that differ by less are not told apart; None where
            ``friedman_p`` is.
        warnings, notes: as in a table's caption.
    """

    name: str
    setting: str
    protocol: str
    places: tuple[str, ...]
    ranks: dict[str, tuple[float, ...]]
    methods: dict[str, str]
    friedman_p: float | None
    critical_difference: float | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    cells: tuple[str, ...]

    def average(self, row: str) -> float:
        """The mean of a row's ranks."""
        return sum(self.ranks[row]) / len(self.places)
