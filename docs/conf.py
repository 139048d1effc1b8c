"""How `make docs` builds these pages, and the API reference from the docstrings."""

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
        "automodule_options": {"members", "show-inheritance"},
    }
]
myst_heading_anchors = 4
html_theme = "furo"
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

nitpicky = True  # a role that leads nowhere is an error; what other libraries own is not looked for
nitpick_ignore_regex = [(r"py:.*", r"(?!shuffle_jax).*")]
