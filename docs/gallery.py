"""Write docs/gallery.md from what the examples print: python docs/gallery.py (needs scikit-learn and transformers)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = {"hugging_face": "A vision transformer of the transformers library"}
HEAD = """# Gallery

Models of other libraries, unmodified, growing in ordinary training loops. Each program is in `examples/`; below is what
it printed, as `python docs/gallery.py` wrote it down. A line such as `widen PLACE: 2 -> 3` is a change of size: by how
much the loss was promised to change, the parameters, and the least promise at which it would have been made. Promises
are summed over units and come from a quadratic model of the loss around one layer.
"""


def section(name: str, title: str) -> str:
    """One example: its docstring, its link, its output."""
    path = ROOT / "examples" / f"{name}.py"
    text = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[2].partition("\n\n")[2]
    done = subprocess.run([sys.executable, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    command = f"python examples/{name}.py"
    return f"## {title}\n\n[`{command}`](../examples/{name}.py)\n\n{text}\n\n```text\n{done.stdout}```\n"


def main() -> None:
    """Run all examples and write the page."""
    sections = [section(name, title) for name, title in EXAMPLES.items()]
    (ROOT / "docs" / "gallery.md").write_text("\n".join([HEAD, *sections]))


if __name__ == "__main__":
    main()
