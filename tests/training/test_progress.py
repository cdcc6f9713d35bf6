"""Lines that training prints: what a round took back contradicts nothing that follows."""

from senn.training.progress import LinesCallback, taken_back_lines
from senn.training.round_records import rollback_record

RETURN = rollback_record("the weights are those of epoch 3 again, the best of their size", 4, 40)
FIRST, LAST = (rollback_record(f"it raised the validation loss by {at}", 4, 40) for at in (2, 1))


def test_attempts_are_counted_apart_from_a_return_to_earlier_weights():
    assert taken_back_lines([RETURN, FIRST, LAST]) == [
        "step 40: the weights are those of epoch 3 again, the best of their size",
        "step 40: 2 attempts were taken back, and less was tried each time; the last one: it raised the validation "
        "loss by 1",
    ]
    assert taken_back_lines([FIRST]) == [
        "step 40: one attempt was taken back: it raised the validation loss by 2"
    ]
    assert taken_back_lines([RETURN]) == [f"step 40: {RETURN['text']}"]


def test_they_are_told_before_the_change_that_was_made(capsys):
    lines = LinesCallback()
    lines.on_rollback(FIRST)
    lines.on_growth({"step": 40, "text": "prune body.0: 9 -> 8", "kind": "prune"})
    assert [line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines()] == [
        "one attempt was taken back: it raised the validation loss by 2",
        "prune body.0: 9 -> 8",
    ]
