"""Printed parameter counts beside what the methods have by construction: which decoder was counted, and of what share.

Every number follows from SAM ViT-H's shapes as ``segment_anything`` has them and from the method's own; nothing is
trained or built here. The decoder is the one of the authors' released code: one mask token and one hypernetwork MLP of
four for binary segmentation; for several classes ten tokens, one MLP and a linear head with an output for "nothing".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from analysis.ledger.finding import Finding, Line, counted

DIM, DEPTH, TOKEN = 1280, 32, 256
WHOLE_SAM = 641_090_608
HYPERNETWORK, TOKENS_OF_SAM = 139_808, 4
REDUCED_SAM = WHOLE_SAM - (TOKENS_OF_SAM - 1) * (TOKEN + HYPERNETWORK)
TWO_WAY_TRANSFORMER, UPSCALING = 3_291_264, 73_952
MANY_TOKENS = 10
CLASSES = {"trans10k_v1": 3, "trans10k_v2": 12}
MOST_CLASSES = max(CLASSES.values())

QKV = DIM + 3 * DIM  # rows of A and columns of B, for one rank
RANK, EXPERTS = 3, 8
BLOCK_BIASES = DIM + 3 * DIM + DIM + DIM + 4 * DIM + DIM  # norm1, qkv, proj, norm2, the MLP's two
EXPERT = RANK * RANK * 9 + RANK  # a 3x3 convolution with bias
GATE = 2 * RANK  # Wg and Wnoise, an expert
SAM_ADAPTER = DIM // 16  # width of the prompts: the count fits this scale factor alone
INCEPTION = 4 * RANK * (RANK + 1) + RANK * (RANK * 9 + 1) + RANK * (RANK * 25 + 1)  # four 1x1, a 3x3, a 5x5


def decoder(classes: int) -> int:
    """What is trained of the decoder; 1 class is binary. The IoU head and the prompt encoder are frozen."""
    tokens, head = (1, 0) if classes == 1 else (MANY_TOKENS, (TOKEN + 1) * (classes + 1))
    iou_token = TOKEN
    return TWO_WAY_TRANSFORMER + iou_token + tokens * TOKEN + UPSCALING + HYPERNETWORK + head


def lora(rank: int = RANK) -> int:
    """One pair of matrices at the fused qkv of each block."""
    return DEPTH * rank * QKV


def conv_lora(experts: int = EXPERTS, *, gate: bool = True) -> int:
    """LoRA of rank 3, and in each block the experts and what chooses among them."""
    return lora() + DEPTH * experts * (EXPERT + (GATE if gate else 0))


def vpt(tokens: int = 12) -> int:
    """Deep prompts: a set of its own for each block."""
    return DEPTH * tokens * DIM


ADDED: Mapping[str, Callable[[], int]] = {
    "decoder_only": lambda: 0,
    # The blocks' biases, that of the patch embedding and those of the neck's two norms.
    "bitfit": lambda: DEPTH * BLOCK_BIASES + DIM + 2 * TOKEN,
    # Two bottlenecks of width 2 a block.
    "adapter": lambda: DEPTH * 2 * (2 * (DIM + 1) + DIM * (2 + 1)),
    "vpt": vpt,
    # An encoder of SAM's kind of ViT-Tiny's size, and four linear layers that lead into it.
    "lst": lambda: 7_005_120 + 4 * 192 * (DIM + 1),
    "sam_adapter": lambda: (
        SAM_ADAPTER * (DIM + 1) + SAM_ADAPTER * (3 * 16 * 16 + 1)
        + DEPTH * SAM_ADAPTER * (SAM_ADAPTER + 1) + DIM * (SAM_ADAPTER + 1)
    ),
    # Scale and shift after norms, linear layers and patch embedding, and in the MLPs of the decoder's two blocks.
    "ssf": lambda: DEPTH * 2 * (1 + 3 + 1 + 1 + 4 + 1) * DIM + 2 * DIM + 2 * 2 * (2048 + 256),
    "lora": lora,
    "lora rank=6": lambda: lora(6),
    "lora rank=12": lambda: lora(12),
    "lora rank=24": lambda: lora(24),
    "conv_lora": conv_lora,
    "conv_lora num_experts=4": lambda: conv_lora(4),
    "inception": lambda: lora() + DEPTH * INCEPTION,
    "conv_lora+vpt vpt.num_tokens=5": lambda: conv_lora() + vpt(5),
}  # fmt: skip
"""What a method adds to the decoder, by method and parameters."""

SYSTEMS = {
    "pranet": 32_547_319,
    "transfuse": 26_248_725,
    "sinet_v2": 26_975_642,
    "fdrnet": 10_768_970,
    "deeplabv3": 41_993_794,
    "linknet34mtl": 22_004_903,
    "translab": 42_195_929,
    "trans2seg": 58_550_721,
}
"""The parameters of complete models, counted in their authors' published code (torchvision's for DeepLabv3)."""


def decoders(lines: Sequence[Line]) -> Iterator[Finding]:
    """Which decoder a printed count fits: that of the row's own data, or another."""
    rows, checked = [], _sizes(lines, lambda line: _name(line) in ADDED)
    for line in checked:
        added, own = ADDED[_name(line)](), CLASSES.get(line.dataset, 1)
        sizes = {classes: added + decoder(classes) for classes in (1, *CLASSES.values())}
        fits = [classes for classes, size in sizes.items() if _millions(size) == line.count]
        if own not in fits or (own > 1 and 1 not in fits):
            said = " or ".join(map(_words, fits)) or "none"
            both = (f"{sizes[1]:,}", f"{sizes[MOST_CLASSES]:,}")
            rows.append((str(line.table), f"{line.row}, {line.dataset}", line.count, *both, _words(own), said))
    yield Finding(
        title="Parameter counts, by the number of classes of the decoder they were made with",
        checked=counted(len(checked), "count"),
        headings=("table", "of", "printed M", "binary", f"{MOST_CLASSES} classes", "its data", "fits"),
        rows=tuple(rows),
        meaning=(
            "A count that fits another decoder than that of its data was made for another table: the methods add the "
            "same to either. One that fits several classes and not the binary decoder shows that theirs was counted "
            "there. Ours are counted with the decoder that was trained."
        ),
    )


