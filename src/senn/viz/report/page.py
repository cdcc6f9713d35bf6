"""One HTML text from the records of runs: a template with its style and scripts, a charting library, JSON."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from senn.errors import SennError
from senn.viz.report.downsample import CANDIDATE, downsample_record, results_shown

SCRIPTS = ("words", "follow", "story", "picture", "charts", "rounds", "facts", "paper", "page")
"""Files of `assets`, in the order in which they are read."""


@dataclass(frozen=True)
class RunReport:
    """A run as it is told.

    Attributes:
        name: of the run, for people.
        history: its records (`Run.history`).
        results: what `results.json` holds; None for a run that isn't finished.
        code: its network as Python source; None if there is none.
    """

    name: str
    history: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any] | None = None
    code: str | None = field(default=None, repr=False)

    def document(self) -> dict[str, Any]:
        """What the page reads.

        Raises:
            SennError: the records aren't those of a run.
        """
        try:
            records = [downsample_record(record) for record in self.history]
            results = None if self.results is None else results_shown(self.results)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise SennError(f"the run {self.name!r} is damaged: {type(error).__name__}: {error}") from error
        return {"name": self.name, "records": records, "results": results, "code": self.code}


def page(runs: Sequence[RunReport], live: bool = False) -> str:
    """One self-contained HTML document about runs: nothing is fetched from anywhere.

    A history can come from anywhere, from a training loop of your own too::

        session = GrowthSession(TrainConfig(addition_rounds=(0.2, 0.4, 0.6), pruning_rounds=(0.8,)), loss=loss)
        session.start(model, optimizer, steps=100, samples=len(x))
        for step in range(1, 101):
            optimizer.zero_grad()
            value = loss(model(x), y)
            value.backward()
            optimizer.step()
            session.record_epoch(step, train_loss=value.item())
            if session.needs_batch(step):
                session.add_batch((x, y), step)
            session.grow(step)
        session.close(100)
        Path("own.html").write_text(page([RunReport("own", session.history)]), encoding="utf-8")

    with `GrowthSession` and `TrainConfig` of `senn.training`.

    Args:
        runs: one to look at, several to compare.
        live: whether records keep coming, from `events` beside the page (server-sent events).

    Raises:
        SennError: a run is damaged, or the charting library is missing.
    """
    if not runs:
        raise SennError("a report needs a run")
    documents = [run.document() for run in runs]
    taken = Counter[str]()
    for document in documents:  # they are told apart by their names
        taken[document["name"]] += 1
        if (number := taken[document["name"]]) > 1:
            document["name"] += f" ({number})"
    title = " beside ".join(document["name"] for document in documents)
    about = {"runs": documents, "columns": CANDIDATE, "live": live}
    parts = {
        "title": html.escape(title),
        "style": asset("page.css"),
        "library": charting_library(),
        "records": script_json(about),
        "script": "\n".join(asset(f"{name}.js") for name in SCRIPTS),
    }
    # One pass: what is put in may hold anything.
    return re.sub(r"<!--@(\w+)-->", lambda match: parts[match[1]], asset("page.html"))


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element: no `<` can end it, whatever people call their columns."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    # Lone surrogates, as in names of files that aren't text, can't be written as UTF-8.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@cache
def asset(name: str) -> str:
    """A file that comes with the package."""
    return (files("senn.viz.report") / "assets" / name).read_text(encoding="utf-8")


@cache
def charting_library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script.

    Raises:
        SennError: `vl-convert-python`, which brings them, isn't installed.
    """
    try:
        import vl_convert
    except ModuleNotFoundError as error:
        raise SennError(
            "a report needs the package 'vl-convert-python', which isn't installed: pip install 'senn[cli]'"
        ) from error
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    bundle = bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return f"(() => {{{bundle}}})();"  # its names are its own
