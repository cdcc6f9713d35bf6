"""Put the records of runs into one HTML text: a template, its style and scripts, a charting library."""

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
from senn.viz.report.downsample import (
    CANDIDATE,
    downsample_record,
    select_details,
    select_results,
)

SCRIPTS = (
    "words",
    "follow",
    "story",
    "picture",
    "charts",
    "rounds",
    "facts",
    "scores",
    "paper",
    "page",
)
"""Scripts in `assets`, in the order in which the page runs them: each uses names of those before it."""


@dataclass(frozen=True)
class RunReport:
    """Data of one run for the report.

    Attributes:
        name: name of the run, for people.
        history: its records (`TrainResult.history`).
        results: content of `results.json`; None for a run that isn't finished.
        code: its network as Python source; None if there is none.
        details: what its folder holds of the test beside the scores (`test.json`); None for nothing.
    """

    name: str
    history: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any] | None = None
    code: str | None = field(default=None, repr=False)
    details: Mapping[str, Any] | None = field(default=None, repr=False)

    def document(self) -> dict[str, Any]:
        """Return what the page reads, JSON-able.

        Raises:
            SennError: the records aren't those of a run.
        """
        try:
            records = [downsample_record(record) for record in self.history]
            results = None if self.results is None else select_results(self.results)
            details = None if self.details is None else select_details(self.details)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise SennError(
                f"the run {self.name!r} is damaged: {type(error).__name__}: {error}"
            ) from error
        shown = {"records": records, "results": results, "details": details}
        return {"name": self.name, **shown, "code": self.code}


def page(runs: Sequence[RunReport], live: bool = False) -> str:
    """Render runs as one self-contained HTML document, which loads nothing from the network.

    The history can come from any training loop, such as your own::

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
        runs: one run to show, or several to compare.
        live: add the records that keep coming from the address `events` (server-sent events).

    Returns:
        The HTML text.

    Raises:
        SennError: a run is damaged, or the charting library is missing.
    """
    if not runs:
        raise SennError("a report needs a run")
    documents = [run.document() for run in runs]
    taken = Counter[str]()
    for document in documents:  # the page identifies runs by their names
        taken[document["name"]] += 1
        if (number := taken[document["name"]]) > 1:
            document["name"] += f" ({number})"
    title = " and ".join(document["name"] for document in documents)
    about = {"runs": documents, "columns": CANDIDATE, "live": live}
    parts = {
        "title": html.escape(title),
        "style": asset("page.css"),
        "library": charting_library(),
        "records": script_json(about),
        "script": "\n".join(asset(f"{name}.js") for name in SCRIPTS),
    }
    # One pass, since what is put in may itself contain something like a placeholder.
    return re.sub(r"<!--@(\w+)-->", lambda match: parts[match[1]], asset("page.html"))


def script_json(value: Any) -> str:
    r"""Write JSON that is safe inside a script element, whatever names columns have.

    >>> print(script_json("</script>"))
    "\u003c/script\u003e"
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    # Lone surrogates, as in names of files that aren't text, can't be written as UTF-8.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@cache
def asset(name: str) -> str:
    """Read a file of the package's `assets`."""
    return (files("senn.viz.report") / "assets" / name).read_text(encoding="utf-8")


@cache
def charting_library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script.

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
    return f"(() => {{{bundle}}})();"  # a function, so that its names don't meet those of the page
