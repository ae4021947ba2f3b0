"""Imports point one way, and the seam is the only door to threads and clocks.

Read from the syntax trees, so nothing here depends on what happens to be imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "eventbus"
FACADE = ROOT / "eventbus_async"
SEAM = CORE / "_engine" / "primitives.py"

# Programs and tools beside the library: they may use threads and clocks of their own.
BESIDE = (FACADE / "_demo", CORE / "__main__.py", FACADE / "__main__.py", FACADE / "pytest_plugin.py")

# A module may import from its own layer and from those before it.
LAYERS = ("_errors _later", "_values", "_engine", "_bus _scope _stream", "_testing _services", "__init__ lowlevel")

MAKERS = {"threading", "asyncio", "queue", "multiprocessing"}
UNSAFE = {"Condition", "Event", "Semaphore", "BoundedSemaphore", "Barrier", "Queue", "LifoQueue", "PriorityQueue"}


def library() -> list[Path]:
    return [
        path
        for package in (CORE, FACADE)
        for path in sorted(package.rglob("*.py"))
        if not any(path == each or each in path.parents for each in BESIDE)
    ]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, by its full name, and whether that is for the type checker alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package.pop()

    def visit(node: ast.AST, typing_only: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, typing_only
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            # ``from . import primitives`` names a module, ``from .waits import sleep`` does not.
            for alias in node.names:
                full = f"{stem}.{alias.name}"
                is_module = (ROOT / Path(*full.split("."))).with_suffix(".py").exists()
                yield full if is_module else stem, typing_only
        elif isinstance(node, ast.If) and is_type_checking(node.test):
            for each in node.body:
                yield from visit(each, True)
            for each in node.orelse:
                yield from visit(each, typing_only)
        else:
            for child in ast.iter_child_nodes(node):
                yield from visit(child, typing_only)

    yield from visit(tree, False)


def is_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))


def under(module: str, roots: tuple[str, ...]) -> bool:
    return any(module == root or module.startswith(root + ".") for root in roots)


def layer_of(module: str) -> int:
    part = module.split(".")[1] if "." in module else "__init__"
    for number, names in enumerate(LAYERS):
        if part in names.split():
            return number
    raise AssertionError(f"{module} belongs to no layer: add it to LAYERS, or to what stands beside the library")


def test_the_reader_sees_all_forms_of_import() -> None:
    """The other tests are as good as this reader."""
    source = CORE / "_engine" / "engine.py"
    found = dict(imports(source))
    assert found["eventbus._engine.primitives"] is False
    assert found["eventbus._errors"] is False
    assert found["eventbus._engine.subscription"] is True  # under TYPE_CHECKING
    inner = dict(imports(CORE / "_values" / "handler.py"))
    assert inner["inspect"] is False  # within a function


@pytest.mark.parametrize("path", [path for path in library() if CORE in path.parents], ids=name_of)
def test_the_core_never_imports_asyncio_or_the_facade(path: Path) -> None:
    wrong = {module for module, _ in imports(path) if under(module, ("asyncio", "eventbus_async", "janus"))}
    assert not wrong


@pytest.mark.parametrize("path", [path for path in library() if CORE in path.parents], ids=name_of)
def test_imports_of_the_core_point_one_way(path: Path) -> None:
    mine = layer_of(module_of(path))
    wrong = {
        module
        for module, typing_only in imports(path)
        if under(module, ("eventbus",)) and not typing_only and layer_of(module) > mine
    }
    assert not wrong


@pytest.mark.parametrize("path", [path for path in library() if FACADE in path.parents], ids=name_of)
def test_the_facade_uses_the_two_doors_of_the_core_alone(path: Path) -> None:
    """``eventbus`` for what is public, ``eventbus.lowlevel`` for the rest; nothing with an underscore."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for module, _ in imports(path):
        if under(module, ("eventbus",)):
            assert module in ("eventbus", "eventbus.lowlevel")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and under(node.module or "", ("eventbus",)):
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert private in ([], ["__version__"])


@pytest.mark.parametrize("path", [path for path in library() if path != SEAM], ids=name_of)
def test_the_seam_alone_imports_threads_and_clocks(path: Path) -> None:
    """A deterministic scheduler can stand in for all of them by replacing one module's names."""
    wrong = {
        module
        for module, typing_only in imports(path)
        if not typing_only and under(module, ("threading", "_thread", "time", "queue", "sched", "concurrent"))
    }
    assert not wrong


@pytest.mark.parametrize("path", library(), ids=name_of)
def test_nothing_is_used_that_breaks_when_it_is_entered_again(path: Path) -> None:
    """G12: a signal handler or finalizer that enters one of these deadlocks, or leaves it in a broken state."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in MAKERS:
            assert node.attr not in UNSAFE, f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module in MAKERS:
            assert not UNSAFE & {alias.name for alias in node.names}, f"line {node.lineno}"


@pytest.mark.parametrize("path", [path for path in library() if path != SEAM], ids=name_of)
def test_locks_are_held_by_with_alone(path: Path) -> None:
    """An exception from a signal handler can come between ``acquire()`` and ``try``; ``with`` has no such gap."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr != "acquire", f"line {node.lineno}"


def test_there_is_a_library_to_look_at() -> None:
    names = {name_of(path) for path in library()}
    assert {"eventbus/_engine/primitives.py", "eventbus/_bus.py"} <= names
    assert len(names) > 20
