"""What the README shows works as it stands."""

import re
import shlex
from pathlib import Path

import pytest

from senn.cli.main import parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()
]


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_start_page_of_the_site_has_the_same_code():
    blocks = re.compile(r"```python\n.*?```", re.S)
    assert blocks.findall((ROOT / "docs" / "index.md").read_text()) == blocks.findall(README)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("senn ")])
def test_commands_are_understood(line):
    _, *argv = shlex.split(line, comments=True)
    assert parser()[0].parse_args(argv).command == argv[0]


def test_every_other_command_installs_this_checkout():
    others = [shlex.split(line, comments=True) for line in COMMANDS if not line.startswith("senn ")]
    assert others
    for words in others:
        assert words[:2] == ["pip", "install"]
        assert (ROOT / words[words.index("-c") + 1]).is_file()
        assert words[-1].startswith(".[")


def test_links_and_make_targets_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert [
        link for link in links if not (ROOT / link).exists() and link != "docs/growing.png"
    ] == []
    targets = re.findall(r"^    make (\w+)", README, re.M)
    assert targets
    assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in targets)
