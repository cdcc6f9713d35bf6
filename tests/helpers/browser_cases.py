"""A browser and pages for the tests of the report: one of each for all tests of a process."""

import contextlib
import shutil

import pytest
from report_cases import (
    HOSTILE,
    PICTURE_DETAILS,
    few_candidates,
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
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


def _waves(title="waves"):
    run, results = waves()
    return RunReport(title, run.history, results, python_source(run.model))


def _numbers():
    results = {**waves()[1], "task": "regression", "test": {"r2": 0.5}}
    pairs = {"pairs": [[1.0, 2.0], [3.5, 3.0], [-4.0, -4.0]], "wrong": None, "wrongest": []}
    return page([RunReport("short", short_run(), results, None, pairs)])


def _pictures():
    results = picture_results(waves()[1])
    return page([RunReport("short", short_run(), results, "class Net: pass", PICTURE_DETAILS)])


def _hostile():
    results = waves()[1]
    columns = {"target": HOSTILE, "classes": [HOSTILE], "columns": {HOSTILE: "number"}}
    history = few_candidates(long_run(20, name=lambda number: f"{number}{HOSTILE}"))
    rollback = {"event": "rollback", "epoch": 200, "step": history[-2]["step"], "text": HOSTILE}
    results = {**results, "data": {**results["data"], **columns}}
    return page([RunReport(HOSTILE, [*history, rollback], results, HOSTILE)])


def _begun():
    history = [one for one in waves()[0].history if one["event"] in ("start", "epoch")]
    return page([RunReport("fixed", history[:1])])


PAGES = {
    "short two": lambda: page([RunReport("short", short_run(), waves()[1], "class Net: pass")] * 2),
    "one": lambda: page([_waves()]),
    "pictures": _pictures,
    "numbers": _numbers,
    "two": lambda: page([_waves(), RunReport("other", long_run(6))]),
    "hostile": _hostile,
    "fixed": _begun,
}
"""One run, two runs, results of each kind, hostile names: made when a test first asks for them."""


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """Where the pages lie that tests have asked for."""
    return tmp_path_factory.mktemp("pages")


@contextlib.contextmanager
def opened(browser, address, **options):
    """A page that is drawn; in the end it must have said nothing and asked for nothing."""
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options})
    context.set_default_timeout(120_000)
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
    path = pages / f"{name}.html"
    if not path.exists():
        path.write_text(PAGES[name](), "utf-8")
    return path.as_uri()


@pytest.fixture(scope="session")
def single(browser, pages):
    """The page of one run, for tests that leave no trace that another would trip over."""
    with opened(browser, local(pages, "one")) as tab:
        yield tab
