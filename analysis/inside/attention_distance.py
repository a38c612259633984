"""Mean attention distance (Dosovitskiy et al. 2021; Raghu et al. 2021): how far from itself a token looks.

For a head, the mean over queries of sum_k p(q, k) d(q, k): the attention weight of a key times the Euclidean distance
of the two patches' centres. Weights are computed a second time beside the model's own attention, whose fused kernels
never hold them, from the same queries and keys; the model's numbers stay as they are.

Only tokens of the image count. Tokens without a place (a class token, prompts) and the zeros that pad windows beyond
the image's border are no queries, and as keys they are left out: the weights of the others are scaled to sum to 1.
What weight they had is told beside the distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from analysis.inside.encoders import Encoder

CHUNK = 1 << 22
"""Attention weights held at once: 16 MiB. All of a layer's are 1 GiB with 16 heads and 4,096 tokens."""


@dataclass(frozen=True)
class Asked:
    """What a layer's attention weights follow from, for the maps (windows, or the whole image) of one image.

    Attributes:
        side: tokens along a side of a map.
        query: (maps, heads, side * side, C), already scaled.
        key: (maps, heads, side * side + loose, C), tokens without a place last.
        by_row, by_column: what is added to the score of a query for keys of each row or column, (maps, heads,
            side * side, side), or None.
        real: (maps, side * side), False for padding; None where there is none.
    """

    side: int
    query: Tensor
    key: Tensor
    by_row: Tensor | None = None
    by_column: Tensor | None = None
    real: Tensor | None = None


def layer_distances(asked: Asked) -> Tensor:
    """(heads, 3), float64: distance in tokens, and the weight of padding and of tokens without a place.

    All three are means over the image's tokens as queries. Scores and weights are computed in float32 whatever the
    queries' precision, for a head and some queries at a time.
    """
    maps, heads, tokens, _ = asked.query.shape
    keys = asked.key.shape[2]
    real = torch.ones(maps, tokens, dtype=torch.bool, device=asked.key.device) if asked.real is None else asked.real
    lines = torch.arange(asked.side, device=real.device)
    places = torch.cartesian_prod(lines, lines).float()
    sums = torch.zeros(heads, 3, dtype=torch.float64, device=real.device)
    with torch.autocast(real.device.type, enabled=False):
        for some in torch.arange(tokens).split(max(1, CHUNK // (maps * keys))):
            chosen = slice(int(some[0]), int(some[-1]) + 1)
            # Exact: the faster way through products makes the distance of a token to itself a small number.
            far = torch.cdist(places[chosen], places, compute_mode="donot_use_mm_for_euclid_dist")
            for head in range(heads):
                found = _of_queries(_scores(asked, head, chosen), far, real)
                sums[head] += found[real[:, chosen]].sum(0, dtype=torch.float64)
    return sums / real.sum()


def _scores(asked: Asked, head: int, chosen: slice) -> Tensor:
    """(maps, queries, keys) before the softmax."""
    scores = asked.query[:, head, chosen].float() @ asked.key[:, head].float().transpose(-1, -2)
    if asked.by_row is not None:
        on_grid = scores[..., : asked.side**2].unflatten(-1, (asked.side, asked.side))
        on_grid += asked.by_row[:, head, chosen, :, None]
        on_grid += asked.by_column[:, head, chosen, None, :]
    return scores


def _of_queries(scores: Tensor, far: Tensor, real: Tensor) -> Tensor:
    """(maps, queries, 3) from scores (maps, queries, keys), distances (queries, tokens) and what is no padding."""
    tokens = far.shape[1]
    padded = loose = scores.new_zeros(scores.shape[:2])
    if scores.shape[-1] > tokens or not real.all():
        every = scores.softmax(-1)
        padded = (every[..., :tokens] @ (~real).unsqueeze(-1).float()).squeeze(-1)
        loose = every[..., tokens:].sum(-1)
        # A second softmax rather than a division, which would fail where all weight lies elsewhere.
        scores = scores[..., :tokens].masked_fill(~real.unsqueeze(1), -torch.inf)
    distance = scores.softmax(-1).mul_(far).sum(-1)
    return torch.stack([distance, padded, loose], dim=-1)


def uniform_distance(side: int, real: Tensor | None = None) -> float:
    """The distance in tokens where each query looks at all tokens of its map alike."""
    maps = 1 if real is None else len(real)
    nothing = torch.zeros(maps, 1, side * side, 1)
    return float(layer_distances(Asked(side, nothing, nothing, real=real))[0, 0])


def farthest_distance(side: int) -> float:
    """The distance in tokens of a map's opposite corners: no query can look farther."""
    return math.hypot(side - 1, side - 1)


def distances(encoder: Encoder, image: Tensor) -> np.ndarray:
    """(layers, heads, 3) of :func:`layer_distances` for one image (1, 3, S, S)."""
    found: dict[int, Tensor] = {}

    def see(layer: int, given: tuple[Any, ...], made: Any) -> None:
        found[layer] = layer_distances(encoder.asked(layer, given))

    with encoder.watched(encoder.attentions, see):
        encoder(image)
    return torch.stack([found[layer] for layer in range(len(encoder.blocks))]).cpu().numpy()
