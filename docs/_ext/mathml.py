"""Formulas as MathML, which browsers draw by themselves: nothing is loaded from elsewhere, no TeX is needed."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.math import get_node_equation_number


def visit_math(self: Any, node: nodes.math) -> None:
    """A formula in a line."""
    self.body.append(f'<span class="math">{tex2mathml(node.astext())}</span>')
    raise nodes.SkipNode


def visit_displaymath(self: Any, node: nodes.math_block) -> None:
    """A formula of its own, with its number if it has a label."""
    number = (
        f'<span class="eqno">({get_node_equation_number(self, node)})</span>'
        if node.get("number")
        else ""
    )
    self.body.append(self.starttag(node, "div", CLASS="math displayed"))
    self.body.append(f"{tex2mathml(node.astext(), as_block=True)}{number}</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
