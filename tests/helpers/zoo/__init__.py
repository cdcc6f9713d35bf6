"""Models that nobody prepared for growth, as data: one `Entry` each. Everything in `tests/test_zoo*.py` runs over all.

Widths are small and mostly different from each other, so that a coincidence of sizes hides no mistake.
"""

from zoo import convolutional, hugging_face, odd, recurrent, transformer
from zoo.entry import Entry, randomised

ZOO: dict[str, Entry] = {
    **convolutional.ENTRIES,
    **transformer.ENTRIES,
    **recurrent.ENTRIES,
    **odd.ENTRIES,
    **hugging_face.ENTRIES,
}

__all__ = ["ZOO", "Entry", "randomised"]
