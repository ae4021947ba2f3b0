"""The examples in the docstrings of both packages run, and print what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest

import eventbus
import eventbus_async


def modules(package: ModuleType) -> list[str]:
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [package.__name__, *(each.name for each in found if not each.name.endswith("__main__"))]


NAMES = [*modules(eventbus), *modules(eventbus_async)]
FINDER = doctest.DocTestFinder(exclude_empty=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_module(name: str) -> None:
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    for example in FINDER.find(module):
        runner.run(example, out=report.append)
    assert not runner.failures, "".join(report)


def test_there_are_examples_on_both_faces() -> None:
    """Else the test above would pass on nothing."""

    def count(names: list[str]) -> int:
        found = (FINDER.find(importlib.import_module(name)) for name in names)
        return sum(bool(each.examples) for tests in found for each in tests)

    assert count(modules(eventbus)) >= 4
    assert count(modules(eventbus_async)) >= 1
