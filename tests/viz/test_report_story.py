"""What the report makes of records, in a browser: which layer is which, what went, what came of a round."""

import pytest
from report_cases import waves

from senn.viz.report import downsample_record
from senn.viz.report.downsample import CANDIDATE

pytestmark = pytest.mark.xdist_group("browser")


@pytest.mark.parametrize(
    ("before", "after", "changes", "fresh"),
    [
        ([("body.0", 3), (None, 5)], [3, 7, 5], [("insert", "body.2", 0, 7)], [1]),
        ([("body.0", 2), ("body.2", 22)], [11, 2, 82, 22],
         [("insert", "body.0", 0, 11), ("widen", "body.0", 2, 82)], [0, 1]),
        ([("body.0", 5), ("body.2", 5)], [5, 5, 5], [("insert", "body.2", 0, 5)], [1]),
        ([("body.0", 5), ("body.2", 5)], [5, 5, 5], [("insert", "body.4", 0, 5)], [2]),
        ([("body.0", 5), ("body.2", 5)], [5, 5, 5], [("insert", "body.0", 0, 5)], [0]),
        ([("a", 9), ("b", 9)], [12, 9], [("widen", "a", 9, 12)], []),
    ],
)  # fmt: skip
def test_layers_are_followed_by_the_places_that_changes_name(single, before, after, changes, fresh):
    layers = [{"id": at, "name": name, "width": width} for at, (name, width) in enumerate(before)]
    records = [
        dict(zip(("kind", "place", "width_before", "width_after"), change, strict=True))
        for change in changes
    ]
    found = single.evaluate(
        "([b, a, c]) => { let id = 100; return follow(b, a, c, () => id++); }",
        [layers, after, records],
    )
    assert [at for at, layer in enumerate(found) if layer["id"] >= 100] == fresh
    assert [layer["id"] for layer in found if layer["id"] < 100] == list(range(len(before)))
    assert [layer["width"] for layer in found] == after


def test_changes_without_growth_rounds_are_rounds_too(single):
    run, _ = waves()
    records = [one for one in run.history if one["event"] != "growth_round"]
    steps = sorted({one["step"] for one in records if one["event"] in ("growth", "rollback")})
    told = single.evaluate(
        "(records) => new Story({ name: 'old', records }, []).rounds.map((r) => r.step)", records
    )
    assert told == steps


def test_units_that_went_fade_where_they_were(single):
    sized = {"event": "start", "step": 0, "epoch": 0, "parameters": 9, "architecture": [4, 7]}
    change = {
        "event": "growth",
        "kind": "prune",
        "step": 5,
        "epoch": 1,
        "parameters": -2,
        "architecture": [4, 4],
    }
    change |= {"place": "body.2", "width_before": 7, "width_after": 4, "removed_units": [0, 2, 3]}
    rest = [
        {**sized, "event": "epoch", "step": 5 + at, "epoch": 1 + at, "architecture": [4, 4]}
        for at in range(1, 5)
    ]
    shown = single.evaluate(
        "(records) => { const story = new Story({ name: 'pruned', records }, []);"
        "const picture = new Picture(story, [story], 200);"
        "return story.moments.map((_, at) => picture.layersAt(at).map((layer) => inOrder(layer).flatMap("
        "({ count, looks }) => Array(count).fill(looks[looks.length - 1])))); }",
        [sized, change, *rest],
    )
    assert [[len(layer) for layer in moment] for moment in shown] == [[4, 7], *[[4, 7]] * 4, [4, 4]]
    for moment, opacity in zip(shown[1:5], (0.5, 0.375, 0.25, 0.125), strict=True):
        gone = ["gone", opacity]
        assert moment[1] == [gone, ["units", 1], gone, gone, *[["units", 1]] * 3]
    assert shown[5][1] == [["units", 1]] * 4


def test_what_came_of_a_round_is_told_by_the_next_one(single):
    run, _ = waves()
    records = [
        {**one, "realized_decrease": None} if one["event"] == "growth" else one
        for one in run.history
    ]
    told = single.evaluate(
        "([records, columns]) => new Story({ name: 'live', records }, columns).rounds"
        ".flatMap((r) => r.changes.map((c) => c.realized_decrease))",
        [[downsample_record(one) for one in records], CANDIDATE],
    )
    known = [one["realized_decrease"] for one in run.history if one["event"] == "growth"]
    assert any(value is not None for value in known)
    assert told == [None if value is None else pytest.approx(value, rel=1e-4) for value in known]


def test_smaller_sizes_are_drawn_with_the_kept_network_ringed(single):
    run, _ = waves()
    points = run.frontier.points
    drawn = single.evaluate("senn.drawn.get('frontier').chart.rows")
    assert [row["parameters"] for row in drawn] == [point.parameters for point in points]
    assert [row["value"] for row in drawn] == pytest.approx(
        [point.figures["accuracy"] for point in points], rel=1e-4
    )
    assert [row["kept"] for row in drawn] == [True] + [False] * (len(points) - 1)
    symbols = single.locator(".chart.frontier g.mark-symbol")
    assert [symbols.nth(at).locator("path").count() for at in range(2)] == [len(points), 1]
    assert "kept" in single.text_content(".chart.frontier svg")


def test_a_click_on_smaller_sizes_moves_no_time(single):
    single.evaluate("senn.player.show(2)")
    single.locator(".chart.frontier .plot").scroll_into_view_if_needed()
    box = single.locator(".chart.frontier .plot svg").bounding_box()
    single.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.5)
    assert single.evaluate("senn.player.position") == 2
    single.mouse.move(0, 0)


def test_runs_without_smaller_sizes_have_no_chart_of_them(single):
    keys = """(run) => {
        const told = charts([new Story(run, [])]);
        return told.map((chart) => chart.key);
    }"""
    run, _ = waves()
    bare = [{key: value for key, value in one.items() if key != "frontier"} for one in run.history]
    records = [one for one in bare if one["event"] != "growth_round"]
    found = single.evaluate(keys, {"name": "old", "records": records})
    assert "loss" in found
    assert "frontier" not in found
