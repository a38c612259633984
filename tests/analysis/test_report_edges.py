"""The report of results that are not as they should be: none done, one method, no files of single images, no scores."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

from analysis import report


class Page:
    """A page as text, by its sections."""

    def __init__(self, text: str) -> None:
        self.source = text
        self.sections = dict(re.findall(r'<section id="(\w+)">(.*?)(?=<section id="|</main>)', text, re.DOTALL))
        self.sections["head"] = re.findall(r"<header>(.*?)</header>", text, re.DOTALL)[0]
        self.listed = json.loads(re.findall(r'id="list">(.*?)</script>', text)[0])

    def text(self, section: str) -> str:
        return unescape(re.sub("<[^>]*>", "", self.sections[section]))


def made(path: Path) -> Page:
    assert report.main(["--results", str(path), "--keep-figures"]) == 0
    return Page((path / "report.html").read_text(encoding="utf-8"))


def test_warnings_are_loud(folder: Any) -> None:
    folder.add(checkpoint="none")
    folder.add(seed=1, train_images=3, train_images_available=2000, stale=("data.train",))
    changed = folder.add(seed=2) / "result.json"
    changed.write_text(changed.read_text().replace('"dirty": false', '"dirty": true'))
    unknown = folder.add(seed=3) / "result.json"
    unknown.write_text(unknown.read_text().replace('"0123456789abcdef"', "null"))
    (folder.path / "cells" / "broken").mkdir()
    page = made(folder.path)
    said = [unescape(line) for line in re.findall(r'class="warning">(?:<summary>)?([^<]*)', page.sections["head"])]
    for words in ("RANDOM BACKBONE in 1 of 4", "PARTIAL DATA in 1", "STALE are 1", "UNCOMMITTED CHANGES in 1",
                  "COMMIT NOT KNOWN of 1", "UNREADABLE: 1 "):  # fmt: skip
        assert any(line.startswith(words) for line in said), words


def test_imported_scores_alone(folder: Any) -> None:
    folder.add_imported(scores={"iou": 0.5})
    page = made(folder.path)
    assert "50.0 ‡" in page.text("tables") and page.listed["shared"][0][-1] == "imported"


def test_one_method_and_one_seed(folder: Any) -> None:
    folder.add()
    page = made(folder.path)
    assert "it is the only method here" in page.text("verdict")
    assert "of one run each, so without a spread" in page.text("tables")


def test_a_published_copy_says_what_comparisons_need(folder: Any) -> None:
    for seed in range(2):
        for method, score in {"lora": 0.75, "conv_lora": 0.76}.items():
            folder.add(method=method, seed=seed, scores={"iou": score})
    text = made(folder.path).text("verdict")
    assert "per_image.parquet is missing" in text and "python -m bench.cell isic2017-" in text
    assert "The best mean is that of conv_lora" in text and "is not known" in text and "worse than" not in text


def test_a_score_that_is_no_number_is_told_and_left_out(folder: Any) -> None:
    folder.add(scores={"iou": float("nan"), "dice": 0.5})
    folder.add(method="lora", scores={"iou": 0.5, "dice": 0.5})
    page = made(folder.path)
    assert "no finite number in test/paper/iou" in page.text("head")
    assert "nan" not in page.text("tables").lower()


def test_without_any_result_the_next_command_is_told(tmp_path: Path, folder: Any, capsys: Any) -> None:
    assert report.main(["--results", str(tmp_path / "none")]) == 2
    folder.add(state="planned")
    assert report.main(["--results", str(folder.path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("Next: python -m bench.run --matrix" in line for line in lines)
    assert not (folder.path / "report.html").exists() and not (folder.path / "figures").exists()


def test_probes_alone_are_enough(folder: Any) -> None:
    record = {
        "name": "one", "backbone": "sam_vit_b", "checkpoint": "sam_vit_b_01ec64.pth", "random_backbone": False,
        "image_size": 224, "pool": "mean", "dataset": "imagenet_1k", "images": 50_000, "mode": "cached", "edge": False,
        "top1": 0.531, "date": "2026-11-22T10:00:00", "environment": {"commit": "0123456789ab", "dirty": False},
    }  # fmt: skip
    (folder.path / "probe").mkdir(parents=True)
    folder.write(folder.path / "probe" / "one.json", record)
    page = made(folder.path)
    assert "Linear probing" in page.text("tables") and "53.1" in page.text("tables")
    assert page.listed["cells"][0][0] == "one" and "verdict" not in page.sections


def test_measurements_of_speed_are_there_with_their_cells(folder: Any) -> None:
    spec = {
        "kind": "speed", "method": {"name": "lora", "version": 1}, "backbone": "vit_h", "checkpoint": "none",
        "image_size": 1024, "precision": "bf16", "device": "NVIDIA H200", "machine": {"micro_batch": 1},
    }  # fmt: skip
    path = folder.path / "cells" / "speed-lora-b1-00000000"
    path.mkdir(parents=True)
    folder.write(path / "cell.json", {"id": path.name, "spec": spec, "evidence": {}})
    folder.write(path / "status.json", {"state": "done", "reason": None, "attempt": 2})
    speed = {"cores_busy_elsewhere": 0.0, "memory": "allocated on the device"}
    for key, rate in (("train", 20.25), ("inference", 50.5)):
        speed |= {f"{key}_it_per_s": rate, f"{key}_it_per_s_repeats": [rate] * 3, f"{key}_memory_gb": 9.0}
    folder.write(path / "result.json", {
        "id": path.name, "measured": "2026-11-22T12:00:00", "random_backbone": True, "speed": speed,
        "resolved": {"method": {"name": "lora", "parameters": {"rank": 3}}},
        "parameters": {"trainable": 4, "total": 64},
        "environment": {"torch": "2.12", "commit": "c0ffee", "dirty": False, "threads": 16, "host": "secret"},
    })  # fmt: skip
    page = made(folder.path)
    assert "Table 14 of Convolution Meets LoRA" in page.text("tables")
    (place,) = re.findall(r'<button data-cells="(\d+)">20\.25', page.source)
    assert page.listed["cells"][int(place)][:4] == [path.name, None, "2026-11-22 12:00", 2]
    assert "secret" not in page.source
