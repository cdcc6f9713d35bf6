"""Text of others, made safe where it is shown: a terminal and a page obey what stands in it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

# Control characters but for tab and line feed; marks that turn the direction of text around, by which a name looks like
# another; separators that some terminals break lines at; lone surrogates, as in names of files that aren't text.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Write control characters as escapes: `\x1b` for one of ASCII, `\u009b` in the form of JSON for others.

    >>> print(printable("\x1b[2Jcaf\udce9, \x9b2J"))
    \x1b[2Jcaf\udce9, \u009b2J
    """
    return _CONTROLS.sub(lambda match: _escape(ord(match[0])), text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"


def one_line(text: object) -> str:
    r"""Write a text on one line, with control characters as escapes.

    >>> one_line("two\n lines")
    'two lines'
    """
    return printable(" ".join(str(text).split()))


def shortened(sentence: str, most: int = 1500) -> str:
    """Leave out the middle of a sentence that quotes too much; its end often has the advice.

    Args:
        sentence: the sentence.
        most: characters that it may have.
    """
    if len(sentence) <= most:
        return sentence
    return f"{sentence[: most // 2]} ... {sentence[-most // 2 :]}"


def did_you_mean(name: str, known: Iterable[object]) -> str:
    """Return a question after the known name that is most like a mistyped one; empty if none is like it.

    Args:
        name: what was typed.
        known: names that there are.

    >>> did_you_mean("fitt", ["fit", "show"]), did_you_mean("x", ["fit"])
    (" (did you mean 'fit'?)", '')
    """
    names = {str(one).lower(): str(one) for one in known}
    close = get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return f" (did you mean {names[close[0]]!r}?)" if close else ""
