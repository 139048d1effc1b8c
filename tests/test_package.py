"""The frame around the code: import contracts, the cost of an import, versions, pins, README example."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest

import shuffle_jax
from shuffle_jax import deploy

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()
HEAVY = {"flax", "optax", "orbax", "chex", "matplotlib", "sklearn", "PIL", "tyro", "rich", "tensorboardX"}


def run_python(code: str) -> str:
    """Standard output of ``code`` in a fresh interpreter at the root of the repository."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_tests_run_under_strict_settings() -> None:
    assert jax.config.jax_numpy_dtype_promotion == "strict"
    assert jax.config.jax_numpy_rank_promotion == "raise"
    assert jax.default_backend() != "cpu" or jax.device_count() == 2


def test_import_contracts_hold() -> None:
    report = run_python("from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])")
    kept, broken = re.search(r"Contracts: (\d+) kept, (\d+) broken", report).groups()
    assert int(kept) > 0
    assert broken == "0"


def test_ops_cost_jax_and_nothing_more() -> None:
    loaded = run_python("import shuffle_jax.ops, sys; print(*{name.split('.')[0] for name in sys.modules})")
    assert "jax" in loaded.split()
    assert HEAVY.isdisjoint(loaded.split()), f"loaded: {sorted(HEAVY.intersection(loaded.split()))}"


def test_version_is_the_same_everywhere() -> None:
    citation = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation == [shuffle_jax.__version__]
    assert PROJECT["dynamic"] == ["version"]  # the build reads it from shuffle_jax/__init__.py
    assert "version" not in PROJECT


def test_constraints_pin_everything_and_name_no_index() -> None:
    assert CONSTRAINTS
    assert [line for line in CONSTRAINTS if not re.fullmatch(r"[a-z0-9-]+==\d[\w.]*( ; [^/]+)?", line)] == []


def test_constraints_cover_every_declared_dependency() -> None:
    declared = [*PROJECT["dependencies"]]
    for extra, requirements in PROJECT["optional-dependencies"].items():
        if extra not in ("bench", "prepare", "track"):  # each for one command or option, and not pinned
            declared += [r for r in requirements if not r.startswith("shuffle_jax[")]  # another extra
    names = {re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-") for requirement in declared}
    pinned = {line.partition("==")[0] for line in CONSTRAINTS}
    assert names <= pinned, f"not pinned: {sorted(names - pinned)}; run make constraints"


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = [
    pytest.param(example, id=f"{page.name}-{i}", marks=pytest.mark.slow if page.name != "README.md" or i else ())
    for page in PAGES
    for i, example in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_of_the_pages_run(example: str) -> None:
    assert "shuffle_jax" in example
    run_python(example)


def test_the_pages_show_how_to_use_the_library() -> None:
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "experiments" / "README.md"], ids=str)
def test_links_of_the_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if path.startswith("http"):
            continue
        target = page.parent / path if path else page
        if (ROOT / "docs" / "api") in target.parents:  # made by make docs
            continue
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, link


def test_the_page_of_names_is_what_the_packages_export() -> None:
    names = runpy.run_path(str(ROOT / "tools" / "write_names.py"))
    assert names["PAGE"].read_text() == names["page"](), "run python tools/write_names.py"


def test_deploy_gives_what_it_names_and_says_what_it_has_not() -> None:
    assert {name for name in deploy.__all__ if getattr(deploy, name).__name__ != name} == set()
    assert set(deploy.__all__) <= set(dir(deploy))
    with pytest.raises(AttributeError, match=r"module 'shuffle_jax.deploy' has no attribute 'soften'"):
        _ = deploy.soften


def test_the_readme_is_a_page() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 9216
