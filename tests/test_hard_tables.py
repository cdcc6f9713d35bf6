"""The bench on hard tables: its controls are controls, and what is stored is not fitted again."""

import json

import hard_tables
import pytest


def test_a_fit_is_a_record_that_is_not_made_again(tmp_path, capsys):
    out = tmp_path / "results.json"
    argv = ["--tables", "60 rows of iris", "--seeds", "0", "--out", str(out)]
    made = {"table": "60 rows of iris", "seed": 0}
    known = {
        f"60 rows of iris | {arm} | 0": {**made, "arm": arm, "score": score}
        for arm, score in (("default", 0.5), ("no validation rows", 0.25))
    }
    out.write_text(json.dumps(known))
    assert hard_tables.main(argv) == 0
    found = json.loads(out.read_text())
    assert known.items() <= found.items()
    assert found["60 rows of iris | logistic | 0"]["score"] > 0.8
    said = capsys.readouterr().out
    assert "0.500" in said
    assert "logistic" in said


@pytest.mark.parametrize("name", ["heavy-tailed target", "wild cells"])
def test_arms_of_one_seed_have_the_same_rows_but_for_what_is_done_to_them(name):
    arms = {arm: rows for arm, rows, _ in hard_tables.TABLES[name](3)}
    first, *others = arms.values()
    for rows in others:
        assert [len(one) for one in rows] == [len(one) for one in first]
        changed = sum(int((a != b).sum()) for a, b in zip(rows, first, strict=True))
        # All cells of the columns that become log-normal, at most two elsewhere.
        assert changed <= 2 or rows is arms.get("log-normal columns")
