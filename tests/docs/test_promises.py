"""docs/promises.md is what its script makes of the tests, and every promise has tests."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_promises", ROOT / "docs" / "make_promises.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(script: ModuleType) -> None:
    kept = script.PAGE.read_text(encoding="utf-8")
    assert kept == script.page(), "tests, plants or results have changed: run python docs/make_promises.py"


def test_every_promise_has_tests_and_says_what_it_is_not(script: ModuleType) -> None:
    page = script.PAGE.read_text(encoding="utf-8")
    sections = re.split(r"^## (?=G\d+ )", page, flags=re.M)[1:]
    assert [each.split()[0] for each in sections] == [f"G{number}" for number in range(1, 23)]
    for section in sections:
        count = re.search(r"<summary>(\d+) tests</summary>", section)
        assert count is not None
        assert int(count[1]) >= 8, section.splitlines()[0]
        assert "*Not promised.* " in section
    assert max(map(len, page.splitlines())) <= 120


def test_every_plant_breaks_a_promise(script: ModuleType) -> None:
    plants = script.plants()
    assert len(plants) >= 20
    for plant in plants:
        assert plant.promises, f"the docstring of the plant {plant.name} names no promise"
        assert f"- {plant.name.replace('_', ' ')}:" in script.PAGE.read_text(encoding="utf-8").replace("\n  ", " ")


def test_pytest_finds_the_tests_that_the_script_reads(script: ModuleType) -> None:
    """The script reads sources and does not run them: what it takes for a test, pytest runs."""
    file = "tests/promises/test_g22_scopes.py"
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    listed = subprocess.run([*command, file], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=50)
    collected = re.findall(r"::(test_\w+)", listed.stdout)
    assert collected, listed.stdout + listed.stderr
    assert sorted(set(collected)) == sorted(each.name for each in script.tests() if each.file == file)


def test_promises_are_found_in_names_classes_and_docstrings(script: ModuleType) -> None:
    assert script.by_name("test_g8_a_wait") == {8}
    assert script.by_name("test_a_wait") == set()
    assert script.named("Holds G3 and G14, of G1 to G22, not G99.") == {3, 14}
    assert all(each.promises for each in script.tests() if each.file.startswith("tests/promises/test_g"))


def test_the_readme_links_to_it() -> None:
    assert "(docs/promises.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
