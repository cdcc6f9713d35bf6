"""A browser and pages for the tests of the report: one of each for all tests of a process."""

import contextlib
import shutil

import pytest
from report_cases import (
    HOSTILE,
    PICTURE_DETAILS,
    long_run,
    picture_results,
    short_run,
    waves,
)

from senn.export import python_source
from senn.viz.report import RunReport, page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="session")
def browser():
    """A chromium for all tests of a process."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("vl_convert")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """Files: one run, two runs, one with hostile names."""
    folder = tmp_path_factory.mktemp("pages")
    run, results = waves()
    one = RunReport("waves", run.history, results, python_source(run.model))
    pictures = RunReport("short", short_run(), picture_results(results), None, PICTURE_DETAILS)
    numbers = {**results, "task": "regression", "test": {"r2": 0.5}}
    pairs = {"pairs": [[1.0, 2.0], [3.5, 3.0], [-4.0, -4.0]], "wrong": None, "wrongest": []}
    number = RunReport("short", short_run(), numbers, None, pairs)
    hostile = {
        **results,
        "data": {
            **results["data"],
            "target": HOSTILE,
            "classes": [HOSTILE],
            "columns": {HOSTILE: "number"},
        },
    }
    history = long_run(20, name=lambda number: f"{number}{HOSTILE}")
    history.append(
        {"event": "rollback", "epoch": 200, "step": history[-2]["step"], "text": HOSTILE}
    )
    brief = RunReport("short", short_run(), results, "class Net: pass")
    texts = {
        "short": page([brief]),
        "short two": page([brief, brief]),
        "one": page([one]),
        "pictures": page([pictures]),
        "numbers": page([number]),
        "two": page([one, RunReport("other", long_run(6))]),
        "hostile": page([RunReport(HOSTILE, history, hostile, HOSTILE)]),
        "fixed": page(
            [
                RunReport(
                    "fixed", [one for one in run.history if one["event"] in ("start", "epoch")][:1]
                )
            ]
        ),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, "utf-8")
    return folder


@contextlib.contextmanager
def opened(browser, address, **options):
    """A page that is drawn; in the end it must have said nothing and asked for nothing."""
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options})
    tab = context.new_page()
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(str(address))
    tab.wait_for_selector("html[data-drawn]", state="attached")
    try:
        yield tab
        assert said == []
        allowed = str(address).rstrip("/")
        assert [url for url in asked if not url.startswith((allowed, "data:"))] == []
    finally:
        context.close()


def local(pages, name):
    return (pages / f"{name}.html").as_uri()


@pytest.fixture(scope="session")
def single(browser, pages):
    """The page of one run, for tests that leave no trace that another would trip over."""
    with opened(browser, local(pages, "one")) as tab:
        yield tab
