"""Evidence: comments move no digest, code does, and a digest covers the helpers that a plugin imports."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

import datasets
import methods
from bench.evidence import (
    differing,
    digest,
    module_digest,
    of_scores,
    rescored,
    source_evidence,
    stripped,
    unscored,
)
from bench.spec import Cell, make_cell

PROJECT = Path(__file__).resolve().parents[2]
SOURCE = '''"""Doc of the module."""

# a comment
import math


class Thing:
    """Doc of the class.

    # no comment
    """

    limit = 3  # why three
    text = "a # b"

    def area(self, r):
        """Doc of the function."""
        return math.pi * r**2
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a comment\n", ""),
        ("# a comment", "# another one"),
        ("  # why three", ""),
        ('"""Doc of the module."""', '"""Another\n\ndoc."""'),
        ('        """Doc of the function."""\n', ""),
        ("Doc of the class.", "It changed."),
        ("limit = 3  # why three\n", 'limit = 3\n    """What the limit means."""\n'),
        ("\n\nclass", "\n\n\n\nclass"),
        ("import math\n", "import math   \n"),
    ],
)
def test_comments_and_docstrings_change_nothing(old, new):
    assert SOURCE.replace(old, new) != SOURCE
    assert stripped(SOURCE.replace(old, new)) == stripped(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("limit = 3", "limit = 4"),
        ("a # b", "a # c"),
        ("r**2", "r**3"),
        ("self, r", "self, r=1"),
        ("import math", "import cmath"),
    ],
)
def test_code_changes_it(old, new):
    assert stripped(SOURCE.replace(old, new)) != stripped(SOURCE)


def test_a_string_that_is_no_docstring_is_code():
    assert stripped('def f():\n    return """a"""\n') != stripped('def f():\n    return """b"""\n')
    assert stripped('x = """a # b\n"""\n') != stripped('x = """a # c\n"""\n')


def test_a_class_in_one_line_keeps_its_bases():
    assert stripped('class A(ValueError): """Doc."""\n') != stripped('class A(KeyError): """Doc."""\n')


def tree(source: str) -> str:
    """The program as Python's own parser sees it, without strings that are statements."""

    class Undocumented(ast.NodeTransformer):
        def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
            return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node

    return ast.dump(Undocumented().visit(ast.parse(source)))


