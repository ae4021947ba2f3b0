"""Public names leave by one door, also those that are found only when they are first used."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import eventbus
import eventbus_async


@pytest.mark.parametrize("package", ["eventbus", "eventbus_async"])
def test_a_star_import_gives_every_public_name(package: str) -> None:
    program = (
        f"from {package} import *\nimport {package} as p\n"
        "missing = [each for each in p.__all__ if globals().get(each) is not getattr(p, each)]\n"
        "assert not missing and {'BaseService', 'EventSynchronizer', 'EventBus'} <= set(p.__all__), missing\n"
        "assert set(p.__all__) <= set(dir(p))\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=30)


def test_the_facade_has_every_name_of_the_core() -> None:
    assert set(eventbus.__all__) <= set(eventbus_async.__all__)
    assert set(eventbus_async.__all__) - set(eventbus.__all__) == {"AsyncEventBus", "SyncEventBus"}


def test_the_version_stands_in_one_place() -> None:
    assert importlib.metadata.version("eventbus") == eventbus.__version__ == eventbus_async.__version__
