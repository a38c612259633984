"""Plugins of other packages: which name is whose, what is refused, and that nothing is imported unasked."""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import BaseModel

from bench import matrix
from bench.evidence import module_digest
from bench.registry import PluginError, Registry, UnknownName


class Tool(ABC, BaseModel):
    """What the plugins of these tests have to be."""

    name: ClassVar[str]
    title: ClassVar[str]

    @abstractmethod
    def work(self) -> None: ...


SAW = """
from tools_contract import Tool

class Saw(Tool):
    title = "Saw"

    def work(self):
        pass
"""


@pytest.fixture(autouse=True)
def forgotten_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What lies on the path, and what has been imported from there, is as before after each test."""
    monkeypatch.setitem(sys.modules, "tools_contract", sys.modules[__name__])
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield
    module_digest.cache_clear()
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[Tool]:
    """A registry with one tool of its own, the hammer."""
    folder = tmp_path / "ours" / "tools"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "ours")
    made = Registry("tool", contract=Tool, package="tools", folder=folder, entry_points="sam_peft_bench.tools")
    (folder / "hammer.py").write_text(decorated("hammer"))
    monkeypatch.setattr(sys.modules[__name__], "registry", made, raising=False)
    return made


def saw(*lines: str) -> str:
    """The text of a module with a sound tool, and more lines."""
    return "\n".join([SAW, *lines])


def decorated(name: str) -> str:
    """The text of a module with a sound tool that registers itself."""
    register = f'from tools_contract import registry\nregister = registry.register\n\n@register("{name}")\nclass Saw'
    return SAW.replace("class Saw", register)


def test_our_own_and_others_are_known_without_an_import(registry, package):
    package("sharp-things", "1.2", {"saws.py": saw()}, tools={"saw": "saws:Saw", "lost": "nowhere:Saw"})
    assert registry.names() == ["hammer", "lost", "saw"] and "saw" in registry and "plane" not in registry
    with pytest.raises(UnknownName, match=r"unknown tool 'sow'. Did you mean 'saw'\? Known: hammer, lost, saw"):
        registry["sow"]
    assert [registry.package(name) for name in registry.names()] == [None, "sharp-things 1.2", "sharp-things 1.2"]
    assert not {"saws", "tools.hammer"} & set(sys.modules)


def test_what_is_asked_for_is_imported_and_nothing_else(registry, package):
    package("sharp-things", "1.2", {"saws.py": saw(), "axes.py": "1 / 0"}, tools={"saw": "saws:Saw", "axe": "axes:A"})
    assert registry["saw"].name == "saw" and registry["saw"] is sys.modules["saws"].Saw
    assert registry["hammer"].__module__ == "tools.hammer" and "axes" not in sys.modules


def test_a_decorator_does_in_a_package_what_it_does_here(registry, package):
    package("sharp-things", "1.2", {"saws.py": decorated("saw")}, tools={"saw": "saws"})
    assert registry["saw"].__module__ == "saws"


BROKEN = {
    "absent": ("absent:Tool", None, "ModuleNotFoundError: No module named 'absent'"),
    "needs": ("needs:Saw", "import not_there_either", "ModuleNotFoundError: No module named 'not_there_either'"),
    "typo": ("typo:Saw", "def saw(:", r"SyntaxError: invalid syntax \(typo.py, line 1\)"),
    "raises": ("raises:Saw", "raise KeyError('one\\ntwo')", r"KeyError: 'one\\ntwo'"),
    "lines": ("lines:Saw", "raise OSError('one\\n  two')", "OSError: one two"),
    "exits": ("exits:Saw", "raise SystemExit(3)", "SystemExit: 3"),
    "lacks": ("lacks:Saw", "", "AttributeError: module 'lacks' has no attribute 'Saw'"),
    "function": ("function:saw", "def saw(): ...", "it is no class, and its module registers nothing"),
    "other": ("other:Saw", "class Saw: ...", "other.Saw is no Tool: it does not derive from .*Tool"),
    "idle": ("idle:Idle", saw("class Idle(Saw):", "    work = Tool.work"), r"idle.Idle does not define work\(\)"),
    "untitled": ("untitled:Saw", saw().replace('title = "Saw"', ""), "untitled.Saw does not define title"),
    "twice": ("twice:Saw", saw("Saw.name = 'saw'"), "twice.Saw is the tool 'saw', and cannot be 'twice' as well"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_that_cannot_be_used_says_where_it_is_from_and_why(name, registry, package):
    value, text, reason = BROKEN[name]
    package("blunt-things", "0.3", {} if text is None else {f"{name}.py": text}, tools={name: value})
    for _ in range(2):
        with pytest.raises(PluginError, match=rf"^the tool '{name}' of blunt-things 0.3 \({value}\) cannot.*{reason}"):
            registry[name]
    assert registry["hammer"]().title == "Saw"


def test_one_of_our_own_files_that_cannot_be_imported_is_told_in_the_same_way(registry, tmp_path):
    (tmp_path / "ours" / "tools" / "plane.py").write_text('@register("plane")\nclass Plane: ...\n')
    assert registry.names() == ["hammer", "plane"]
    with pytest.raises(
        PluginError, match=r"^the tool 'plane' of tools.plane cannot be used: NameError: name 'register'"
    ):
        registry["plane"]


def test_a_name_of_ours_stays_ours_and_is_told_once(registry, package, caplog):
    package("blunt-things", "0.3", {"saws.py": saw()}, tools={"hammer": "saws:Saw"})
    line = "the tool 'hammer' of blunt-things 0.3 (saws:Saw) is passed over: that is the name of tools.hammer"
    assert registry.passed_over == {"hammer": line} and registry.package("hammer") is None
    assert registry["hammer"].__module__ == registry["hammer"].__module__ == "tools.hammer"
    assert [record.getMessage() for record in caplog.records] == [line]


def test_a_decorator_takes_no_name_of_ours(registry, package):
    thief = saw("from tools_contract import registry", 'registry.register("hammer")(Saw)')
    package("blunt-things", "0.3", {"saws.py": thief}, tools={"saw": "saws:Saw"})
    with pytest.raises(PluginError, match="saws.Saw cannot be the tool 'hammer', which is that of tools.hammer"):
        registry["saw"]
    assert registry["hammer"].__module__ == "tools.hammer"


def test_a_name_that_two_packages_claim_is_nobodys(registry, package):
    package("sharp-things", "1.2", {"saws.py": saw()}, tools={"saw": "saws:Saw"})
    package("blunt-things", "0.3", tools={"saw": "saws:Saw"})
    with pytest.raises(PluginError, match=r"(sharp-things 1.2|blunt-things 0.3) \(saws:Saw\) and .* uninstall one"):
        registry["saw"]
    assert "saws" not in sys.modules and registry.names() == ["hammer", "saw"]


@pytest.mark.parametrize("name", ["saw+axe", "*", "a saw", "a/saw"])
def test_a_name_that_could_not_be_written_in_a_matrix_is_passed_over(name, registry, package):
    package("sharp-things", "1.2", {"saws.py": saw()}, tools={name: "saws:Saw", "lab:saw-2.0": "saws:Saw"})
    assert registry.names() == ["hammer", "lab:saw-2.0"]
    assert "a name has letters, digits and _ - . : only" in registry.passed_over[name]
    with pytest.raises(UnknownName):
        registry[name]


def test_a_star_goes_without_those_that_cannot_be_used(registry, package, caplog):
    package("sharp-things", "1.2", {"saws.py": saw()}, tools={"saw": "saws:Saw", "axe": "axes:Axe"})
    assert [name for name, _, _ in matrix.entries(["*"], registry)] == ["hammer", "saw"]
    assert ["axe" in record.getMessage() for record in caplog.records] == [True]
    with pytest.raises(PluginError, match="the tool 'axe' of sharp-things 1.2"):
        list(matrix.entries(["axe"], registry))


def test_evidence_covers_a_packages_own_files_and_ours_that_it_builds_on(package):
    helpers = {"deep.py": "TWO = 2\n", "other.py": "ONE = 1\n", "optional.py": "import not_there_either\n"}
    site = package("sharp-things", "1.2")
    (site / "lab").mkdir()
    texts = helpers | {"__init__.py": "", "saw.py": "from .deep import TWO\nfrom . import more\nimport lab.optional\n"}
    for file, text in (texts | {"more.py": "from methods.blockwise import BlockwiseMethod\n"}).items():
        (site / "lab" / file).write_text(text)

    def digest() -> str:
        importlib.invalidate_caches()
        module_digest.cache_clear()
        return module_digest("lab.saw")

    seen = [digest()]
    for file in ("deep.py", "more.py", "saw.py", "optional.py"):
        with (site / "lab" / file).open("a") as end:
            end.write("MORE = 3\n")
        seen.append(digest())
    assert len(set(seen)) == 5
    (site / "lab" / "other.py").write_text("ONE = 3\n")
    (site / "lab" / "deep.py").write_text("# a word\nTWO = 2\nMORE = 3\n")
    assert digest() == seen[-1]
    (site / "lab" / "more.py").write_text("MORE = 3\n")
    without_ours = digest()
    (site / "lab" / "more.py").write_text("MORE = 3\nimport methods.lora\n")
    assert digest() != without_ours


def test_evidence_of_a_plugin_changes_with_the_code_of_ours_that_it_builds_on(package, monkeypatch):
    site = package("sharp-things", "1.2", {"saws.py": "from methods import SamMethod\n"})
    read, seen = Path.read_text, set()
    monkeypatch.setattr(Path, "read_text", lambda self, *args, **more: seen.add(self) or read(self, *args, **more))
    module_digest("saws")
    assert site / "saws.py" in seen
    assert {"base.py", "compose.py", "encoder.py", "decoder.py"} <= {path.name for path in seen}