def test_our_own_files_lose_nothing_else():
    compared = 0
    for path in (file for room in ("bench", "methods", "datasets") for file in (PROJECT / room).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        try:
            kept = tree(stripped(source))
        except SyntaxError:  # some function had nothing but a docstring
            continue
        compared += 1
        assert kept == tree(source), path
    assert compared > 30


def test_boundaries_between_texts_count():
    assert digest(["ab", "c"]) != digest(["a", "bc"]) != digest(["abc"])
    assert len(digest([])) == 64


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose plugin uses a helper, which uses another; ``write`` changes one of its files."""
    name = f"plugins_{tmp_path.name.replace('-', '_')}"
    monkeypatch.syspath_prepend(tmp_path)

    def write(file: str, text: str) -> None:
        path = tmp_path / name / f"{file}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace("PACKAGE", name))
        importlib.invalidate_caches()
        module_digest.cache_clear()

    write("__init__", "")
    write("plugin", "import os\nfrom PACKAGE.helper import half\nfrom PACKAGE import settings\n")
    write("helper", "def half(x):\n    import PACKAGE.deep as deep\n    return deep.twice(x) / 4\n")
    write("deep", "def twice(x):\n    return 2 * x\n")
    write("settings", "LIMIT = 1\n")
    write("other", "LIMIT = 1\n")
    yield name, write
    module_digest.cache_clear()
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def test_a_digest_covers_the_helpers_a_plugin_imports_wherever_it_does(package):
    name, write = package
    seen = [module_digest(f"{name}.plugin")]
    for file, text in (
        ("deep", "def twice(x):\n    return 3 * x\n"),
        ("settings", "LIMIT = 2\n"),
        ("plugin", "import os\n"),
    ):
        write(file, text)
        seen.append(module_digest(f"{name}.plugin"))
    assert len(set(seen)) == 4


def test_a_digest_covers_nothing_else(package):
    name, write = package
    before = module_digest(f"{name}.plugin")
    write("other", "LIMIT = 2\n")
    write("deep", "# a word\ndef twice(x):\n    '''Double.'''\n    return 2 * x\n")
    assert module_digest(f"{name}.plugin") == before


def cell(method: str = "lora") -> Cell:
    return make_cell(
        method=methods.create(method),
        dataset=datasets.load("shapes"),
        seed=0,
        backbone="tiny",
        checkpoint="none",
        image_size=64,
        precision="fp32",
    )


def covered(module: str, monkeypatch) -> set[str]:
    """The files that enter a module's digest."""
    read, seen = Path.read_text, set()
    monkeypatch.setattr(
        Path, "read_text", lambda self, *args, **options: seen.add(self.name) or read(self, *args, **options)
    )
    module_digest.cache_clear()
    module_digest(module)
    return seen


def test_what_a_method_is_made_of(monkeypatch):
    """Conv-LoRA's experts and routing, and SAM itself; not the other methods, not the harness."""
    files = covered("methods.conv_lora", monkeypatch)
    assert {
        "conv_lora.py",
        "lora.py",
        "conv_experts.py",
        "routing.py",
        "randomness.py",
        "encoder.py",
        "base.py",
    } <= files
    assert not files & {"training.py", "registry.py", "shapes.py"}
    assert {"shapes.py", "painting.py", "base.py"} <= covered("datasets.shapes", monkeypatch)


def test_each_component_has_its_digest():
    vpt, conv_lora, both = (source_evidence(cell(name)) for name in ("vpt", "conv_lora", "conv_lora+vpt"))
    assert set(vpt) == {"method", "dataset", "training", "evaluation"}
    assert len(set(vpt.values())) == 4
    assert {key for key in vpt if vpt[key] != conv_lora[key]} == {"method"}
    assert len({vpt["method"], conv_lora["method"], both["method"]}) == 3


MADE = {
    "data": {"train": "a", "validation": "b", "camo": "c", "cod10k": "d"},
    "images": {"train": 9, "validation": 3, "camo": 5, "cod10k": 7},
    "checkpoint": "k",
    "source": {"method": "m", "training": "t", "evaluation": "e"},
}
OLD_FORM = {**MADE, "data": "of all splits", "split": "of the lists"}


def changed(evidence: dict, part: str, **values: object) -> dict:
    return evidence | {part: evidence[part] | values}


def without(evidence: dict, split: str) -> dict:
    """The evidence of a copy that lacks a test set."""
    kept = {part: {k: v for k, v in evidence[part].items() if k != split} for part in ("data", "images")}
    return evidence | kept


@pytest.mark.parametrize(
    ("new", "pieces"),
    [
        (MADE, []),
        (MADE | {"checkpoint": "x"}, ["checkpoint"]),
        (changed(MADE, "source", method="x", evaluation="x"), ["source.evaluation", "source.method"]),
        (changed(MADE, "data", train="x", camo="x"), ["data.camo", "data.train"]),
        (changed(changed(MADE, "data", train="x"), "images", train=8), ["data.train"]),
        (changed(MADE, "data", nc4k="n"), []),
        (without(MADE, "camo"), []),
    ],
)
def test_differing_names_the_pieces(new, pieces):
    assert differing(MADE, new) == pieces == differing(new, MADE)


def test_evidence_of_before_the_digests_by_split_is_stale_and_no_error():
    assert differing(OLD_FORM, MADE) == ["data", "split"]
    assert unscored(OLD_FORM, MADE) == []
    assert differing({}, MADE) == ["checkpoint", "source.evaluation", "source.method", "source.training"]


def test_test_sets_that_came_later_are_known():
    assert unscored(MADE, changed(MADE, "data", nc4k="n", chameleon="m")) == ["chameleon", "nc4k"]
    assert unscored(MADE, without(MADE, "camo")) == []
    assert unscored(without(MADE, "camo"), MADE) == ["camo"]


def test_which_pieces_need_a_training():
    pieces = ("data.camo", "data.test", "source.evaluation")
    assert [piece for piece in pieces if of_scores(piece)] == [*pieces]
    pieces = ("data", "data.train", "data.validation", "split", "checkpoint", "source.method", "source.dataset")
    assert [piece for piece in pieces if of_scores(piece)] == []


def test_scoring_again_renews_what_scores_are_made_from_and_nothing_else():
    today = changed(changed(MADE, "data", train="x", camo="x", nc4k="n"), "images", train=8, nc4k=4)
    today = changed(today | {"checkpoint": "x"}, "source", method="x", evaluation="x")
    made = rescored(MADE, without(today, "cod10k"))
    assert made["data"] == {"train": "a", "validation": "b", "camo": "x", "nc4k": "n"}
    assert made["images"] == {"train": 9, "validation": 3, "camo": 5, "nc4k": 4}
    assert made["source"] == {"method": "m", "training": "t", "evaluation": "x"} and made["checkpoint"] == "k"
    assert differing(made, today) == ["checkpoint", "data.train", "source.method"]
    assert rescored(OLD_FORM, today) == changed(OLD_FORM, "source", evaluation="x")
