"""Writes THIRD_PARTY.md, the licences of everything that pip installs: `make licenses`.

The names are those of constraints.txt, the licences and pages what the packages say about themselves to pip. Nothing is
installed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "THIRD_PARTY.md"

SPDX = {
    # what packages write: the identifier
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
    "python software foundation license": "PSF-2.0",
}

READ = {
    # These say "BSD", or a text without a name: the clauses were counted in their licence files.
    "alabaster": "BSD-3-Clause",
    "colorama": "BSD-3-Clause",
    "cycler": "BSD-3-Clause",
    "docutils": "LicenseRef-Public-Domain AND BSD-2-Clause AND PSF-2.0 AND GPL-3.0-or-later",  # as it says of its parts
    "ipython-pygments-lexers": "BSD-3-Clause",
    "jinja2": "BSD-3-Clause",
    "kiwisolver": "BSD-3-Clause",
    "nest-asyncio": "BSD-2-Clause",
    "nest-asyncio2": "BSD-2-Clause",
    "nodeenv": "BSD-3-Clause",
    "prompt-toolkit": "BSD-3-Clause",
    "scipy": "BSD-3-Clause",
    "sphinxcontrib-applehelp": "BSD-2-Clause",
    "sphinxcontrib-devhelp": "BSD-2-Clause",
    "sphinxcontrib-htmlhelp": "BSD-2-Clause",
    "sphinxcontrib-qthelp": "BSD-2-Clause",
    "sphinxcontrib-serializinghtml": "BSD-2-Clause",
    "sphinxcontrib-jsmath": "BSD-2-Clause",
    "uvloop": "MIT OR Apache-2.0",
}

PAGES = {
    # These name none.
    "opt-einsum": "https://github.com/dgasmith/opt_einsum",
    "simple-parsing": "https://github.com/lebrice/SimpleParsing",
    "tensorflow-metadata": "https://github.com/tensorflow/metadata",
}

EXPRESSION = re.compile(r"[A-Za-z]+(-[\w.-]+)?( (AND|OR) [A-Za-z]+(-[\w.-]+)?)*")

HEAD = """# Third-party packages

What pip installs for shuffle_jax on any platform, with its licence as an [SPDX](https://spdx.org/licenses) expression
and its page. None of it is part of this repository. `make licenses` writes this file from constraints.txt and what the
packages say of themselves; a package may contain parts under further licences, which it lists itself.
"""

TITLES = {
    "": "Always: what the library and the commands need",
    "cuda": "With the extra `cuda`, besides",
    "tfds": "With the extra `tfds`, besides",
    "dev": "With the extra `dev`, besides: to develop and test",
    "docs": "With the extra `docs`, besides: to build the pages",
}

TAIL = """
## With the extra `prepare`, besides

`tensorflow` (Apache-2.0, <https://www.tensorflow.org>) and what it installs. Only `experiments.prepare` asks for
it, and only for some data sets; constraints.txt does not pin it.

## With the extra `bench`, besides

`torch` (BSD-3-Clause, <https://pytorch.org>), `onnxruntime` (MIT, <https://onnxruntime.ai>), `onnx` (Apache-2.0,
<https://onnx.ai>), `onnxscript` (MIT, <https://microsoft.github.io/onnxscript>) and what they install: on Linux
NVIDIA's CUDA libraries under a proprietary licence. Only `make bench` and `make gpu` ask for them; constraints.txt does
not pin them.
"""


def main() -> None:
    """Asks pip and writes the file."""
    packages = metadata(pinned((ROOT / "constraints.txt").read_text()))
    OUTPUT.write_text(page(packages, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]))


def pinned(constraints: str) -> list[str]:
    """One ``name==version`` for each package of any platform, this Python's where versions differ between Pythons."""
    chosen: dict[str, str] = {}
    for line in constraints.splitlines():
        pin, _, marker = line.partition(" ; ")
        name = pin.partition("==")[0]
        if name not in chosen or not marker or Marker(marker).evaluate():
            chosen[name] = pin
    return list(chosen.values())


def metadata(requirements: list[str]) -> dict[str, dict[str, Any]]:
    """What pip knows of packages, by canonical name; it installs nothing."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed"]
    done = subprocess.run([*command, "--report", "-", *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found = [item["metadata"] for item in json.loads(done.stdout)["install"]]
    return {canonicalize_name(item["name"]): item for item in found}


def page(packages: dict[str, dict[str, Any]], project: dict[str, Any]) -> str:
    """The file: a table of what is always needed, and one for each extra of what it adds."""
    extras = project["optional-dependencies"]
    seen: set[str] = set()
    text = HEAD
    for extra, title in TITLES.items():
        declared = extras[extra] if extra else project["dependencies"]
        names = sorted(closure(declared, packages) - seen)
        seen.update(names)
        text += f"\n## {title}\n\n| package | licence | page |\n|---|---|---|\n"
        for name in names:
            text += f"| {name} | {license_of(name, packages[name])} | {link(name, packages[name])} |\n"
    if left := sorted(set(packages) - seen):
        sys.exit(f"nothing that pyproject.toml declares needs {', '.join(left)}: run make constraints")
    return text + TAIL


def closure(declared: Iterable[str], packages: dict[str, dict[str, Any]]) -> set[str]:
    """The names of declared packages and of all that they need, on any platform."""
    found: set[str] = set()
    asked: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in declared]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name not in packages:  # needed on no supported platform or Python
            continue
        found.add(name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in asked:
                continue
            asked.add((name, extra))
            for text in packages[name].get("requires_dist", []):
                needed = Requirement(text)
                of_extra = needed.marker is not None and "extra" in str(needed.marker)
                if of_extra == bool(extra) and (not extra or names_extra(needed, extra)):
                    waiting.append(needed)
    return found


def names_extra(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement belongs to this extra, on any platform."""
    extras = re.findall(r"extra == ['\"]([^'\"]+)", str(requirement.marker))
    return canonicalize_name(extra) in map(canonicalize_name, extras)


def license_of(name: str, about: dict[str, Any]) -> str:
    """The SPDX expression of a package's licence."""
    if name in READ:
        return READ[name]
    if about.get("license_expression"):
        return about["license_expression"]
    classifiers = [c.rpartition(" :: ")[2] for c in about.get("classifier", []) if c.startswith("License :: ")]
    for said in [(about.get("license") or "").strip().partition("\n")[0].strip(), *classifiers]:
        if said.lower() in SPDX:
            return SPDX[said.lower()]
        if said not in ("BSD", "UNKNOWN") and EXPRESSION.fullmatch(said):
            return said
    sys.exit(f"{name} does not name its licence: read it, and add it to READ in {Path(__file__).name}")


def link(name: str, about: dict[str, Any]) -> str:
    """The page of a package: its home page or repository."""
    pages = dict(entry.split(", ", 1) for entry in about.get("project_url", []))
    known = {label.lower().replace("-", "").replace(" ", ""): url for label, url in pages.items()}
    labels = ("homepage", "home", "source", "repository", "sourcecode", "github", "code")
    found = (
        next((known[label] for label in labels if label in known), None) or about.get("home_page") or PAGES.get(name)
    )
    if not found:
        sys.exit(f"{name} names no page: find it, and add it to PAGES in {Path(__file__).name}")
    return f"<{found.partition('/tree/')[0]}>"


if __name__ == "__main__":
    main()
