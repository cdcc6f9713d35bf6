"""Character encodings of before Unicode, found by the words of a text (package chardet)."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from senn._extras import importing

NAMES = {
    "cp1252": "Windows-1252",
    "cp1250": "Windows-1250",
    "cp1251": "Windows-1251",
    "cp1253": "Windows-1253",
    "cp1254": "Windows-1254",
    "cp1255": "Windows-1255",
    "cp1256": "Windows-1256",
    "cp1257": "Windows-1257",
    "iso8859-2": "ISO-8859-2",
    "koi8-r": "KOI8-R",
    "koi8-u": "KOI8-U",
    "cp866": "CP866",
    "cp850": "CP850",
    "cp874": "CP874",
    "mac-roman": "Mac-Roman",
    "gb18030": "GB18030",
    "big5hkscs": "Big5",
    "cp932": "CP932",
    "euc_jis_2004": "EUC-JP",
    "cp949": "CP949",
}
"""Encodings that are tried, as Python and as people call them; short texts would be mixed up with rarer ones."""

USUAL = "cp1252"
"""Most frequent one, which another must be likelier than by `_LIKELIER`: short Western texts look like others, too."""
_LIKELIER = 1.25
_RIVAL = 0.6
"""Share of the likelihood of the best from which on another encoding may be the right one. Of 1,408 small tables in 25
languages the best was wrong in 10, and each of these had such a rival."""
_SAMPLE = 1 << 16
"""Bytes of different words that are looked at."""
_MOST_NAMED = 2
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x19\x1b-\x1f\x7f-\x9f]")
"""No text has these; without that rule, encodings that know all 256 bytes would take anything for text."""
_SYMBOLS = re.compile(
    rb"""[\x80\xa2\xa3\xa5](?![A-Za-z])            # signs of currencies
    | \xb0(?![a-z]) | \xb5(?=[A-Za-z]) | \xb2       # degrees, micro, square
    | (?<![a-z])[cdk]?m\xb3(?![A-Za-z])              # cubic
    | (?<![A-Za-z])[\xbc-\xbe](?![A-Za-z])           # fractions
    | [\x85\x91-\x97\xa0]                           # quotes, dashes, no-break space
    | (?<![A-Za-z])[\xa7\xa9\xab\xae\xb1\xb7\xbb]   # others at the beginning or the end of words
    | [\xa7\xa9\xab\xae\xb1\xb7\xbb](?![A-Za-z])""",
    re.VERBOSE,
)
"""Symbols of Windows-1252 where they are usual; by themselves they are no words of any language."""
_UTF8_LINES = 9
"""Lines in UTF-8 for each that isn't, from which on the others are mistakes; 10 % are more than chance makes of any."""
_WORD_ENDS = re.compile(rb"[,;\t\r\n]")


@dataclass(frozen=True, kw_only=True)
class LegacyEncoding:
    """Encoding of a text that isn't Unicode.

    Attributes:
        name: of the encoding, as Python knows it.
        rivals: names of others that may be the right one.
        example: a word as it is read, and as the first rival would read it; None without rivals.
    """

    name: str
    rivals: tuple[str, ...] = ()
    example: tuple[str, str] | None = None

    @property
    def note(self) -> str:
        """Sentence that tells the encoding, and in which others the text may be."""
        read = f"the table isn't UTF-8 and is read as {NAMES.get(self.name, self.name)}"
        if self.example is None:
            return f"{read}; --encoding names another encoding"
        others = " or ".join(NAMES[name] for name in self.rivals[:_MOST_NAMED])
        return (
            f"{read}, but may be {others}: is {self.example[0]!r} right, or {self.example[1]!r}? --encoding names "
            "the right one"
        )


def legacy_encoding(stream: BinaryIO, known: str | None = None) -> LegacyEncoding | None:
    """Find the likeliest encoding of a text that isn't Unicode.

    Args:
        stream: its bytes; is left somewhere.
        known: the likeliest one from elsewhere, as that of the training table is; None to tell it by the words.

    Returns:
        The encoding; None if the text is in none of `NAMES`.

    Raises:
        SennError: chardet isn't installed.
    """
    if known is not None and _decodes(stream, known):
        return LegacyEncoding(name=known)
    stream.seek(0)
    words = _words(stream)
    if not words and _decodes(stream, USUAL):
        return LegacyEncoding(name=USUAL)
    chances = _chances(b"\n".join(words))
    usual = chances[USUAL]
    ranked = sorted(chances, key=lambda name: (-chances[name], list(NAMES).index(name)))
    if usual and usual * _LIKELIER >= chances[ranked[0]]:
        ranked = [USUAL, *(name for name in ranked if name != USUAL)]
    best = next((name for name in ranked if _decodes(stream, name)), None)
    if best is None:
        return None
    likely = [name for name in ranked if chances[name] >= _RIVAL * chances[best] and name != best]
    examples = {name: found for name in likely if (found := _differing(words, best, name))}
    rivals = tuple(examples)
    return LegacyEncoding(name=best, rivals=rivals, example=examples[rivals[0]] if rivals else None)


def _words(stream: BinaryIO) -> list[bytes]:
    """Return the different cells that aren't ASCII, but for usual symbols: how often one occurs says nothing."""
    found: dict[bytes, None] = {}
    size = 0
    for line in _lines(stream):
        if line.isascii():
            continue
        for word in _WORD_ENDS.split(line):
            if word not in found and not _SYMBOLS.sub(b"", word).isascii():
                found[word] = None
                size += len(word)
        if size > _SAMPLE:
            break
    return [*found]


def stray_line(stream: BinaryIO) -> int | None:
    """Return the first line that isn't UTF-8 in a text of which nearly all others are; None if they aren't.

    Args:
        stream: the text's bytes; is left somewhere.
    """
    stream.seek(0)
    good, bad, first = 0, 0, None
    for number, line in enumerate(_lines(stream), start=1):
        if line.isascii():
            continue
        try:
            line.decode()
            good += 1
        except UnicodeDecodeError:
            bad += 1
            first = first or number
    return first if good >= _UTF8_LINES * bad else None


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    # a text may be one line without an end
    return iter(lambda: stream.readline(_SAMPLE), b"")


def _chances(sample: bytes) -> Mapping[str, float]:
    """Return the likelihood of each encoding that a sample may be in, and of the usual one."""
    with importing("a table that isn't UTF-8", "cli"):
        import chardet
    ranked = chardet.detect_all(
        sample, ignore_threshold=True, include_encodings=[*NAMES], compat_names=False
    )
    known = {str(one["encoding"]): one["confidence"] for one in ranked if one["encoding"] in NAMES}
    return {USUAL: 0.0, **known}


def _decodes(stream: BinaryIO, name: str) -> bool:
    """Tell whether a whole text is one in an encoding."""
    stream.seek(0)
    decoder = codecs.getincrementaldecoder(name)()
    with suppress(UnicodeDecodeError):
        while chunk := stream.read(1 << 20):
            if _CONTROL.search(decoder.decode(chunk)) and name != USUAL:
                return False
        decoder.decode(b"", final=True)
        return True
    return False


def _differing(words: list[bytes], name: str, other: str) -> tuple[str, str] | None:
    """Return the first word that two encodings read differently; None if they read all alike, or one can't."""
    with suppress(UnicodeDecodeError):
        for word in words:
            read, otherwise = word.decode(name), word.decode(other)
            if read != otherwise:
                return read.strip()[:40], otherwise.strip()[:40]
    return None
