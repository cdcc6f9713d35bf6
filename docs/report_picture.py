"""The picture of a report in the README: a run, its page, a browser's screenshot.

    python docs/report_picture.py

Needs a chromium. Writes docs/report.png.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from senn.cli.main import main

HERE = Path(__file__).parent
INSERTED = (
    "senn.player.show(senn.stories[0].rounds.find((round) => kindOf(round) === 'insert').moment)"
)


def draw() -> None:
    """Make the run, its report and the picture."""
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if chromium is None:
        sys.exit("this needs a chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        run = Path(folder) / "digits"
        main(["fit", "digits", "--seed", "1", "--out", str(run), "--quiet"])
        main(["report", str(run)])
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1100, "height": 1180})
        tab.goto((run / "report.html").as_uri())
        tab.wait_for_selector("html[data-drawn]", state="attached")
        tab.evaluate(INSERTED)
        tab.wait_for_timeout(300)
        tab.screenshot(path=HERE / "report.png")
        browser.close()


if __name__ == "__main__":
    draw()
