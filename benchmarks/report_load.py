"""How large the page of a long run is, and how long a browser takes until it is drawn and ready.

    python benchmarks/report_load.py --out benchmarks/results/report_load.json

Needs a chromium. Runs of more and more changes of size; the median of some loads of each.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from playwright.sync_api import Browser, sync_playwright
from report_cases import long_run

from senn.viz.report import RunReport, page

_DRAWN = "html[data-drawn]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--events",
        type=int,
        nargs="+",
        default=[10, 100, 500, 1000],
        help="changes of size of a run",
    )
    parser.add_argument("--loads", type=int, default=5, help="how often each page is opened")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    args = parser.parse_args()
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if chromium is None:
        sys.exit("this needs a chromium")
    rows = []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for events in args.events:
            rows.append(measure(browser, events, args.loads, Path(folder)))
            print(
                f"{events:5} changes: {rows[-1]['megabytes']:.2f} MB, written in {rows[-1]['written']:.2f} s, "
                f"drawn after {rows[-1]['drawn']:.2f} s, a move of the slider takes {1000 * rows[-1]['move']:.1f} ms"
            )
        browser.close()
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


def measure(browser: Browser, events: int, loads: int, folder: Path) -> dict[str, Any]:
    """One run's page."""
    history = long_run(events)
    started = time.perf_counter()
    text = page([RunReport("long", history)])
    written = time.perf_counter() - started
    file = folder / f"{events}.html"
    file.write_text(text, "utf-8")
    drawn, moves = [], []
    for _ in range(loads):
        tab = browser.new_page()
        started = time.perf_counter()
        tab.goto(file.as_uri())
        tab.wait_for_selector(_DRAWN, state="attached")
        drawn.append(time.perf_counter() - started)
        moves.append(
            tab.evaluate(
                "(() => { const { player } = senn, start = performance.now();"
                "for (let at = 0; at < 50; at++) player.show(Math.floor(at * player.steps.length / 50));"
                "return (performance.now() - start) / 50000; })()"
            )
        )
        tab.close()
    size = len(text.encode()) / 1e6
    return {
        "events": events,
        "megabytes": size,
        "written": written,
        "drawn": statistics.median(drawn),
        "move": statistics.median(moves),
    }


if __name__ == "__main__":
    main()
