"""``python -m datasets`` where its output ends early, takes no such letters, or is not there; and when interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.__main__ import main

PROJECT = Path(__file__).resolve().parents[2]
COMMAND = f"{sys.executable} -m datasets"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], cwd=PROJECT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("words", "code"), [("list", 0), ("verify shapes --set train_images=0", 2)])
def test_a_closed_stream_takes_nothing(words: str, code: int, closed: str) -> None:
    done = shell(f"{COMMAND} {words} {closed}")
    assert done.returncode == code and "Traceback" not in done.stderr
    assert ("error: " in done.stderr) is (code == 2 and closed == ">&-")
    assert ("shapes" in done.stdout) is (code == 0 and closed == "2>&-")


@pytest.mark.parametrize("words", ["list", "list --json"])
def test_a_reader_that_has_seen_enough_ends_it_quietly(words: str) -> None:
    done = shell(f"{COMMAND} {words} | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def plant(base: Path, name: str) -> None:
    """A copy of sbu whose test set has a sample of that name."""
    noise = np.random.default_rng(0)
    for part in ("SBUTrain4KRecoveredSmall", "SBU-Test"):
        for folder in ("ShadowImages", "ShadowMasks"):
            (base / part / folder).mkdir(parents=True)
        for stem in [*map(str, range(4)), *([name] if part == "SBU-Test" else [])]:
            pixels = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(base / part / "ShadowImages" / f"{stem}.png")
            mask = (pixels[..., 0] > 99) * np.uint8(255)
            Image.fromarray(mask).save(base / part / "ShadowMasks" / f"{stem}.png")


LATIN = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize("folder", ["data", LATIN])
def test_names_that_are_no_utf8(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / folder
    plant(root / "sbu", LATIN)
    broken = root / "sbu" / "SBU-Test" / "ShadowImages" / f"{LATIN}.png"
    digests = []
    for _ in range(2):
        assert main(["verify", "sbu", "--json", "--data-root", str(root)]) == 1  # fewer than published
        report = json.loads(capsys.readouterr().out)
        assert report["usable"]["test"] == 5 and report["base"] == str(root / "sbu")
        digests.append(report["digests"])
    assert digests[0] == digests[1]

    broken.write_bytes(broken.read_bytes()[:90])
    assert main(["verify", "sbu", "--data-root", str(root)]) == 1
    assert "  SBU-Test/ShadowImages/caf\\udce9.png: " in capsys.readouterr().out
    assert main(["prepare", "sbu", "--image-size", "8", "--data-root", str(root)]) == 2
    assert "  SBU-Test/ShadowImages/caf\\udce9.png: " in capsys.readouterr().err


def test_an_interruption_is_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    plant(tmp_path / "sbu", "a")
    monkeypatch.setattr("datasets.inspection.inspect_mask", interrupted)
    assert main(["verify", "sbu", "--data-root", str(tmp_path)]) == 128 + signal.SIGINT
    assert capsys.readouterr() == ("", "stopped\n")
