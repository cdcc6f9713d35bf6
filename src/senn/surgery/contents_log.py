"""What containers held before they were changed."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from senn.surgery.optimizer_layers import contents


class ContentsLog:
    """Contents of containers before they are changed, so that they can be restored."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Any, Any]] = {}

    def keep(self, container: Any) -> None:
        """Record a container once, before its first change.

        Args:
            container: a mapping, a sequence, or an object with attributes.
        """
        if id(container) not in self._kept:
            self._kept[id(container)] = container, contents(container)

    def restore(self) -> None:
        """Give every container the contents that it had."""
        for container, before in reversed(self._kept.values()):
            if isinstance(container, MutableMapping):
                container.clear()
                container.update(before)
            elif hasattr(container, "clear"):  # a list or a deque
                container.clear()
                container.extend(before.values())
            else:
                for name, value in before.items():
                    object.__setattr__(container, name, value)
