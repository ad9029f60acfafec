"""How Sphinx makes the site: `make docs`, then out/docs/index.html."""

import functools
import inspect

import lstm_jax

project = "lstm_jax"
release = version = lstm_jax.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]

# Links between pages are those of GitHub: a file, and the words of a heading.
myst_heading_anchors = 4

autodoc_default_options = {
    "members": True,
    "imported-members": True,
    # What is inherited belongs to a class, but not from these and those above them.
    "inherited-members": "tuple, BaseException, Module, object",
}
autodoc_member_order = "groupwise"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_custom_sections = ["Shapes"]
napoleon_numpy_docstring = False
napoleon_use_ivar = True
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "lstm_jax"
html_theme_options = {"navigation_with_keys": True}

_METHODS = (property, classmethod, staticmethod, functools.cached_property)


def _skip_fields(app, what, name, value, skip, options):
    """Leaves out fields, which the docstring of their class describes."""
    if what != "class" or isinstance(value, _METHODS):
        return None
    method = inspect.isroutine(value) and "." in getattr(value, "__qualname__", "")
    return None if method else True


def setup(app):
    """Tells Sphinx what is left out."""
    app.connect("autodoc-skip-member", _skip_fields)
