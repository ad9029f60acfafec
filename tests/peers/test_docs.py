"""The programs of README.md and docs/ that need PyTorch or Keras run too."""

import pytest

from tests import documentation

PAGES = [
    page
    for page in documentation.PAGES
    if any(documentation.needs_peers(code) for _, code in documentation.blocks(page))
]


@pytest.mark.parametrize("page", PAGES)
def test_the_programs_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documentation.run(page, with_peers=True)


def test_there_are_such_programs():
    assert PAGES
