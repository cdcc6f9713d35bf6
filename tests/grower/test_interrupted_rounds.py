"""An exception in any function that a round calls before it changes the model leaves everything as it was.

The ordinary run tries one function in 32; `SENN_ALL=1 pytest tests/grower/test_interrupted_rounds.py` tries all.
"""

import functools
import inspect
import sys
from pathlib import Path
from types import CodeType, FrameType

import pytest
import torch
from exhaustive import some
from growth_cases import FEW, X, Y
from torch import nn

import senn
from senn.checkpoint.model_state import packed

SOURCE = Path(senn.__file__).parent
OWN = tuple(
    str(SOURCE / place) for place in ("grower/grower.py", "scoring", "candidates", "policies")
)


class Interruption(BaseException):
    pass


@functools.cache
def is_of_a_round(code: CodeType) -> bool:
    # a generator that is thrown away is called to be closed
    return not code.co_flags & inspect.CO_GENERATOR and code.co_filename.startswith(OWN)


class Calls:
    """Counts the calls of the functions of a round, and raises in one of them.

    Args:
        code: the function to raise in; None for none.
        number: at which of its calls.
    """

    def __init__(self, code: CodeType | None = None, number: int = 0) -> None:
        self.code, self.number = code, number
        self.seen: dict[CodeType, int] = {}

    def __enter__(self) -> "Calls":
        sys.settrace(
            self
        )  # hears calls only, where a profiler hears returns and calls of C as well
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not is_of_a_round(code):
            return
        if code.co_name == "_apply":  # from here on the surgery's own way back counts
            sys.settrace(None)
            return
        self.seen[code] = self.seen.get(code, 0) + 1
        if code is self.code and self.seen[code] == self.number:
            sys.settrace(None)
            raise Interruption


def grower(moves: tuple[str, ...]) -> senn.Grower:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 10))
    return senn.Grower(
        model,
        samples=len(X),
        candidate_config=FEW,
        moves=moves,
        policy=senn.PricePolicy(kappa=1e-4),
    )


def noted(one: senn.Grower) -> list[object]:
    """All that a round may have changed."""
    session = one._session
    state = packed(one.state_dict())
    seen = None if session is None else (session.samples, session.loss, session._fit.maps.keys())
    return [
        state,
        seen,
        session is None,
        repr(one.candidate_set),
        [event.realized_decrease for event in one.events],
        one.moves,
    ]


def ready(batches: list[tuple[torch.Tensor, torch.Tensor]], observed: bool) -> senn.Grower:
    """A grower with events that wait for what comes of them, which knows how the maps can be read."""
    one = grower(("width", "depth", "prune"))
    one.grow([(X[:200], Y[:200])])
    if observed:
        one.observe(X[400:480], Y[400:480])

    def broken():
        yield from batches
        raise Interruption

    with pytest.raises(Interruption):
        one.grow(broken())
    return one


@pytest.mark.parametrize(
    "observed", [False, True], ids=["of_its_own_batches", "of_batches_observed_before"]
)
def test_an_exception_in_any_function_of_a_round_leaves_nothing(observed: bool) -> None:
    batches = [(X[:80], Y[:80]), (X[80:160], Y[80:160])]
    counted, found, clean = (ready(batches, observed) for _ in range(3))
    with Calls() as calls:
        counted.grow(batches)
    assert len(calls.seen) > 60
    before = noted(found)
    for code, number in some(calls.seen.items(), 32, first=16 if observed else 0):
        with Calls(code, number), pytest.raises(Interruption):
            found.grow(batches)
        assert noted(found) == before, code.co_name
    ours, theirs = found.grow(batches), clean.grow(batches)
    assert [event.as_dict() for event in ours] == [event.as_dict() for event in theirs] != []
