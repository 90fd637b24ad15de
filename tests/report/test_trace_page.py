"""The page of a summary, opened in a browser: what a person sees there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from interleaf.tracing import summarise
from tests.ftrace.carried import trace_of

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

LOOK = """
<script>
const boxes = name => [...document.querySelectorAll(name)].map(one => one.getBoundingClientRect());
const looked = {
  title: document.title,
  text: document.body.innerText,
  fetched: performance.getEntriesByType("resource").map(entry => entry.name),
  wide: document.documentElement.scrollWidth > document.documentElement.clientWidth,
  pictures: [...document.querySelectorAll("svg")].map(picture => {
    const all = picture.getBoundingClientRect();
    const inside = box => box.left >= all.left - 1 && box.right <= all.right + 1 && box.top >= all.top - 1
      && box.bottom <= all.bottom + 1;
    const words = [...picture.querySelectorAll("text")];
    return {
      name: picture.getAttribute("aria-label"),
      width: all.width,
      bars: [...picture.querySelectorAll("rect")].filter(bar => {
        const box = bar.getBoundingClientRect();
        return box.width > 0 && box.height > 0 && inside(box) && getComputedStyle(bar).fill !== "rgb(0, 0, 0)";
      }).length,
      words: words.map(word => word.textContent),
      cut: words.filter(word => !inside(word.getBoundingClientRect())).map(word => word.textContent),
    };
  }),
};
const found = document.createElement("pre");
found.id = "looked";
found.textContent = JSON.stringify(looked);
document.body.replaceChildren(found);
</script>
"""
"""What is asked of the page in the browser; the answer is then all that the page has."""


def browser() -> str:
    """The browser of this machine. Skips the test if there is none; in CI, where one is installed, it fails."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no Chromium, which .ci/run installs")
        pytest.skip("needs Chromium: as root, apt-get install chromium")
    return found


def seen(page: Path, folder: Path) -> dict[str, Any]:
    """What a browser shows of a page."""
    asking = folder / "asking.html"
    asking.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0", "--window-size=1200,1000"]
    run = subprocess.run(
        [*command, "--dump-dom", asking.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in run.stderr, run.stderr
    answer = re.search(r'<pre id="looked">(.*)</pre>', run.stdout, re.DOTALL)
    assert answer is not None, run.stdout[-2000:]
    text = answer[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_browser_shows_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, document = tmp_path / "page.html", tmp_path / "summary.json"
    trace = trace_of("6.12/runA/w08b_stress_data")
    assert summarise(trace, page, document, None, True) == 0
    capsys.readouterr()
    entry = json.loads(document.read_text())
    shown = seen(page, tmp_path)
    assert shown["title"] == f"Trace: {trace}"
    assert shown["fetched"] == []
    assert not shown["wide"]
    text = shown["text"]
    assert f"{sum(entry['events'].values()):,} events" in text
    assert f"Each of {entry['continuity']['changes']:,} changes fits what came before." in text
    for fault in entry["faults"]:
        assert re.search(rf"{fault['access']}\s+{re.escape(fault['outcome'])}\s+{fault['count']:,}\s", text), fault
    for zap in entry["zaps"]:
        assert re.search(rf"{zap['cause']}\s+{zap['size']}\s+{zap['count']:,}\s", text), zap
    for word in ("Mapped pages", "Mapped again after a zap", "How long tasks kept changing", "Roots", "Busiest gfns"):
        assert word in text
    assert f"{entry['roots']['created']} created, {entry['roots']['zap_alls']} times" in text

    timeline, heat = shown["pictures"]
    rows = [*entry["timeline"]["counts"].values(), *entry["timeline"]["mapped"].values()]
    assert timeline["bars"] == sum(value > 0 for row in rows for value in row) > 100
    assert {"faults", "maps", "zaps", "zap all", "4K mapped"} <= set(timeline["words"])
    assert heat["bars"] == len(entry["heat"]["cells"]) > 100
    assert f"{entry['heat']['gfns'][0]:x}" in heat["words"]
    for picture in (timeline, heat):
        assert picture["width"] > 800
        assert picture["cut"] == []


def test_a_browser_shows_storms_splits_and_what_could_not_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    trace = trace_of("6.1/icount/w07_thp_eager")
    assert summarise(trace, page, None, None, True) == 0
    shown = seen(page, tmp_path)
    assert "Zap storms" in shown["text"]
    assert {"splits", "2M mapped", "4K mapped"} <= set(shown["pictures"][0]["words"])
    assert re.search(r"split\s+2\s+3\s", shown["text"])
    assert all(picture["cut"] == [] for picture in shown["pictures"])
    file = tmp_path / "bad.txt"
    file.write_text("a-1 [000] ..... 1.000001: kvm_mmu_zap_all_fast: kvm-mmu-valid-gen 0 used_pages 0\n<b>no\n")
    assert summarise(file, page, None, None, False) == 3
    capsys.readouterr()
    shown = seen(page, tmp_path)
    assert re.search(r"not a line of a trace\s+1\s+line 2: <b>no", shown["text"])


def test_without_a_browser_ci_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no Chromium"):
        browser()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="needs Chromium"):
        browser()
