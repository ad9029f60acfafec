"""Every program of README.md and docs/ runs, and says of its values what is so."""

import jax
import pytest

from tests import documentation


@pytest.fixture(autouse=True)
def as_a_reader_has_it():
    """JAX's own promotion: Optax's Adam does not run under the strict one."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("page", documentation.PAGES)
def test_the_programs_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documentation.run(page)


@pytest.mark.parametrize("page", documentation.PAGES)
def test_links_lead_somewhere(page):
    assert not documentation.broken_links(page)


def test_a_value_that_is_not_so_is_found(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\nx + 1  # 2\n# 4\nx  # one\nx + 2  # 4\n```\n")
    monkeypatch.setitem(documentation.PAGES, "page.md", page)
    with pytest.raises(AssertionError, match="page.md:6: 3 is not 4"):
        documentation.run("page.md")
