"""Layout of a table written as text: encoding, separator, header, and what stands around it.

Exported networks carry the text of this file along, so it needs nothing but Python's own library.
"""

import codecs
import csv
import itertools
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import BinaryIO, NamedTuple

SEPARATORS = ",;\t|"
BY_SUFFIX = {".tsv": "\t", ".tab": "\t", ".psv": "|"}
NAMELESS = "column 1"
"""Name of the first column where the header has none for it."""
TOTALS = frozenset(
    {
        *(
            "total",
            "totals",
            "sum",
            "sums",
            "subtotal",
            "grand-total",
            "overall",
            "average",
            "mean",
        ),
        *("summe", "gesamt", "gesamtsumme", "totale", "somme", "suma"),
    }
)
"""First words of a line at the end that sums up those above, in lower case."""

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE = 200
_LAST = 5
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_RULE = re.compile(r"[:|+ ]*(?:[-=]{2,}[:|+ ]*)+")
_NOTE = re.compile(
    r"©|\*|#|--|(?:sources?|notes?|generated|exported|copyright|\(?\d+ (?:rows?|records?))\b", re.I
)

Line = tuple[int, list[str]]


class Layout(NamedTuple):
    """Where a table stands in its text.

    Attributes:
        separator: between cells; " " for any number of blanks.
        skipped: lines of the file above the first row.
        names: of the columns.
        places: of the columns among the cells of a line.
        width: cells of the longest line.
        rows: number of lines that are rows, from the first one.
        notes: sentences about what was left out.
    """

    separator: str
    skipped: int
    names: list[str]
    places: list[int]
    width: int
    rows: int
    notes: list[str]


def encoding_of(stream: BinaryIO, named: str = "") -> str:
    """Find the character encoding of a text, if it is Unicode.

    Args:
        stream: its bytes, from the beginning.
        named: encoding that the user names; only a byte order mark weighs more.

    Returns:
        Name of the encoding: by its mark, what was named, UTF-16 or UTF-8 if it is that; else "".

    Raises:
        ValueError: it isn't text.
    """
    head = stream.read(4096)
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if named:
        return named
    # Half of the bytes of Western text in UTF-16 are zeros, all at even or all at odd places.
    if len(head) >= 4 and (head[::2].count(0) * 4 > len(head)) != (
        head[1::2].count(0) * 4 > len(head)
    ):
        return "utf-16-be" if head[::2].count(0) > head[1::2].count(0) else "utf-16-le"
    if 0 in head:
        raise ValueError("it holds bytes that are no text")
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(head)
        while chunk := stream.read(1 << 20):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return ""
    return "utf-8"


def cells_of(lines: Iterable[str], separator: str) -> Iterator[Line]:
    """Split lines into cells without blanks around them.

    Args:
        lines: of a text, with their ends.
        separator: between cells; " " for any number of blanks and tabs.

    Yields:
        The number of lines read so far, and the cells.

    Raises:
        csv.Error: quotes don't match, or a cell is too long.
    """
    if separator == " ":
        lines = (re.sub(r"[ \t]+", " ", line.strip()) + "\n" for line in lines)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    for cells in reader:
        yield reader.line_num, [cell.strip() for cell in cells]


def layout_of(lines: Iterator[str], suffix: str = "", what: str = "the table") -> Layout:
    """Find a table in a text, and check that every row has as many cells as the header.

    Args:
        lines: of the text, with their ends.
        suffix: of the file's name, which may tell the separator.
        what: subject of the sentences about it.

    Raises:
        ValueError: it is empty, or a line has too many or too few cells.
        csv.Error: quotes don't match, or a cell is too long.
    """
    sample = list(itertools.islice(lines, _SAMPLE))
    obeyed = re.fullmatch(r"\ufeff?\s*\"?sep=(.)\"?[,;\s]*", sample[0], re.I) if sample else None
    rest = sample[1:] if obeyed else sample
    if rest:  # a second byte order mark, of a file that was written twice
        rest[0] = rest[0].lstrip("\ufeff")
    separator = obeyed[1] if obeyed else BY_SUFFIX.get(suffix) or separator_of(rest)
    found = grid_layout(cells_of(itertools.chain(rest, lines), separator), separator, what)
    return found._replace(skipped=found.skipped + 1) if obeyed else found


