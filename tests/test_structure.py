"""The house is as docs/architecture.md draws it: who imports whom, what is how long."""

import ast
import dataclasses
import functools
import pathlib
import re

import pytest

import lstm_jax as lj

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "lstm_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted(
    path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".cc", ".h", ".def")
)
PUBLIC_MODULES = (
    "lstm_jax",
    *(
        f"lstm_jax.{name}"
        for name in (
            *("activations", "convert", "data", "decoding", "distributed", "exporting"),
            *("initializers", "linen", "nnx", "serving", "sharding", "training"),
        )
    ),
)
LONGEST_FILE = 400
LONGEST_FUNCTION = 40


def rooms():
    """For each room its row in the table of rooms, from above."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = text.partition("| room | job |\n|---|---|\n")[2].partition("\n\n")[0]
    return {
        name.rstrip("/").removesuffix(".py"): row
        for row, line in enumerate(table.splitlines())
        for name in re.findall(r"`([\w/.]+)`", line.split("|")[1])
    }


ROOMS = rooms()


def name_of(path):
    """The dotted name of a module, that of a package for its ``__init__.py``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in MODULES}


def room_of(name):
    """The room of a module; None for the package itself."""
    return name.split(".")[1] if "." in name else None


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path):
    """What a module imports, wherever it does: whole names, with lines."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports relative to itself"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in NAMES else node.module), node.lineno


def imported_here(path):
    """The modules of this package that a module imports."""
    return [(name, line) for name, line in imported(path) if name in NAMES]


def test_the_map_shows_every_room():
    there = {room_of(name) for name in NAMES} - {None}
    assert set(ROOMS) == there


def test_a_room_imports_from_rooms_above():
    against = [
        f"{path.relative_to(ROOT)}:{line} imports {other}"
        for name, path in NAMES.items()
        for other, line in imported_here(path)
        if not may_import(room_of(name), room_of(other))
    ]
    assert not against, "\n".join(against)


def may_import(room, other):
    """The package itself imports anything; nothing imports the package itself."""
    if room is None or other is None:
        return room is None
    return room == other or ROOMS[other] < ROOMS[room]


def test_no_module_imports_itself_over_others():
    open_, done = [], set()

    def visit(name):
        assert name not in open_, " -> ".join((*open_[open_.index(name) :], name))
        if name in done:
            return
        open_.append(name)
        for other, _ in imported_here(NAMES[name]):
            visit(other)
        done.add(open_.pop())

    for name in NAMES:
        visit(name)


def test_data_needs_checks_alone():
    used = {
        room_of(other)
        for name, path in NAMES.items()
        if room_of(name) == "data"
        for other, _ in imported_here(path)
    }
    assert used == {"data", "checks"}


def test_one_module_imports_chex():
    users = [
        name
        for name, path in NAMES.items()
        if any(other.split(".")[0] == "chex" for other, _ in imported(path))
    ]
    assert users == ["lstm_jax.checks.arrays"]


@pytest.mark.parametrize("folder", ["examples", "benchmarks"])
def test_programs_use_public_names(folder):
    paths = sorted((ROOT / folder).rglob("*.py"))
    private = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in paths
        for name, line in imported(path)
        if name.split(".")[0] == "lstm_jax" and name not in PUBLIC_MODULES
    ]
    assert paths and not private, "\n".join(private)


def test_no_file_is_long():
    long = []
    for path in SOURCES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE:
            long.append(f"{path.relative_to(ROOT)} has {lines} lines")
    assert not long, "\n".join(long)


def test_no_function_is_long():
    long = []
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.FunctionDef):
                continue
            body = node.body[ast.get_docstring(node) is not None :]
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            if lines > LONGEST_FUNCTION:
                long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert not long, "\n".join(long)


def test_a_stack_has_every_option_of_its_cells():
    """The two lists of options, and of rates, agree in names and defaults."""
    of_stacks = {field.name: field for field in dataclasses.fields(lj.LSTM)}
    for cell in (lj.LSTMCell, lj.Regularized):
        for field in dataclasses.fields(cell):
            if field.name != "cell":
                assert of_stacks[field.name].default == field.default, field.name
