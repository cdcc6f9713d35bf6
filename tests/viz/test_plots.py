"""The figure of a run."""

import pytest

from senn.viz.plots import follow, growth_figure


@pytest.mark.parametrize(
    ("architectures", "lines"),
    [
        ([], []),
        ([[3], [5]], [[(0, 3), (1, 5)]]),
        ([[6], [1, 6], [3, 6]], [[(1, 1), (2, 3)], [(0, 6), (1, 6), (2, 6)]]),
        ([[6], [6, 1]], [[(0, 6), (1, 6)], [(1, 1)]]),
        (
            [[5], [4, 2, 5], [12, 2, 4]],
            [[(1, 4), (2, 12)], [(1, 2), (2, 2)], [(0, 5), (1, 5), (2, 4)]],
        ),
        ([[9, 5], [9, 3, 6]], [[(0, 9), (1, 9)], [(1, 3)], [(0, 5), (1, 6)]]),
    ],
)
def test_a_layer_keeps_its_line_when_others_are_inserted_before_it(architectures, lines):
    assert follow(architectures) == lines


def epoch(number, loss):
    step = 10 * number
    return {"event": "epoch", "epoch": number, "step": step, "train_loss": loss, "validation_loss": None,
            "architecture": [2]}  # fmt: skip


def growth(promised, realized):
    return {
        "event": "growth",
        "step": 12,
        "expected_decrease": promised,
        "realized_decrease": realized,
        "architecture": [3],
    }


@pytest.mark.parametrize(
    "history",
    [
        [],
        [epoch(1, 0.5), {"event": "end", "best_epoch": 0}],
        [epoch(1, -0.5), growth(0.2, None), growth(-0.1, None), {"event": "end", "best_epoch": 1}],
        [epoch(1, 0.5), growth(0.2, 0.1), epoch(2, 0.4), {"event": "rollback", "step": 14}],
    ],
)
def test_any_history_can_be_drawn(tmp_path, history):
    figure = growth_figure(history, tmp_path / "growth.png", start=(2,))
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert len(figure.axes) == 3


def test_the_figure_can_be_changed_and_needs_no_file(tmp_path):
    history = [epoch(1, 0.5), growth(0.2, 0.1), epoch(2, 0.4)]
    figure = growth_figure(history)
    figure.axes[0].set_title("mine")
    figure.set_size_inches(4, 3)
    figure.savefig(tmp_path / "mine.svg")
    assert "mine" in (tmp_path / "mine.svg").read_text()
