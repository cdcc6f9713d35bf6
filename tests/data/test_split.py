"""Rows held out in whole groups, or as the latest: exact cases and properties."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from senn.data import split_groups, split_last
from senn.data.split import folds, folds_in_time
from senn.errors import SennError


class TestGroups:
    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(0, 12), min_size=4, max_size=80), st.integers(0, 3))
    def test_no_group_is_on_both_sides_and_no_row_is_lost(self, values, seed):
        groups = np.array(values)
        assume(len(set(values)) > 1)
        train, test = split_groups(groups, 0.3, seed)
        assert not set(groups[train]) & set(groups[test])
        assert sorted([*train, *test]) == list(range(len(groups)))
        assert len(train)
        assert len(test)

    def test_groups_of_one_size_give_the_share_and_the_classes_in_proportion(self):
        groups = np.repeat(np.arange(120), 5)
        classes = np.repeat(np.arange(120) % 4 == 0, 5)
        train, test = split_groups(groups, 0.2, 0, classes)
        assert (len(train), len(test)) == (480, 120)
        assert abs(classes[test].mean() - 0.25) < 0.03

    def test_a_class_that_one_group_has_alone_stays_in_training(self):
        groups = np.repeat(np.arange(6), 4)
        classes = np.where(groups == 3, "rare", "common")
        for seed in range(10):
            _, test = split_groups(groups, 0.4, seed, classes)
            assert "rare" not in classes[test]

    def test_the_largest_group_is_not_held_out_for_a_small_share(self):
        groups = np.array([0] * 90 + list(range(1, 11)))
        assert len(split_groups(groups, 0.1, 0)[1]) == 10

    def test_same_seed_same_rows(self):
        groups = np.random.default_rng(0).integers(0, 30, 200)
        first, again, other = (split_groups(groups, 0.2, seed)[1].tolist() for seed in (1, 1, 2))
        assert first == again != other

    def test_a_single_group_is_refused(self):
        with pytest.raises(SennError, match="single group"):
            split_groups(np.zeros(9), 0.2)


class TestLast:
    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.floats(0.05, 0.9))
    def test_all_test_rows_are_later_than_all_others(self, values, fraction):
        times = np.array(values)
        assume(len(set(values)) > 1)
        train, test = split_last(times, fraction)
        assert times[train].max() < times[test].min()
        assert len(train) + len(test) == len(times)

    def test_the_order_of_the_rows_does_not_matter(self):
        order = np.random.default_rng(0).permutation(500)
        days = np.datetime64("2022-01-01") + order.astype("timedelta64[D]")
        assert set(order[split_last(days, 0.2)[1]]) == set(range(400, 500))

    def test_rows_of_one_time_stay_together(self):
        years = np.repeat([2019, 2020, 2021], [50, 30, 20])
        assert len(split_last(years, 0.3)[1]) == 20
        assert len(split_last(years, 0.4)[1]) == 50

    def test_a_single_time_is_refused(self):
        with pytest.raises(SennError, match="same time"):
            split_last(np.ones(5))


class TestFolds:
    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.integers(0, 3), min_size=6, max_size=60), st.integers(2, 6), st.integers(0, 3)
    )
    def test_each_row_is_in_one_fold_and_classes_are_dealt_evenly(self, values, count, seed):
        classes = np.array(values)
        parts = folds(len(classes), count, seed, classes)
        alone = [
            value
            for value, number in zip(*np.unique(classes, return_counts=True), strict=True)
            if number == 1
        ]
        assert sorted(np.concatenate(parts)) == np.flatnonzero(~np.isin(classes, alone)).tolist()
        for value in set(values) - set(alone):
            shares = [(classes[part] == value).sum() for part in parts]
            assert max(shares) - min(shares) <= 1

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(0, 12), min_size=6, max_size=80), st.integers(2, 4))
    def test_groups_are_in_one_fold_and_no_fold_is_empty(self, values, count):
        groups = np.array(values)
        assume(len(set(values)) >= count)
        parts = folds(len(groups), count, 0, groups % 2, groups)
        assert sorted(np.concatenate(parts)) == list(range(len(groups)))
        assert all(len(part) for part in parts)
        for part in parts:
            assert not set(groups[part]) & set(np.delete(groups, part))

    def test_groups_of_one_size_are_dealt_evenly_with_their_classes(self):
        groups = np.repeat(np.arange(40), 3)
        classes = np.repeat(np.arange(40) % 4 == 0, 3)
        for part in folds(120, 5, 0, classes, groups):
            assert (len(part), classes[part].sum()) == (24, 6)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(0, 30), min_size=4, max_size=60), st.integers(2, 4))
    def test_folds_in_time_are_later_than_what_they_train_on(self, values, count):
        times = np.array(values)
        assume(len(set(values)) > count)
        parts = folds_in_time(times, count)
        assert len(parts) == count
        for (train, test), (later, _) in itertools.pairwise(
            [*parts, (np.arange(len(times)), None)]
        ):
            assert times[train].max() < times[test].min()
            assert sorted([*train, *test]) == later.tolist()

    def test_folds_in_time_have_equal_numbers_of_rows_where_times_differ(self):
        parts = folds_in_time(np.arange(60), 5)
        assert [(len(train), len(test)) for train, test in parts] == [
            (10 * at, 10) for at in range(1, 6)
        ]

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: folds(3, 4), "3 rows can't be divided into 4 folds"),
            (lambda: folds(4, 3, groups=np.array([0, 0, 1, 1])), "2 groups can't be divided"),
            (lambda: folds_in_time(np.array([1, 1, 2]), 2), "2 different times can't be divided"),
        ],
    )
    def test_too_few_for_so_many_folds_is_refused(self, make, words):
        with pytest.raises(SennError, match=words):
            make()
