"""Checks what functions and modules take and give against their annotations, axis by axis, wherever a test calls them.

The test run installs it before anything is imported (conftest.py). A call is checked when it has returned, so that a
mistake is refused in the library's own words; the letters of its shapes mean the same throughout one call.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

PACKAGES = ("shuffle_jax.ops.", "shuffle_jax.nn.", "shuffle_jax.models.")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with an AssertionError where an array is not of the shape or kind that is written down."""
    from beartype.door import is_bearable
    from jaxtyping import jaxtyped

    place, signature = f"{function.__module__}.{function.__qualname__}", inspect.signature(function)
    variadic = {p.name for p in signature.parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    @functools.cache
    def hints() -> dict[str, Any]:
        return {
            name: hint
            for name, hint in typing.get_type_hints(function).items()
            if "jaxtyping." in repr(hint) and name not in variadic
        }

    def symbolic(value: Any, hint: Any) -> bool:
        # jaxtyping broadcasts numbers alone, and no axis of any length.
        return "*#" in repr(hint) and any(not isinstance(size, int) for size in getattr(value, "shape", ()))

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        values = {**signature.bind(*args, **kwargs).arguments, "return": result}
        with jaxtyped("context"):
            for name, hint in hints().items():
                fits = name not in values or symbolic(values[name], hint) or is_bearable(values[name], hint)
                assert fits, f"{place}: {name} is annotated as {hint}, and is {values[name]!r}"
        return result

    # With the function's own globals, by which doctest knows where it belongs.
    made = types.FunctionType(wrapper.__code__, function.__globals__, function.__name__, None, wrapper.__closure__)
    return functools.update_wrapper(made, function)


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: types.ModuleType) -> None:
        super().exec_module(module)
        for name, member in list(vars(module).items()):
            if getattr(member, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(member) and not inspect.isgeneratorfunction(inspect.unwrap(member)):
                setattr(module, name, checked(member))
            elif inspect.isclass(member) and inspect.isfunction(call := vars(member).get("__call__")):
                member.__call__ = checked(call)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(PACKAGES):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """From here on modules of :data:`PACKAGES` are checked as they are imported.

    NumPy's arrays stand for JAX's, and so do the shapes of arrays that are not made.
    """
    import jax
    import jaxtyping
    import numpy as np

    jaxtyping.Array = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
    sys.meta_path.insert(0, _Finder())
