"""Meeting of all ranks in the store of a process group, with a time limit and one error for all.

torch's collectives hang, or abort the process, when a rank is missing or is at another operation. So all ranks meet in
the store first, where each says what it is about to do: a rank that is missing, has failed or is elsewhere ends all of
them with one sentence that names it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from senn import errors
from senn.errors import SennError


class Rendezvous:
    """Ranks that meet in a store, turn by turn.

    Args:
        store: store of the process group, with keys of its own.
        rank: number of this process.
        size: number of processes.
        timeout: time that a rank is waited for.
        gather: gathers each rank's text by other means than the store; None for the store.

    Attributes:
        turn: number of meetings so far.
        reported: True once all ranks know of a failure, which then needs no further report.
        interrupted: returns True if this rank is to end: its next meeting then raises KeyboardInterrupt on all ranks.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        timeout: timedelta,
        gather: Callable[[str, str], list[str]] | None = None,
    ) -> None:
        self._gather = gather
        self._store, self.rank, self.size, self.timeout = store, rank, size, timeout
        self.turn = 0
        self.reported = False
        self.interrupted: Callable[[], bool] = lambda: False

    def exchange(self, action: str, mine: Mapping[str, Any]) -> tuple[list[Any], int]:
        """Meet all ranks and read what each brings.

        Args:
            action: what the ranks are about to do, an imperative phrase.
            mine: this rank's message, as JSON: `at` (its action) and `value`, or `error` and `message`.

        Returns:
            The ranks' values, in the order of ranks, and the number of bytes that this rank wrote.

        Raises:
            SennError: a rank is missing, has failed (then of the class of its error), or is about to do something else.
            KeyboardInterrupt: a rank is to end.
        """
        self.turn += 1
        if self.interrupted():
            mine = {"at": action, "error": "KeyboardInterrupt", "message": "it was asked to end"}
        text = json.dumps(mine)
        answers, n_bytes = self._read_all(action, text)
        failed = [(rank, answer) for rank, answer in enumerate(answers) if "error" in answer]
        if failed:
            self.reported = True
            # The lowest rank, so that all ranks raise the same error.
            rank, answer = failed[0]
            if any(_error_class(one["error"]) is KeyboardInterrupt for _, one in failed):
                self.interrupted = lambda: False  # all know it now, and go on to end
            raise _error_class(answer["error"])(
                f"rank {rank} failed to {answer['at']}: {answer['message']}"
            )
        actions = [answer["at"] for answer in answers]
        if len({*actions}) > 1:
            self.reported = True
            other = next(rank for rank in range(self.size) if actions[rank] != actions[0])
            raise SennError(
                f"rank {other} was about to {actions[other]} and rank 0 to {actions[0]}: all ranks must make the same "
                f"calls"
            )
        return [answer["value"] for answer in answers], n_bytes

    def _read_all(self, action: str, text: str) -> tuple[list[dict[str, Any]], int]:
        """Write this rank's message, wait for all others', and return all of them, with the bytes written.

        Rank 0 reads all messages and writes them into one, which the others read: if each read all, the store would
        answer the square of their number.
        """
        if self._gather is not None:
            return [json.loads(one) for one in self._gather(action, text)], len(text)
        keys = [f"{self.turn}/{rank}" for rank in range(self.size)]
        joined, verb = f"{self.turn}/all", f"did not get ready to {action}"
        n_bytes = len(text)
        try:
            self._store.set(keys[self.rank], text)
            if self.rank == 0:
                answer = self._collect(keys, joined, verb)
                n_bytes += len(answer)
            else:
                self._wait_for_first(keys, joined, verb)
                answer = self._store.get(joined).decode()
            if self.turn > 2:
                # Whoever comes to a meeting has read the one before, so nobody reads the one before that any more.
                own = [self.rank, "all"] if self.rank == 0 else [self.rank]
                for name in own:
                    self._store.delete_key(f"{self.turn - 2}/{name}")
        except (RuntimeError, OSError) as error:
            self.reported = True
            raise SennError(
                f"rank {self.rank} can't reach the store of the process group to {action}: the process that keeps it, "
                f"usually rank 0, has ended"
            ) from error
        texts = json.loads(answer)
        if isinstance(texts, str):  # why rank 0 could not collect them
            self.reported = True
            raise SennError(texts)
        return [json.loads(one) for one in texts], n_bytes

    def _collect(self, keys: Sequence[str], joined: str, verb: str) -> str:
        """Wait for all messages, and write them, or which ranks are missing, as one."""
        try:
            self._wait(keys, verb, self.timeout)
        except SennError as error:
            self._store.set(joined, json.dumps(str(error)))
            raise
        # One round trip instead of one for each rank, where the store can do it.
        if self._store.has_extended_api():
            texts = self._store.multi_get([*keys])
        else:
            texts = [self._store.get(key) for key in keys]
        answer = json.dumps([one.decode() for one in texts])
        self._store.set(joined, answer)
        return answer

    def _wait_for_first(self, keys: Sequence[str], joined: str, verb: str) -> None:
        """Wait until rank 0 has written all messages as one."""
        try:
            self._store.wait([joined], self.timeout)
        except RuntimeError:
            self._check(keys, verb, self.timeout)
            # Rank 0 came last and is about to write, or has ended on the way.
            self._wait([joined], verb, self.timeout)

    def report(self, action: str, error: BaseException) -> None:
        """Let the other ranks fail as well, at their next meeting.

        Args:
            action: what this rank was doing.
            error: why it failed.
        """
        message = str(error) if isinstance(error, SennError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(SennError):  # this rank's own error says more
            self.exchange(action, {"at": action, "error": type(error).__name__, "message": message})

    def name_the_lost(self, action: str) -> None:
        """Find out which ranks are gone after a collective operation has failed.

        Args:
            action: what the ranks were doing.

        Raises:
            SennError: ranks are gone; the message names them.
        """
        keys = [f"lost/{self.turn}/{rank}" for rank in range(self.size)]
        self.reported = True
        # Ten seconds: the others' operation has failed by the same timeout, so they come here at about the same time.
        with contextlib.suppress(RuntimeError, OSError):
            self._store.set(keys[self.rank], "")
            self._wait(
                keys,
                f"was lost while all ranks were to {action}",
                min(self.timeout, timedelta(seconds=10)),
            )

    def _wait(self, keys: Sequence[str], verb: str, timeout: timedelta) -> None:
        """Wait until all keys are there, or raise an error that names the ranks of the missing ones."""
        try:
            self._store.wait([*keys], timeout)
        except RuntimeError:
            self._check(keys, verb, timeout)

    def _check(self, keys: Sequence[str], verb: str, timeout: timedelta) -> None:
        """Raise an error if some keys aren't there after a time, one of each rank from the first on."""
        missing = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
        if missing:
            self.reported = True
            raise SennError(
                f"{format_ranks(missing)} of {self.size} {verb} within {timeout.total_seconds():g} s: it has ended "
                f"or is doing something else"
            ) from None


def format_ranks(numbers: Sequence[int]) -> str:
    """Return "rank 1" or "ranks 1, 2"."""
    return ("rank " if len(numbers) == 1 else "ranks ") + ", ".join(map(str, numbers))


def _error_class(name: str) -> type[BaseException]:
    """Return the class of error to raise when another rank has failed with this one."""
    if name in ("KeyboardInterrupt", "Interrupted"):  # an interrupt of one rank interrupts all
        return KeyboardInterrupt
    found: type[BaseException] = getattr(errors, name, SennError)
    return found
