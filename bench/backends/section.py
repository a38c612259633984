"""The ``[backend]`` section of a matrix file, or of a file of its own: where dask finds workers.

Read without dask, so that a matrix file is checked as a whole wherever it is read. ``docs/cluster.md`` shows all keys.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from bench.registry import UnknownName

WALLTIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}")
MEMORY = re.compile(r"(\d+)([KMGT])(i?B)?")
OWN_DIRECTIVES = ("--gres", "--gpus", "-G")


class BackendError(RuntimeError):
    """The workers asked for cannot be had; the message says why and what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LocalCluster(_Section):
    """Worker processes on this machine: one for each GPU that ``--devices`` names, or N for ``cpu:N``."""

    kind: Literal["local-cluster"] = "local-cluster"


class Address(_Section):
    """A scheduler that somebody runs, with workers that were started with ``--resources``.

    Attributes:
        address: where it listens, e.g. "tcp://10.0.0.1:8786".
        resource: what of its workers a device is.
        timeout: seconds to wait for its answer.
    """

    kind: Literal["address"]
    address: str
    resource: Literal["GPU", "CPU"] = "GPU"
    timeout: float = Field(default=10.0, gt=0)

    @field_validator("address")
    @classmethod
    def _check_address(cls, value: str) -> str:
        if not re.fullmatch(r"(tcp|tls|ucx|ws|wss)://.+:\d+", value):
            raise ValueError(f"{value!r} is no address; write e.g. tcp://10.0.0.1:8786")
        return value


class Slurm(_Section):
    """SLURM jobs, each of which runs one worker.

    Attributes:
        jobs: how many.
        gpus: GPUs a job; 0: cells run on its cores.
        cores: CPU cores a job, at least one for each GPU.
        memory: a job's; units are binary, as sbatch reads them.
        walltime: as sbatch takes it; a job that reached it is submitted again.
        partition, account: as sbatch takes them.
        directives: more words for ``#SBATCH``, each a line; ``--gres=`` or ``--gpus=`` replace what ``gpus`` asks for.
        prologue: shell lines before the worker starts (``module load``, activating an environment).
        python: the interpreter there; by default this one's path.
        interface: the network over which workers reach this machine, e.g. "ib0".
        logs: the folder of the jobs' output.
    """

    kind: Literal["slurm"]
    jobs: PositiveInt = 1
    gpus: NonNegativeInt = 1
    cores: PositiveInt
    memory: str
    walltime: str
    partition: str | None = None
    account: str | None = None
    directives: list[str] = Field(default_factory=list)
    prologue: list[str] = Field(default_factory=list)
    python: str | None = None
    interface: str | None = None
    logs: str | None = None

    @property
    def resource(self) -> str:
        """What of its workers a device is."""
        return "GPU" if self.gpus else "CPU"

    @model_validator(mode="after")
    def _check_cores(self) -> Self:
        if self.cores < self.gpus:
            raise ValueError(f"{self.cores} cores are too few for {self.gpus} GPUs; each wants one at least")
        return self

    @field_validator("memory")
    @classmethod
    def _check_memory(cls, value: str) -> str:
        if not MEMORY.fullmatch(value):
            raise ValueError(f"{value!r} is no amount of memory; write e.g. 48G")
        return value

    @field_validator("walltime")
    @classmethod
    def _check_walltime(cls, value: str) -> str:
        if not WALLTIME.fullmatch(value):
            raise ValueError(f"{value!r} is no time that sbatch takes; write e.g. 24:00:00 or 2-00:00:00")
        return value

    @field_validator("directives")
    @classmethod
    def _check_directives(cls, value: list[str]) -> list[str]:
        for word in value:
            if not word.startswith("-"):
                raise ValueError(f"{word!r} is no option of sbatch; write e.g. --constraint=a100, without #SBATCH")
        return value


Section = LocalCluster | Address | Slurm
KINDS: dict[str, type[Section]] = {"local-cluster": LocalCluster, "address": Address, "slurm": Slurm}


def section(given: Mapping[str, Any] | Section) -> Section:
    """A checked section.

    Raises:
        ValueError: an unknown kind or key, a missing one or a wrong value.
    """
    if isinstance(given, _Section):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"{given!r} is no section; write [backend] and its keys below")
    if "kind" not in given:
        raise ValueError(f"key 'kind' is missing; allowed: {', '.join(KINDS)}")
    if given["kind"] not in KINDS:
        raise UnknownName("kind", str(given["kind"]), KINDS)
    model = KINDS[given["kind"]]
    try:
        return model(**given)
    except ValidationError as error:
        raise ValueError("; ".join(_describe(item, model) for item in error.errors())) from None


def _describe(item: Mapping[str, Any], model: type[Section]) -> str:
    key = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        return str(UnknownName("key", key, model.model_fields))
    if item["type"] == "missing":
        return f"key {key!r} is missing"
    message = str(item["ctx"]["error"]) if item["type"] == "value_error" else item["msg"]
    return f"{key}: {message}" if key else message


def read(given: str) -> Section:
    """``--backend-config``: a TOML file with a ``[backend]`` section, or the address of a running scheduler.

    Raises:
        ValueError: no such file, no TOML, no such section, or what :func:`section` raises.
    """
    if "://" in given:
        return section({"kind": "address", "address": given})
    path = Path(given)
    if not path.is_file():
        raise ValueError(f"--backend-config: there is no file {path.absolute()}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: no valid TOML: {error}") from None
    if set(table) != {"backend"}:
        raise ValueError(
            f"{path}: found {', '.join(table) or 'nothing'}; a section [backend] is wanted, and nothing else"
        )
    try:
        return section(table["backend"])
    except ValueError as error:
        raise ValueError(f"{path}: backend: {error}") from None
