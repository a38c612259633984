"""Packages with plugins, as pip leaves them in a folder of the path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Path]:
    """package(name, version, group={name: value}, files={file: text}): installs one; gives the folder for the path."""

    def install(name: str, version: str, files: Mapping[str, str] | None = None, **groups: Mapping[str, str]) -> Path:
        site = tmp_path / "site"
        card = site / f"{name.replace('-', '_')}-{version}.dist-info"
        card.mkdir(parents=True)
        (card / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        sections = (
            "\n".join([f"[sam_peft_bench.{group}]", *(f"{key} = {value}" for key, value in points.items())])
            for group, points in groups.items()
        )
        (card / "entry_points.txt").write_text("\n\n".join(sections))
        for file, text in (files or {}).items():
            (site / file).write_text(text)
        return site

    return install
