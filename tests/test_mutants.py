"""The list of mutants is true: each text to be changed stands in the source once, and the changed file is Python."""

import ast
from pathlib import Path

import pytest
from mutant_list import MUTANTS
from mutants import mutated

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.what)
def test_a_mutant_changes_one_place(mutant):
    source = (ROOT / "src" / "senn" / mutant.file).read_text()
    changed = mutated(mutant, source)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
    assert all((ROOT / test).exists() for test in mutant.tests)


def test_there_are_enough_and_none_twice():
    assert len(MUTANTS) >= 40
    assert len({(one.file, one.new) for one in MUTANTS}) == len(MUTANTS)
