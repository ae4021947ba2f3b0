"""docs/design.md names what there is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
SOURCES = {
    path: path.read_text(encoding="utf-8")
    for each in ("eventbus", "eventbus_async")
    for path in sorted((ROOT / each).rglob("*.*"))
    if path.suffix in (".py", ".c", ".h")
}
QUOTED = re.findall(r"`([^`\n]+)`", TEXT)


def test_files_that_it_names_exist() -> None:
    known = {path.name for path in SOURCES}
    named = [each for each in QUOTED if "/" in each or each.endswith(".py")]
    assert len(named) > 15
    for each in named:
        assert (ROOT / each).exists() or each in known, each


def test_names_that_it_uses_are_the_codes() -> None:
    code = "\n".join(SOURCES.values())
    names = {
        word for each in QUOTED if "/" not in each and not each.endswith(".py") for word in re.findall(r"\w+", each)
    }
    assert len(names) > 30
    for name in names:
        assert re.search(rf"\b{name}\b", code), name


def test_the_readme_links_to_it() -> None:
    assert "(docs/design.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
