"""Which rows `senn fit` trains on, validates on and scores: a test file, groups, time."""

import json

import numpy as np
import pandas as pd
import pytest
from cli_cases import refused

from senn.cli.fit_table import prepare
from senn.cli.main import main
from senn.errors import SennError
from senn.runs import FitOptions


def visits(patients=40, each=5):
    """Visits of patients, each with a class drawn by lot, a day and a year."""
    draw = np.random.default_rng(0)
    who = np.repeat(np.arange(patients), each)
    frame = pd.DataFrame(draw.normal(size=(len(who), 3)).round(3), columns=["a", "b", "c"])
    frame["patient"] = [f"P{at}" for at in who]
    frame["day"] = pd.date_range("2022-01-01", periods=len(who)).strftime("%d.%m.%Y")
    frame["year"] = 2000 + np.arange(len(who)) // 20
    frame["label"] = draw.choice(["ill", "well"], patients)[who]
    return frame.sample(frac=1, random_state=0).reset_index(drop=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the table and parts of it."""
    folder = tmp_path_factory.mktemp("parts")
    frame = visits()
    frame.to_csv(folder / "all.csv", index=False)
    frame.iloc[:50].to_csv(folder / "test.csv", index=False)
    frame.drop(columns="b").to_csv(folder / "lacks.csv", index=False)
    frame.drop(columns="label").to_csv(folder / "unlabeled.csv", index=False)
    frame.assign(label="maybe").to_csv(folder / "strange.csv", index=False)
    frame.assign(ward=np.arange(200) % 4).to_csv(folder / "wards.csv", index=False)
    frame.assign(patient="P1").to_csv(folder / "alone.csv", index=False)
    gaps = frame.assign(patient=frame.patient.where(frame.index >= 7))
    gaps.to_csv(folder / "gaps.csv", index=False)
    gaps.assign(patient=gaps.patient.fillna("NA").astype("category")).to_parquet(
        folder / "gaps.parquet"
    )
    frame["ward"] = np.arange(200) % 4
    frame.assign(ward=frame.ward.map("ward {}".format)).to_csv(folder / "named.csv", index=False)
    frame.assign(ward="attic", label=frame.label.where(frame.index >= 3)).to_csv(
        folder / "attic.csv", index=False
    )
    return folder


def prepared(home, table="all.csv", **options):
    return prepare(FitOptions(data=str(home / table), target="label", **options))


def parts(home, column, **options):
    """Values of a column in the rows to fit on, for validation and for the test."""
    made = prepared(home, **options)
    rows = pd.read_csv(home / "all.csv")[column].to_numpy()
    encoded = made.encoder.transform(pd.read_csv(home / "all.csv"))
    place = {row.tobytes(): at for at, row in enumerate(encoded)}
    of = [[rows[place[row.tobytes()]] for row in x.numpy()] for x in (made.x, made.x_test)]
    held_out = set(made.validation.tolist())
    fitted = [value for at, value in enumerate(of[0]) if at not in held_out]
    return fitted, [of[0][at] for at in held_out], of[1]


def test_a_test_file_is_scored_and_all_of_the_data_is_for_training(home):
    made = prepared(home, test=str(home / "test.csv"))
    assert (len(made.x), len(made.x_test)) == (200, 50)
    assert (made.summary()["train_rows"], made.summary()["test_rows"]) == (200, 50)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("lacks.csv", "lacks the column 'b'"),
        ("unlabeled.csv", "no column 'label'"),
        ("strange.csv", "class 'maybe' is unknown"),
        ("nowhere.csv", "there is no file"),
    ],
)
def test_a_test_file_that_does_not_fit_is_refused(home, file, words):
    with pytest.raises(SennError, match=words) as caught:
        prepared(home, test=str(home / file))
    assert file in str(caught.value)


def test_groups_stay_together_in_all_three_parts(home):
    fitted, validation, test = map(set, parts(home, "patient", group="patient"))
    assert not fitted & validation
    assert not (fitted | validation) & test
    assert len(fitted) + len(validation) + len(test) == 40
    made = prepared(home, group="patient")
    assert made.summary()["columns"]["patient"] == "dropped"
    assert not any(name.startswith("patient") for name in made.encoder.features)


@pytest.mark.parametrize("column", ["day", "year"])
def test_the_latest_rows_are_held_out(home, column):
    when = parts(home, column, time=column)
    if column == "day":
        when = [pd.to_datetime(part, format="%d.%m.%Y") for part in when]
    fitted, validation, test = when
    assert max(fitted) < min(validation)
    assert max(validation) < min(test)


@pytest.mark.parametrize("fraction", [0.2, 0.11])
def test_groups_and_time_together_hold_out_the_latest_rows_of_new_groups(home, fraction):
    options = {"group": "patient", "time": "day", "test_fraction": fraction}
    by_group = parts(home, "patient", **options)
    fitted, validation, test = map(set, by_group)
    assert not fitted & validation
    assert not (fitted | validation) & test
    days = [pd.to_datetime(part, format="%d.%m.%Y") for part in parts(home, "day", **options)]
    assert max(days[0]) < min(days[1])
    assert max(days[1]) < min(days[2])
    # Only rows of a patient whose visits lie on both sides of a cut are left out, and told.
    lost = 200 - sum(map(len, by_group))
    notes = [note for note in prepared(home, **options).notes if "are left out" in note]
    assert lost < 10
    assert [note.split()[0] for note in notes] == ([str(lost)] if lost else [])


def test_what_a_test_file_has_that_training_has_not_is_told(home):
    path = str(home / "attic.csv")
    notes = [note for note in prepared(home, "named.csv", test=path).notes if path in note]
    assert notes == [
        f"{path!r}: 3 of 200 rows without a 'label' are left out",
        f"{path!r}: column 'ward': 197 of 197 cells were never seen in training, the first being 'attic'",
    ]


@pytest.mark.parametrize("table", ["gaps.csv", "gaps.parquet"])
def test_rows_without_a_group_stay_together(home, table):
    made = prepared(home, table, group="patient")
    assert "7 rows without a 'patient' are kept together as one group" in made.notes


def test_groups_that_a_test_file_shares_with_the_training_rows_are_told(home):
    made = prepared(home, test=str(home / "test.csv"), group="patient")
    assert any("100% of the test rows" in note for note in made.notes)


@pytest.mark.parametrize(
    ("table", "options", "words"),
    [
        ("all.csv", {"group": "Patient"}, "no column 'Patient' for --group"),
        ("all.csv", {"time": "Day"}, "no column 'Day' for --time"),
        ("all.csv", {"group": "label"}, "'label' is the target"),
        ("all.csv", {"time": "patient"}, "neither dates nor numbers"),
        ("wards.csv", {"group": "ward", "time": "day"}, "would leave out 160 of 200 rows"),
        ("alone.csv", {"group": "patient"}, "a single value"),
        ("all.csv", {"test": "x.csv", "test_fraction": 0.5}, "--test-fraction can't be combined"),
    ],
)
def test_what_can_not_be_held_out_is_refused(home, table, options, words):
    with pytest.raises(SennError, match=words):
        prepared(home, table, **options)


def test_a_second_target_is_refused(home, capsys):
    argv = ["fit", home / "all.csv", "--target", "a", "--target", "b", "--dry-run"]
    assert "--target is given twice, 'a' and 'b'" in refused(capsys, argv)


def test_the_plan_has_the_rows_that_groups_hold_out(home, capsys):
    argv = ["fit", str(home / "all.csv"), "--target", "label", "--group", "patient", "--dry-run"]
    assert main([*argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["plan"]["fitted_rows"] + said["plan"]["validation_rows"] == 160
    assert said["plan"]["validation_rows"] % 5 == 0


def test_a_run_by_time_trains_and_resumes_by_its_options(home, capsys):
    out = home / "by-time"
    argv = ["fit", str(home / "all.csv"), "--target", "label", "--time", "day", "--epochs", "1"]
    assert main([*argv, "--out", str(out), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["data"]["test_rows"] == 40
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert (history[0]["train_rows"], history[0]["validation_rows"]) == (144, 16)


def test_notes_say_what_the_rows_are(home):
    notes = " / ".join(prepared(home).notes)
    assert "'day' is a date, and test rows are drawn at random" in notes
    assert "--time 'day'" not in " / ".join(prepared(home, time="day").notes)
    small = pd.read_csv(home / "all.csv").drop(columns=["day", "year"])[:40]
    wide = pd.DataFrame(np.random.default_rng(1).normal(size=(40, 90))).add_prefix("x")
    pd.concat([small, wide], axis=1).to_csv(home / "wide.csv", index_label="Unnamed: 0")
    made = prepared(home, "wide.csv")
    assert made.notes[0].startswith("0 rows for validation: 10 of 32 would be more than a quarter")
    assert "no price limits it" in made.notes[1]
    assert made.summary()["columns"]["Unnamed: 0"] == "dropped"


def test_a_class_that_only_the_latest_rows_have_is_told(home):
    frame = pd.DataFrame({"t": range(60), "a": np.arange(60) % 7, "label": ["x", "y"] * 30})
    frame.loc[50:, "label"] = "new"
    frame.to_csv(home / "late.csv", index=False)
    notes = prepared(home, "late.csv", time="t").notes
    assert "class 'new' has no row to fit on, and can't be learned" in notes
