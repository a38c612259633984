"""The report in a real browser: it sorts, filters and shows cells, says nothing on the console, fits a telephone.

The page's own policy forbids other scripts, so each test allows one more in a copy of the page; what it found is read
from the document that the browser prints.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from base64 import b64encode
from hashlib import sha256
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from analysis import report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SCORES = {"lora": 0.71, "vpt": 0.9, "ssf": 0.095, "bitfit": 0.8}
# Written before the page's own script runs.
RECORD = """
window.problems = [];
addEventListener("error", (event) => problems.push(String(event.message)), true);
addEventListener("securitypolicyviolation", (event) => problems.push(`${event.violatedDirective} ${event.blockedURI}`));
for (const kind of ["error", "warn"]) console[kind] = (...said) => problems.push(said.join(" "));
"""
TOOLS = """
const all = (query, root = document) => [...root.querySelectorAll(query)];
const table = all("#tables table").find((one) => one.caption.textContent === "ISIC 2017");
const names = (root = table) => all("tbody tr:not([hidden]) th", root).map((one) => one.textContent);
const heading = (text) => all("thead th", table).find((one) => one.textContent.startsWith(text));
const type = (box, text) => { box.value = text; box.dispatchEvent(new Event("input", { bubbles: true })); };
const finish = (found) => { document.body.dataset.found = JSON.stringify({ ...found, problems }); };
"""


@pytest.fixture(scope="session")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser to look at the report: none of {', '.join(BROWSERS)} is installed")
    return found


@pytest.fixture
def page(folder: Any) -> Path:
    """A report of four methods and a failed cell, without figures."""
    for seed in range(3):
        for method, score in SCORES.items():
            folder.add(method=method, seed=seed, scores={"iou": score + seed / 1000, "dice": 0.5})
    folder.add(method="lst", state="failed")
    assert report.main(["--results", str(folder.path), "--keep-figures"]) == 0
    return folder.path / "report.html"


def watched(page: Path, script: str) -> Path:
    """A copy of the page that runs ``script`` after its own and records every problem."""
    text, allowed = page.read_text(encoding="utf-8"), ""
    for place, source in (("<head>", RECORD), ("</body>", TOOLS + script)):
        added = f"<script>{source}</script>"
        text = text.replace(place, place + added if place == "<head>" else added + place, 1)
        allowed += f" 'sha256-{b64encode(sha256(source.encode()).digest()).decode()}'"
    assert text.count("script-src ") == 1
    copy = page.with_name("watched.html")
    copy.write_text(text.replace("script-src ", f"script-src{allowed} "), encoding="utf-8")
    return copy


def opened(browser: str, page: Path, tmp_path: Path) -> dict[str, Any]:
    """What the page's script found when the browser showed the page."""
    words = [
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, f"the page's script did not end: {done.stderr[-2000:]}"
    return json.loads(unescape(found[1]))


def test_headings_sort(browser: str, page: Path, tmp_path: Path) -> None:
    found = opened(browser, watched(page, """
        const orders = [names()], states = [];
        for (let click = 0; click < 3; click++) {
          heading("Jac").querySelector("button").click();
          orders.push(names());
          states.push(heading("Jac").getAttribute("aria-sort"));
        }
        heading("Method").querySelector("button").click();
        const paper = all("thead th", table).filter((one) => one.textContent === "paper")[1];
        paper.querySelector("button").click();
        const sorted = all("[aria-sort]:not([aria-sort=none])", table).length;
        const column = all(`tbody td:nth-child(${paper.cellIndex + 1})`, table).map((one) => one.textContent);
        finish({ orders, states, sorted, column });
    """), tmp_path)  # fmt: skip
    before, down, up, after = found["orders"]
    assert down[:4] == ["VPT", "BitFit", "LoRA", "SSF"] and up[:4] == ["SSF", "LoRA", "BitFit", "VPT"]
    assert down[4:] == up[4:] == [name for name in before if name not in down[:4]], "rows without a number stay last"
    assert after == before and sorted(before) == sorted(down)
    assert found["states"] == ["descending", "ascending", "none"] and found["sorted"] == 1
    numbers = [float(text.split(" ")[0]) for text in found["column"] if text]
    assert numbers == sorted(numbers, reverse=True) and len(numbers) > 5
    assert found["problems"] == []


def test_boxes_filter(browser: str, page: Path, tmp_path: Path) -> None:
    found = opened(browser, watched(page, """
        const box = all("[data-filter]", table.closest("section"))[0];
        const before = names();
        type(box, "LORA");
        const one = names(), told = box.closest("p").querySelector("output").textContent;
        type(box, "no such method");
        const none = names();
        type(box, "");
        document.getElementById("all-cells").open = true;
        setTimeout(() => {
          const listed = names(document.getElementById("cell-list")).length;
          type(document.querySelector("[data-list]"), "failed lst");
          const failed = names(document.getElementById("cell-list"));
          finish({ before, one, told, none, again: names(), listed, failed });
        }, 100);
    """), tmp_path)  # fmt: skip
    assert set(found["one"]) == {"LoRA", "Conv-LoRA"} and re.fullmatch(r"\d+ of \d+ rows", found["told"])
    assert found["none"] == [] and found["again"] == found["before"]
    assert found["listed"] == 13 and len(found["failed"]) == 1 and found["failed"][0].startswith("isic2017-lst-s0-")
    assert found["problems"] == []


def test_a_number_shows_its_cells_and_escape_takes_them_away(browser: str, page: Path, tmp_path: Path) -> None:
    found = opened(browser, watched(page, """
        const panel = document.getElementById("behind"), [first, second] = all("td button", table);
        const hidden = panel.hidden;
        first.focus();
        first.click();
        const shown = panel.innerText, inside = document.activeElement === panel;
        const expanded = first.getAttribute("aria-expanded");
        second.focus();
        const other = panel.innerText;
        second.click();
        document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
        const back = document.activeElement === second && second.getAttribute("aria-expanded") === "false";
        second.click();
        panel.querySelector(".close").click();
        finish({ hidden, shown, inside, expanded, other, back, gone: panel.hidden });
    """), tmp_path)  # fmt: skip
    assert found["hidden"] and found["gone"] and found["inside"] and found["expanded"] == "true" and found["back"]
    assert found["shown"] != found["other"]
    cells = ("isic2017-bitfit-s0-", "isic2017-bitfit-s2-", "80.000", "80.200", "01234567", "abacus", "2026-01-02 03:04")
    for words in (*cells, "python -m bench.why isic2017-bitfit-s0-"):
        assert words in found["shown"]
    assert found["problems"] == []


def test_nothing_is_wider_than_a_telephone_and_figures_are_seen(browser: str, page: Path, tmp_path: Path) -> None:
    assert report.main(["--results", str(page.parent)]) == 0
    inner = watched(
        page,
        """
        addEventListener("load", () => {
          for (const one of all("details")) one.open = true;
          all("td button")[0].click();
          const seen = all("img").map((one) => one.complete && one.naturalWidth);
          const root = document.documentElement;
          parent.postMessage({ seen, wide: root.scrollWidth, room: root.clientWidth, problems }, "*");
        });
    """,
    )
    outer = page.with_name("telephone.html")
    outer.write_text(
        f'<iframe src="{inner.name}" width=400 height=800 style="border: 0"></iframe>'
        "<script>onmessage = (event) => { document.body.dataset.found = JSON.stringify(event.data); }</script>"
    )
    found = opened(browser, outer, tmp_path)
    assert 380 <= found["room"] <= 400 and found["wide"] <= found["room"]
    assert len(found["seen"]) >= 2 and all(found["seen"])
    assert found["problems"] == []


def test_markup_in_names_does_nothing(browser: str, folder: Any, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=document.title='hacked'>"
    for method in ("lora", hostile):
        path = folder.add(method=method, stale=(hostile,)) / "result.json"
        result = json.loads(path.read_text())
        result["environment"] |= {"device": "</script><script>document.title = 'hacked'</script>", "commit": hostile}
        path.write_text(json.dumps(result))
    assert report.main(["--results", str(folder.path), "--keep-figures"]) == 0
    found = opened(browser, watched(folder.path / "report.html", """
        all("td button").at(-1).click();
        document.getElementById("all-cells").open = true;
        const shown = document.getElementById("behind").innerText;
        setTimeout(() => finish({ shown, title: document.title, images: all("img").length }), 200);
    """), tmp_path)  # fmt: skip
    assert found["title"] == report.TITLE and found["images"] == 0
    assert "</script><script>document.title" in found["shown"] and found["problems"] == []
