"""Which weights a backbone starts from: the official checkpoints of SAM, a file of one's own, or random ones.

The weights are Meta's, released under Apache-2.0 with the Segment Anything repository; they are not part of
this project and are downloaded when first used.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bench.download import DownloadError, Progress, download
from bench.registry import UnknownName
from methods.sam.sizes import size_of
from methods.sam.weights import CheckpointError, Shapes, looks_like, read_weights

__all__ = ["OFFICIAL", "Checkpoint", "CheckpointError", "Official", "file_digest", "looks_like", "resolve"]

SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class Official:
    """A published checkpoint; ``bytes`` and ``sha256`` are those of the file behind ``url``."""

    backbone: str
    file: str
    url: str
    sha256: str
    bytes: int


OFFICIAL: dict[str, Official] = {
    "vit_h": Official(
        backbone="vit_h",
        file="sam_vit_h_4b8939.pth",
        url="https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        bytes=2_564_550_879,
    ),
    "vit_l": Official(
        backbone="vit_l",
        file="sam_vit_l_0b3195.pth",
        url="https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        bytes=1_249_524_607,
    ),
    "vit_b": Official(
        backbone="vit_b",
        file="sam_vit_b_01ec64.pth",
        url="https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        bytes=375_042_383,
    ),
}

BUNDLED: dict[str, Path] = {"tiny": Path(__file__).with_name("tiny.safetensors")}
"""Weights that come with the project, pre-trained by ``python -m bench.pretrain``; a card lies beside each."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights to start from; made by :func:`resolve`.

    Attributes:
        name: what identifies them in a cell: "none", or the file's name without its folder.
        path: where the file is, or will be after :meth:`fetch`; ``None`` for random weights.
        official: the published checkpoint that the file has to be, if its name claims to be one.
    """

    name: str
    path: Path | None = None
    official: Official | None = None

    @property
    def random(self) -> bool:
        return self.path is None

    def fetch(self, progress: Progress | None = None) -> Path:
        """The file, downloaded on first use; an official one is certain to be the published one.

        Any number of processes may call this at once. The digest is remembered, so that later calls only
        look at size and modification time.

        Raises:
            CheckpointError: the download failed, or the file is not what its name says.
        """
        if self.path is None:
            raise CheckpointError('checkpoint = "none" means random weights: there is no file')
        if self.official is None:
            return self.path
        if not self.path.exists():
            self._download(self.official, progress)
        self._check(self.official)
        return self.path

    def digest(self) -> str:
        """SHA-256 of the weights in hexadecimal, or "random".

        An official checkpoint need not be there for this: :meth:`load` accepts no other content.
        """
        if self.path is None:
            return "random"
        return self.official.sha256 if self.official else file_digest(self.path)

    def load(self, expected: Shapes | None = None) -> dict[str, Tensor]:
        """The state dict on the CPU, fetched if need be; see :func:`methods.sam.weights.read_weights`.

        Raises:
            CheckpointError: as :meth:`fetch`, or the content does not fit ``expected``.
        """
        return read_weights(self.fetch(), expected)

    def _download(self, official: Official, progress: Progress | None) -> None:
        try:
            download(official.url, self.path, size=official.bytes, sha256=official.sha256, progress=progress)
        except DownloadError as error:
            raise CheckpointError(
                f"cannot download {official.file}: {error}.\n"
                f"  Run the same command again to go on from where it stopped, or get the file by hand:\n"
                f"  {official.url}\n"
                f"  ({official.bytes:,} bytes, sha256 {official.sha256})\n"
                f'  and put it into {self.path.parent}, or anywhere with checkpoint = "/path/to/{official.file}".'
            ) from error

    def _check(self, official: Official) -> None:
        size = self.path.stat().st_size
        if size != official.bytes:
            problem = f"{size:,} bytes instead of {official.bytes:,}"
        elif (found := file_digest(self.path)) != official.sha256:
            problem = f"sha256 {found} instead of {official.sha256}"
        else:
            return
        raise CheckpointError(
            f"{self.path} is not the official {official.file}: {problem}.\n"
            f'  Remove it and run again with checkpoint = "{official.file}" to download it, or rename it if these are '
            "other weights."
        )


def resolve(backbone: str, checkpoint: str) -> Checkpoint:
    """The weights that a ``checkpoint`` setting means for a backbone; downloads nothing.

    Args:
        checkpoint: "auto" (the official weights, or those that come with the project), "none" (random), the
            name of such a file, or the path of a .pth, .pt or .safetensors file.

    Raises:
        bench.registry.UnknownName: no such backbone.
        CheckpointError: an unknown name, a missing file, or the official file of another backbone.
    """
    size_of(backbone)
    if checkpoint == "auto":
        checkpoint = OFFICIAL[backbone].file if backbone in OFFICIAL else BUNDLED[backbone].name
    if checkpoint == "none":
        return Checkpoint("none")
    by_file = {official.file: official for official in OFFICIAL.values()}
    by_name = by_file | {Path(file).stem: official for file, official in by_file.items()}
    bundled = {file.name: size for size, file in BUNDLED.items()}
    path, belongs = Path(checkpoint).expanduser(), backbone
    official = None
    if checkpoint in bundled:
        belongs = bundled[checkpoint]
        path = BUNDLED[belongs]
    elif checkpoint in by_name:
        official = by_name[checkpoint]
        path = cache_folder() / "checkpoints" / official.file
    elif path.is_file():
        official = by_file.get(path.name)
    elif path.name != checkpoint:
        raise CheckpointError(f"checkpoint {checkpoint!r}: there is no file {path.absolute()}")
    else:
        raise CheckpointError(
            f"{UnknownName('checkpoint', checkpoint, ['auto', 'none', *by_file, *bundled])} "
            f"A file of your own is named by its path and ends in {', '.join(SUFFIXES)}."
        )
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"checkpoint {checkpoint!r} ends in none of {', '.join(SUFFIXES)}")
    if official is not None:
        belongs = official.backbone
    if belongs != backbone:
        raise CheckpointError(
            f"checkpoint {checkpoint!r} belongs to {belongs}, not to {backbone}. "
            f'Set backbone = "{belongs}", or checkpoint = "auto".'
        )
    return Checkpoint(path.name, path, official)


def cache_folder() -> Path:
    """Where downloads and remembered digests go: ``BENCH_CACHE``, else the user's cache."""
    return Path(os.environ.get("BENCH_CACHE") or "~/.cache/sam-peft-bench").expanduser()


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, computed once for each path, size and modification time."""
    state = path.stat()
    key = f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}"
    memory = cache_folder() / "digests" / hashlib.sha256(key.encode()).hexdigest()
    if memory.is_file() and len(known := memory.read_text(encoding="ascii")) == 64:
        return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(OSError):  # where the cache cannot be written the next call computes it again
        memory.parent.mkdir(parents=True, exist_ok=True)
        fresh = memory.with_name(f"{memory.name}.{os.getpid()}")
        fresh.write_text(digest, encoding="ascii")
        os.replace(fresh, memory)
    return digest
