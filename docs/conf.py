"""How `make docs` builds these pages, and the API reference from the docstrings."""

from __future__ import annotations

from typing import Any

import jax
from sphinx.application import Sphinx
from sphinx.ext.autodoc import FunctionDocumenter

project = "shuffle_jax"
author = "The shuffle_jax authors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.apidoc",
    "sphinx.ext.napoleon",
]
apidoc_modules = [
    {
        "path": "../shuffle_jax",
        "destination": "api",
        "separate_modules": True,
        "module_first": True,
        "automodule_options": {"members", "show-inheritance", "ignore-module-all"},
    }
]
myst_heading_anchors = 4
html_theme = "furo"
exclude_patterns = ["_build", "api/modules.rst"]

autodoc_use_legacy_class_based = True  # the form that takes a documenter of one's own
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

nitpicky = True  # a role that leads nowhere is an error; what other libraries own is not looked for
nitpick_ignore_regex = [(r"py:.*", r"(?!shuffle_jax).*"), (r"py:.*", r".*\._\w+")]


class TransformedFunctionDocumenter(FunctionDocumenter):
    """Functions with a derivative of their own, or compiled: Sphinx takes them for data and leaves them out."""

    objtype = "transformed"
    directivetype = "function"
    priority = FunctionDocumenter.priority + 10

    @classmethod
    def can_document_member(cls, member: Any, membername: str, isattr: bool, parent: Any) -> bool:
        """Whether it is one."""
        return isinstance(member, jax.custom_vjp | jax.custom_jvp | type(jax.jit(abs)))


def skip_member(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out fields of a NamedTuple, which its docstring describes, and what a module imports from another."""
    home, here = getattr(member, "__module__", None), app.env.temp_data.get("autodoc:module")
    imported = what == "module" and isinstance(home, str) and home.startswith("shuffle_jax") and home != here
    field = (getattr(member, "__doc__", None) or "").startswith("Alias for field number")
    return True if imported or field else None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", skip_member)
    app.add_autodocumenter(TransformedFunctionDocumenter)
