"""What the contract suite runs under, and which part of it."""

import collections
import contextlib
import functools

import jax
import pytest

from lstm_jax.recurrence import choice
from tests.contract import cases


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Leaves out what is not asked for; a test that is named is run."""
    how = config.getoption("--contract")
    if how == "all":
        return
    checks = collections.defaultdict(dict)
    for item in items:
        if subject := subject_of(item):
            given = item.callspec.id.replace(str(subject), "*")
            checks[item.function][subject, given] = item
    left_out = set()
    for check, examined in checks.items():
        parts = cases.in_pairs if how == "pairs" else cases.singly
        has = functools.partial(parts, every_cell=check.every_cell)
        chosen = cases.cover(check.__name__, list(examined), has)
        left_out |= {
            item for example, item in examined.items() if example not in chosen
        }
    config.hook.pytest_deselected(items=sorted(left_out, key=lambda i: i.nodeid))
    items[:] = [item for item in items if item not in left_out]


def subject_of(item):
    """The subject that a test examines; None where it is no check of the contract."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("subject")


@pytest.fixture(autouse=True)
def examined(request, monkeypatch):
    """64-bit types and the implementations of tests, for subjects that need them."""
    subject = subject_of(request.node)
    name = None if subject is None else subject.implementation
    if extra := [one for one in cases.EXTRA if one.name == name]:
        monkeypatch.setattr(
            choice, "IMPLEMENTATIONS", (*extra, *choice.IMPLEMENTATIONS)
        )
    wide = subject is not None and subject.dtype == "float64"
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        yield
