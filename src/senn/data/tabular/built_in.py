"""Built-in tables, which need no file."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd


def _scikit(loader: str, target: str, named: bool) -> Callable[[], tuple[pd.DataFrame, str]]:
    """Make a loader of a table of scikit-learn, with its classes by name where they have one."""

    def load() -> tuple[pd.DataFrame, str]:
        from sklearn import datasets

        bunch = getattr(datasets, loader)()
        values = bunch.target_names[bunch.target].astype(str) if named else bunch.target
        frame = pd.DataFrame(bunch.data, columns=list(bunch.feature_names))
        return frame.assign(**{target: values}), target

    return load


def _moons() -> tuple[pd.DataFrame, str]:
    from sklearn.datasets import make_moons

    x, y = make_moons(1000, noise=0.3, random_state=0)
    return pd.DataFrame({"x": x[:, 0], "y": x[:, 1], "moon": y}), "moon"


BUILT_IN: dict[str, Callable[[], tuple[pd.DataFrame, str]]] = {
    "digits": _scikit("load_digits", "digit", named=False),
    "breast-cancer": _scikit("load_breast_cancer", "diagnosis", named=True),
    "wine": _scikit("load_wine", "cultivar", named=True),
    "diabetes": _scikit("load_diabetes", "progression", named=False),
    "moons": _moons,
}
"""Tables that need no file."""
