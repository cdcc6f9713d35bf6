"""The trace that docs/spaces.md shows, operation by operation, is the one that its code prints."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "spaces.md").read_text()
SECTION = PAGE.partition("## A trace, operation by operation\n")[2].partition("\n## ")[0]
PAIRS = re.findall(r"```python\n(.*?)```.*?```text\n(.*?)```", SECTION, re.S)


def test_each_block_prints_what_stands_below_it(capsys):
    namespace: dict[str, object] = {}
    assert len(PAIRS) == 2
    for code, shown in PAIRS:
        exec(compile(code, "spaces.md", "exec"), namespace)
        assert capsys.readouterr().out == shown
