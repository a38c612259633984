"""``python -m analysis.tables --check``: what in a folder of tables is not what the results give."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from analysis.committed import MOST_LINES, disagreements
from analysis.tables import main

PUBLISHED = sorted((Path(__file__).resolve().parents[2] / "results" / "published").glob("*/tables"))


@pytest.fixture
def written(folder) -> Path:
    """The tables of a small folder of results, as the command writes them, and its ledger."""
    for method, score in {"lora": 0.7, "conv_lora": 0.8}.items():
        folder.add(method=method, scores={"iou": score})
        folder.add(method=method, scores={"iou": score}, protocol="literature", seed=1)
    assert main(["--results", str(folder.path)]) == main(["--results", str(folder.path), "--ledger"]) == 0
    return folder.path / "tables"


def check(written: Path, *options: str) -> int:
    return main(["--results", str(written.parent), "--check", *options])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_agree(written: Path, capsys) -> None:
    before = contents(written)
    capsys.readouterr()
    assert check(written) == 0
    assert capsys.readouterr().out == f"6 files of tables in {written} are what {written.parent} gives\n"
    assert contents(written) == before


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda path: path.parent.name)
def test_what_the_repository_holds(published: Path, capsys) -> None:
    assert check(published) == 0, capsys.readouterr().out


def test_a_changed_number_is_shown(written: Path, capsys) -> None:
    path = written / "table6-vit_h-1024-bf16.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("**80.0", "**81.0"), encoding="utf-8")
    before = contents(written)
    capsys.readouterr()
    assert check(written) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"differs: {path}" and said[1].startswith("@@")
    assert [line[0] for line in said[2:4]] == ["-", "+"]
    assert "**81.0" in said[2] and "**80.0" in said[3]
    assert said[4].startswith(
        f"1 in {written} not as {written.parent} gives them (6 files of tables). Next: python -m "
    )
    assert len(said) == 5 and contents(written) == before, "it writes nothing"


def test_a_new_result_makes_all_tables_old(written: Path, folder, capsys) -> None:
    folder.add(method="vpt", scores={"iou": 0.9})
    assert check(written) == 1
    out = capsys.readouterr().out
    assert out.count("differs: ") == 6 and "lines more" in out


def test_missing_and_superfluous_tables_are_named(written: Path, capsys) -> None:
    (written / "table6-vit_h-1024-bf16.tex").unlink()
    shutil.copy(written / "table1-vit_h-1024-bf16.md", written / "table2-vit_h-1024-bf16.md")
    (written / "notes.txt").write_text("")
    capsys.readouterr()
    assert check(written) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [
        f"superfluous, to be removed: {written / 'table2-vit_h-1024-bf16.md'}",
        f"missing: {written / 'table6-vit_h-1024-bf16.tex'}",
    ]
    assert check(written, "--table", "1") == 0, "only what was asked for"
    assert check(written, "--format", "csv") == 0


def test_line_ends_count(written: Path, capsys) -> None:
    path = written / "table6-vit_h-1024-bf16.csv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert check(written) == 1
    assert f"differs: {path}\nits line ends are not \\n\n" in capsys.readouterr().out


def test_the_other_protocol_is_checked_on_its_own(written: Path) -> None:
    assert main(["--results", str(written.parent), "--protocol", "literature"]) == 0
    assert check(written) == check(written, "--protocol", "literature") == 0
    (written / "table6-vit_h-1024-bf16-literature.md").write_text("")
    (written / "table9-vit_h-1024-bf16-literature.md").write_text("")
    assert check(written) == 0 and check(written, "--protocol", "literature") == 1


def test_a_folder_of_its_own(written: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(written, tmp_path / "copy")
    assert check(written, str(tmp_path / "copy")) == 0
    capsys.readouterr()
    assert check(written, str(tmp_path / "none")) == 1
    assert capsys.readouterr().out.count("missing: ") == 6


def test_the_ledger_is_written_and_never_checked(written: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        check(written, "--ledger")
    assert stopped.value.code == 2


def test_nothing_to_check_with(tmp_path: Path, capsys) -> None:
    assert main(["--results", str(tmp_path), "--check"]) == 2
    assert "Next: python -m bench.run" in capsys.readouterr().err


def test_a_diff_is_short_and_begins_where_lines_differ(tmp_path: Path) -> None:
    old, new = ("\n".join(f"{'same ' * 100}{n} {word} {'end ' * 100}" for n in range(20)) for word in ("old", "new"))
    (tmp_path / "a.md").write_text(old)
    (found,) = disagreements({"a.md": new}, tmp_path, lambda name: True)
    lines = found.splitlines()
    assert len(lines) == 1 + MOST_LINES + 1 and lines[-1] == f"... and {41 - MOST_LINES} lines more"
    assert "same 0 old end" in lines[2] and max(map(len, lines[2:])) < 140