def separator_of(sample: list[str]) -> str:
    """Return the separator by which most lines have the same number of cells, as the header has."""
    best = ",", 0, 0
    for separator in SEPARATORS + " ":
        rows = []
        with suppress(csv.Error):  # a quoted cell may go on beyond the sample
            for _, cells in cells_of(sample, separator):
                rows += [cells] * any(cells)
        widths = Counter(len(cells) for cells in rows if len(cells) > 1)
        if not widths:
            continue
        width, hits = widths.most_common(1)[0]
        # Blanks part words as well: they count only if nothing else parts the cells of most lines.
        # R writes no name above the names of rows.
        is_blank = best[1] < len(rows) / 2 <= hits and width - len(rows[0]) in (0, 1)
        if separator != " " or is_blank:
            best = max(best, (separator, hits, width), key=lambda one: one[1:])
    return best[0]


def grid_layout(lines: Iterator[Line], separator: str = ",", what: str = "the table") -> Layout:
    """Find a table among lines of cells.

    Args:
        lines: number of the line, and its cells without blanks around them.
        separator: that parted them.
        what: subject of the sentences about it.

    Raises:
        ValueError: there is none, or a line has too many or too few cells.
    """
    sample = list(itertools.islice(lines, _SAMPLE))
    full = [cells for _, cells in sample if any(cells)]
    if not full:
        raise ValueError(f"{what} is empty")
    width = Counter(map(len, full)).most_common(1)[0][0]
    above = _titles(sample, width)
    header_line, header = sample[above]
    notes = []
    if any(any(cells) for _, cells in sample[:above]):
        notes.append(f"what stands above the header in line {header_line} is left out")
    # numpy.savetxt writes its header as a comment
    names = [cell.removeprefix("# ") if at == 0 else cell for at, cell in enumerate(header)]
    skipped = header_line
    if separator in (" ", "\t") and len(names) == width - 1 and not above:
        names = ["", *names]
    if not above and _is_data(names, full[1:]):
        notes.append(
            f"the first line is data, so the columns are called 'column 1' to 'column {len(names)}'"
        )
        skipped, above = 0, -1
        names = [f"column {at + 1}" for at in range(len(names))]
    rows = _Rows(names, what)
    below = sample[above + 1 :]
    if skipped and below and _is_rule(below[0][1]):
        skipped, below = below[0][0], below[1:]
    for number, cells in itertools.chain(below, lines):
        rows.add(number, cells)
    notes += rows.finish()
    places = [at for at, name in enumerate(names) if name or at in rows.filled]
    return Layout(
        separator=separator,
        skipped=skipped,
        names=[names[at] for at in places],
        places=places,
        width=rows.width,
        rows=rows.count,
        notes=notes,
    )


