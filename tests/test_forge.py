"""Files that a public forge and an editor read: they hold no second truth about versions and tools."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import senn

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_every_place_names_the_same_version():
    (newest, *_) = re.findall(
        r"^## \[?(\d+\.\d+\.\d+)\b", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert {PROJECT["version"], newest, cited} == {senn.__version__}


def test_pre_commit_runs_the_tools_of_make_lint_in_their_versions():
    (hooks,) = (
        repo["hooks"]
        for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    )
    commands = [
        re.sub(r" --force-exclude", "", hook["entry"]).removeprefix(".venv/bin/") for hook in hooks
    ]
    recipe = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    assert commands == [line.removesuffix(" .") for line in re.findall(r"\$\(BIN\)/(.*)", recipe)]
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    required = [one for hook in hooks for one in hook.get("additional_dependencies", ())]
    assert len(required) == 2
    assert set(required) <= set(constraints)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_use_pinned_actions_and_may_only_read(path):
    workflow = yaml.safe_load(path.read_text())
    actions = re.findall(r"uses: (\S+)(.*)", path.read_text())
    assert actions
    for action, comment in actions:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action
    assert workflow["permissions"] == {"contents": "read"}
    granted = {
        name: job.get("permissions")
        for name, job in workflow["jobs"].items()
        if "permissions" in job
    }
    assert granted == ({"publish": {"id-token": "write"}} if path.name == "release.yml" else {})


def test_the_workflows_leave_the_work_to_the_scripts():
    runs = {path.stem: re.findall(r"run: (\S+)", path.read_text()) for path in WORKFLOWS}
    assert runs == {"ci": [".ci/run"], "release": ["make", ".ci/package"]}


def test_the_workflow_runs_every_python_that_is_promised():
    (matrix,) = (
        job["strategy"]["matrix"]
        for job in yaml.safe_load(WORKFLOWS[0].read_text())["jobs"].values()
    )
    promised = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert matrix["python-version"] == promised
    assert PROJECT["requires-python"] == f">={promised[0]}"


@pytest.mark.parametrize("name", ["bug", "feature", "question"])
def test_issue_forms_ask_for_something(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert form["name"]
    assert form["description"]
    asked = [field for field in form["body"] if field.get("validations", {}).get("required")]
    assert asked
    assert len({field["id"] for field in form["body"]}) == len(form["body"])
