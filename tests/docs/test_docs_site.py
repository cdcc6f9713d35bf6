"""The site builds without a warning, says so when it is faulty, and can be read by everybody, without a network."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytest.importorskip("sphinx")
pytest.importorskip("furo")


def build(copy):
    """Build the copy's site, without running the programs of the gallery."""
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-q", "docs", "site"]
    environment = {
        **os.environ,
        "SENN_GALLERY": "0",
        "PYTHONPATH": str(ROOT / "src"),
        "NO_COLOR": "1",
    }
    return subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A copy of the sources of the site with a faulty page beside them, built, and what the build said."""
    folder = tmp_path_factory.mktemp("docs")
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "docs", "examples"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if tracked.returncode:
        pytest.skip("what belongs to the sources is known in a clone only")
    for name in tracked.stdout.split("\n"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "docs" / "faulty.md").write_text(
        "---\norphan: true\n---\n# Faulty\n\n[gone](nowhere.md) and [gone too](how_it_decides.md#no-such-heading)\n"
    )
    built = build(folder)
    (folder / "site" / "faulty.html").unlink()
    return folder, built


@pytest.fixture(scope="module")
def copy(built):
    return built[0]


def test_the_pages_build_without_a_warning_but_a_faulty_one_that_ends_the_build(built):
    folder, done = built
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
    assert all(f"{folder}/docs/faulty.md" in line for line in said), done.stderr
    assert "nowhere.md" in done.stderr
    assert "no-such-heading" in done.stderr


def test_its_links_lead_somewhere_and_every_public_name_has_a_page(copy):
    spec = importlib.util.spec_from_file_location("docs_check", ROOT / "docs" / "check.py")
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    assert list(check.broken_pages(copy / "site")) == []
    assert (
        list(check.unlisted(check.described(copy / "site"), check.reference.public_modules())) == []
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_start_page_can_be_read_by_everybody_without_a_network(copy, scheme, browser):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = browser.new_page(color_scheme=scheme, viewport={"width": 390, "height": 844})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((copy / "site" / "index.html").as_uri())
    found = [
        (one["id"], one["nodes"][0]["html"]) for one in axe.Axe().run(page).response["violations"]
    ]
    is_wide = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    page.close()
    assert found == []
    assert [url for url in asked if not url.startswith("file:")] == []
    assert not is_wide
