"""The code of the pages runs, the errors that they quote exist, and what checks them sees what is wrong."""

import ast
import importlib.util
import re
import shlex
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = (
    "index",
    "four_ways",
    "how_it_decides",
    "extending",
    "troubleshooting",
    "spaces",
    "holders",
)


def load(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- the code of the pages

BLOCK = re.compile(
    r"(?:<!-- needs (?P<needs>[\w., ]+) -->\n+)?```(?P<kind>\w+)\n(?P<code>.*?)```", re.S
)


def blocks(page, kind):
    """The blocks of a page, and what each lacks of the modules that it needs."""
    for found in BLOCK.finditer((DOCS / f"{page}.md").read_text()):
        if found["kind"] == kind:
            yield (
                found["code"],
                [name for name in re.findall(r"[\w.]+", found["needs"] or "") if not there(name)],
            )


def skip_if(missing):
    if missing:
        pytest.skip(f"blocks were left out for lack of {', '.join(sorted(missing))}")


SHORTER = {
    "four_ways": {
        "SENNClassifier(random_state=0)": "SENNClassifier(random_state=0, max_epochs=10)",
        "range(200)": "range(60)",
        "max_epochs=5": "max_epochs=2",
        "max_steps=40": "max_steps=10",
        "max_steps=20": "max_steps=4",
        "agent.learn(256": "agent.learn(128",
        "for step in range(100)": "for step in range(40)",
        "for step in range(40)": "for step in range(20)",
    }
}
"""What runs less long in the tests than on the pages."""


def shortened(page, codes):
    """The code with shorter runs."""
    for old, new in SHORTER.get(page, {}).items():
        assert any(old in code for code in codes), old
        codes = [code.replace(old, new) for code in codes]
    return codes


@pytest.mark.parametrize("page", PAGES[1:])  # the start page has the README's code
def test_code(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    group, missing = {"__name__": "__page__"}, set()
    found = list(blocks(page, "python"))
    codes = shortened(page, [code for code, _ in found])
    for code, (_, lacking) in zip(codes, found, strict=True):  # each goes on where the last ended
        missing.update(lacking)
        if not lacking:
            exec(compile(code, f"{page}.md", "exec"), group)
    assert capsys.readouterr().out
    skip_if(missing)


def there(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


# -- the errors that the pages quote


def templates():
    """Texts in the source, as patterns, each with the letters it is sure of."""
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "reproduce").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            if all(text is None or isinstance(text, str) for text in texts):
                sure = "".join(filter(None, texts))
                if len(sure) >= 12 and "\n\n" not in sure:
                    yield re.compile(
                        "".join(".*" if text is None else re.escape(text) for text in texts), re.S
                    )


@pytest.fixture(scope="module")
def patterns():
    return list(templates())


def quoted():
    for block, lacking in blocks("troubleshooting", "text"):
        marks = [pytest.mark.skip(f"there is no {', '.join(lacking)}")] if lacking else []
        yield from (pytest.param(line, marks=marks) for line in block.splitlines())


@pytest.mark.parametrize("message", list(quoted()))
def test_quoted_errors_exist(message, patterns):
    assert any(pattern.fullmatch(message) for pattern in patterns)


def test_an_invented_error_is_seen(patterns):
    assert not any(
        pattern.fullmatch("the moon is full: wait for another night") for pattern in patterns
    )


# -- commands


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page):
    from senn.cli.main import parser

    missing = set()
    for block, lacking in blocks(page, "sh"):
        missing.update(lacking)
        for line in [
            line for line in block.splitlines() if line.startswith("senn ") and not lacking
        ]:
            _, *argv = shlex.split(line, comments=True)
            assert parser()[0].parse_args(argv).command == argv[0]
    skip_if(missing)


# -- the checks see what is wrong


@pytest.fixture(scope="module")
def check():
    pytest.importorskip("sphinx")
    return load("check")


def test_the_documentation_is_whole(check):
    assert list(check.broken_links()) == []
    assert (
        list(
            check.reference.undocumented(check.reference.describe(check.reference.public_modules()))
        )
        == []
    )


def test_a_broken_link_is_seen(check, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(
        "[there](page.md) [gone](nowhere.md)\n```\n[code](isnt.md)\n```\n"
    )
    assert list(check.broken_links(tmp_path)) == ["docs/page.md: no nowhere.md"]


def module(text):
    made = types.ModuleType("senn_sample", "A module.")
    exec(text, vars(made))
    made.__all__ = [name for name in vars(made) if not name.startswith("_")]
    sys.modules["senn_sample"] = made
    return made


def test_an_undocumented_name_is_seen(check, monkeypatch):
    monkeypatch.setitem(sys.modules, "senn_sample", None)  # what `module` puts there goes again
    text = "def f():\n  'Says.'\ndef g(): ...\n"
    text += "class C:\n  'Says.'\n  def quiet(self): ...\n  def loud(self):\n    'Says.'\n"
    described = check.reference.describe([module(text)])
    assert list(check.reference.undocumented(described)) == [
        "senn_sample.g has no docstring",
        "senn_sample.C.quiet has no docstring",
    ]


def test_a_name_on_no_page_is_seen(check, monkeypatch):
    monkeypatch.setitem(sys.modules, "senn_sample", None)
    modules = [module("def f():\n  'Says.'\ndef g():\n  'Says.'\n")]
    assert list(check.unlisted({"senn_sample", "senn_sample.f", "senn_sample.g"}, modules)) == []
    assert list(check.unlisted({"senn_sample.f"}, modules)) == [
        "senn_sample.g is on no page",
        "senn_sample has no page",
    ]


def test_a_name_that_is_described_nowhere_is_seen(check, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(
        "{py:obj}`senn.save`, {py:obj}`so <senn.sav>` and `senn.no`\n"
    )
    assert list(check.misnamed({"senn.save"}, tmp_path)) == ["docs/page.md: senn.sav is on no page"]


def test_every_public_module_has_a_page_by_itself(check, monkeypatch, tmp_path):
    found = [module.__name__ for module in check.reference.public_modules()]
    assert {
        "senn",
        "senn.scoring.formulas",
        "senn.policies",
        "senn.graph",
        "senn.nn",
        "senn.training",
    } <= set(found)
    check.reference.write(tmp_path)
    assert {path.stem for path in tmp_path.glob("*.rst")} == {*found, "index"}
    (tmp_path / "senn.gone.rst").write_text("a module that is no more")
    check.reference.write(tmp_path)
    assert not (tmp_path / "senn.gone.rst").exists()


def test_a_site_with_faults_is_seen(check, tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here"></a><a href="#gone"></a><a href="b.html"></a><a href="https://example.org"></a>'
        f'<img src="https://example.org/x.png"><i>{check.ROOT}/docs</i>'
    )
    assert list(check.broken_pages(tmp_path)) == [
        "a.html loads https://example.org/x.png",
        "a.html: no anchor #gone",
        "a.html: no b.html",
        "a.html has a path of this machine",
    ]


# -- what docstrings become


def test_indented_formulas_are_literal_and_sections_are_not(check):
    text = ["First.", "", "    a = b", "", "Args:", "    x: one", "", "    y: two"]
    assert check.reference.literal_blocks(text) == [
        "First.",
        "",
        "::",
        "",
        "    a = b",
        "",
        *text[4:],
    ]


def test_a_plain_docstring_of_an_example_becomes_a_page_with_a_title(check):
    pytest.importorskip("sphinx_gallery")
    import examples  # beside `reference`, which `check` puts on the path

    label, rest = (
        ".. _sphx_glr_gallery_x.py:\n\n\n",
        "\n.. GENERATED FROM PYTHON SOURCE LINES 1-2\n",
    )
    assert examples.entitle(f"{label}Say so.\n\n    python x.py\n\nMore.\n{rest}") == (
        f"{label}Say so\n======\n\n.. py:currentmodule:: senn\n\n\n::\n\n    python x.py\n\nMore.\n{rest}"
    )
