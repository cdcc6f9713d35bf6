"""A faulty page ends the build of the site, and the start page can be read by everybody, without a network.

`make docs` builds and checks the whole site; here the start page and a faulty one stand among pages of headings alone.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALLER = """
left_out = "sphinx_gallery.gen_gallery", "reference", "drawings", "examples"
extensions = [one for one in extensions if one not in left_out]
"""
FAULTY = "---\norphan: true\n---\n# Faulty\n\n[gone](nowhere.md) and [gone too](how_it_decides.md#no-such-heading)\n"

pytest.importorskip("sphinx")
pytest.importorskip("furo")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a small site and what its build said."""
    folder = tmp_path_factory.mktemp("docs")
    docs = folder / "docs"
    for name in ("_ext", "_static", "growing.png"):
        copy = shutil.copytree if (ROOT / "docs" / name).is_dir() else shutil.copy
        docs.mkdir(exist_ok=True)
        copy(ROOT / "docs" / name, docs / name)
    (docs / "conf.py").write_text((ROOT / "docs" / "conf.py").read_text() + SMALLER)
    for page in (ROOT / "docs").glob("*.md"):
        text = page.read_text()
        headings = "\n\n".join(
            re.findall(r"^#+ .*", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
        )
        (docs / page.name).write_text(text if page.stem == "index" else f"{headings}\n")
    for name in ("api", "gallery"):  # which the whole build writes
        (docs / name).mkdir()
        (docs / name / "index.md").write_text(f"# {name}\n")
    (docs / "gallery" / "plot_gpt.md").write_text("---\norphan: true\n---\n\n# A GPT\n")
    (docs / "faulty.md").write_text(FAULTY)
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-q", "docs", "site"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return folder, done


def test_a_faulty_page_ends_the_build_and_is_all_that_is_faulty(built):
    folder, done = built
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
    others = [line for line in said if f"{folder}/docs/faulty.md" not in line]
    assert others == [], done.stderr
    assert "nowhere.md" in done.stderr
    assert "no-such-heading" in done.stderr


def test_the_start_page_can_be_read_by_everybody_without_a_network(built, browser):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = browser.new_page(viewport={"width": 390, "height": 844})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((built[0] / "site" / "index.html").as_uri())
    light = axe.run(page)
    page.emulate_media(color_scheme="dark")
    dark = axe.run(page, options={"runOnly": ["color-contrast"]})
    is_wide = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    page.close()
    for found in (light, dark):
        assert found.response["passes"]
        assert found.violations_count == 0, found.generate_report()
    assert [url for url in asked if not url.startswith("file:")] == []
    assert not is_wide