def ratios(lines: Sequence[Line]) -> Iterator[Finding]:
    """Each printed share beside that of the reduced model, without the masks that are not used."""
    rows, checked = [], _sizes(lines, lambda line: _name(line) in ADDED and line.ratio)
    for line in checked:
        added = ADDED[_name(line)]()
        # The classes' tokens and head change no printed digit but those of a count that is printed with them.
        own = {f"{100 * (added + decoder(n)) / (REDUCED_SAM + added):.2f}" for n in (1, *CLASSES.values())}
        if line.ratio not in own:
            rows.append((str(line.table), f"{line.row}, {line.dataset}", line.ratio, " or ".join(sorted(own))))
    yield Finding(
        title="Shares of trained parameters, of SAM with one mask token and one hypernetwork",
        checked=counted(len(checked), "share"),
        headings=("table", "of", "printed %", "by construction"),
        rows=tuple(rows),
        meaning="The share is of another whole than the other rows' are.",
    )


def whole_models(lines: Sequence[Line]) -> Iterator[Finding]:
    """The counts of models that are trained as a whole: SAM from scratch, and the domain-specific systems."""
    checked = {(line.table, line.row): line for line in lines if line.method in {*SYSTEMS, "scratch"} and line.count}
    rows = []
    for line in checked.values():
        size = SYSTEMS.get(line.method, REDUCED_SAM)
        if _millions(size) != line.count:
            of = "the model the other rows train" if line.method == "scratch" else "the authors' code"
            rows.append((str(line.table), line.row, line.count, f"{size:,}", of))
    yield Finding(
        title="Counts of whole models",
        checked=counted(len(checked), "count"),
        headings=("table", "of", "printed M", "counted", "counted in"),
        rows=tuple(rows),
        meaning=(
            f"SAM as it is published has {WHOLE_SAM:,}: of its mask tokens and hypernetworks the other rows train one "
            "each. The systems' counts may be of another variant, from another paper, or cut off instead of rounded."
        ),
    )


def _sizes(lines: Sequence[Line], wanted: Callable[[Line], object]) -> list[Line]:
    """One line for each printed size: of each table, row and decoder."""
    printed: dict[tuple[int, str, int], Line] = {}
    for line in lines:
        if line.count and wanted(line):
            printed.setdefault((line.table, line.row, CLASSES.get(line.dataset, 1)), line)
    return list(printed.values())


def _name(line: Line) -> str:
    return " ".join(part for part in (line.method, line.parameters) if part)


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}"


def _words(classes: int) -> str:
    return "binary" if classes == 1 else str(classes)