def _titles(sample: list[Line], width: int) -> int:
    """Count the lines above the header: those of hardly any cells, where rows have many."""
    gap = _gap_below_titles(sample)
    for at, (_, cells) in enumerate(sample):
        filled = sum(map(bool, cells)) if at >= gap else 0
        is_short = len(cells) != width or (filled <= 1 and width > 2)
        is_title = filled <= max(1, width // 2) and is_short and cells[:1] != [""]
        is_comment = cells[:1] != [] and cells[0].startswith("#") and len(cells) != width
        if filled and (width == 1 or not (is_title or is_comment)):
            # A line of numbers is no header that a title could stand above.
            return at if not (at and all(map(_NUMBER.fullmatch, cells))) else _first(sample)
    return _first(sample)


def _gap_below_titles(sample: list[Line]) -> int:
    """Return the first line after a gap, if all above it begin like titles and are shorter."""
    rows = Counter(sum(map(bool, cells)) for _, cells in sample if any(cells))
    usual = rows.most_common(1)[0][0]
    above = 0
    for at, (_, cells) in enumerate(sample[:-1]):
        filled = sum(map(bool, cells))
        if not filled and above and sum(map(bool, sample[at + 1][1])) >= usual:
            return at + 1
        # what is filled stands at the beginning
        if filled >= usual or not all(cells[:filled]):
            break
        above += filled
    return 0


def _first(sample: list[Line]) -> int:
    return next(at for at, (_, cells) in enumerate(sample) if any(cells))


def _is_rule(cells: list[str]) -> bool:
    """Tell whether a line only draws a rule below the header, as in Markdown."""
    return all(map(_RULE.fullmatch, filter(None, cells))) and any(cells)


def _is_data(header: list[str], below: list[list[str]]) -> bool:
    """Tell whether the first line is a row: its numbers stand above numbers and count nothing."""
    at_numbers = [at for at, cell in enumerate(header) if _NUMBER.fullmatch(cell)]
    if not at_numbers or not below:
        return False
    texts = [header[at] for at in at_numbers]
    if not any(re.search("[.eE-]", text) for text in texts):
        values = [int(text) for text in texts]
        steps = {after - before for before, after in itertools.pairwise(values)}
        # Pixels 0 to 63 and years are names.
        if len(steps) <= 1 and (not steps or min(steps) > 0):
            return False
    columns = [
        [cells[at] for cells in below if at < len(cells) and cells[at]] for at in range(len(header))
    ]
    is_number = [all(map(_NUMBER.fullmatch, column)) for column in columns]
    # A word above numbers is their name.
    return is_number == [at in at_numbers for at in range(len(header))]


class _Rows:
    """Count rows and check their cells; lines at the end that are no rows are left out."""

    def __init__(self, names: list[str], what: str) -> None:
        named = [at for at, name in enumerate(names) if name]
        # A header that ends in separators has no name for what follows the last one.
        self.needed = named[-1] + 1 if named else 0
        self.names, self.what = len(names), what
        self.width, self.count = len(names), 0
        self.filled: set[int] = set()
        self._nameless = [at for at, name in enumerate(names) if not name]
        self._odd: list[Line] = []
        self._gap = False
        self._last: deque[list[str]] = deque(maxlen=_LAST)
        self._counts: Counter[str] = Counter()

    def add(self, number: int, cells: list[str]) -> None:
        """Take the next line."""
        if not any(cells):
            self._gap = True
            # A line of separators is a row without cells, which readers count.
            if len(cells) > 1 and not self._odd:
                self.count += 1
                self._last.append(cells)
            return
        if len(cells) < self.needed or any(cells[self.names :]):
            self._odd.append((number, cells))
            return
        if self._odd:
            self._refuse()
        self._gap = False
        self.count += 1
        self.width = max(self.width, len(cells))
        self.filled.update(at for at in self._nameless if at < len(cells) and cells[at])
        word = _word(cells)
        if word in TOTALS:
            self._counts[word] += 1
        self._last.append(cells)

    def finish(self) -> list[str]:
        """Leave out what stands below the rows, and say so."""
        notes = []
        odd = [cells for _, cells in self._odd]
        if odd:
            if not all(self._is_below(cells) for cells in odd):
                self._refuse()
            shown = next(filter(None, odd[0]))
            notes.append(f"what stands below the rows is left out, beginning with {shown[:40]!r}")
        totals: list[list[str]] = []
        for cells in reversed(self._last):
            if any(cells) and (_word(cells) not in TOTALS or self._counts[_word(cells)] > _LAST):
                break
            totals.append(cells)
        # Rows without any cell are dropped later, like those among the others.
        while totals and not any(totals[-1]):
            totals.pop()
        if totals and self.count > len(totals):
            self.count -= len(totals)
            word = next(filter(None, totals[-1]))
            notes.append(f"the last line is left out, since {word!r} sums up those above")
        return notes

    def _is_below(self, cells: list[str]) -> bool:
        filled = [cell for cell in cells if cell]
        is_text = len(filled) == 1 and not _NUMBER.fullmatch(filled[0])
        return (
            _word(cells) in TOTALS
            or _is_rule(cells)
            or bool(_NOTE.match(filled[0]))
            or (is_text and self._gap)
        )

    def _refuse(self) -> None:
        number, cells = self._odd[0]
        counts = f"{len(cells)} cells where the header has {self.names}"
        raise ValueError(f"line {number} of {self.what} has {counts}")


def _word(cells: list[str]) -> str:
    """Return the first word of a line as `TOTALS` has them."""
    return next(filter(None, cells), "").lower().rstrip(": ").replace(" ", "-")
