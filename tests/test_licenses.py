"""THIRD_PARTY.md lists what constraints.txt pins, each once, with a licence."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| ([\w-]+) \| (.+) \| <https?://[^ >]+> \|$", (ROOT / "THIRD_PARTY.md").read_text(), re.MULTILINE)
PINNED = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}

SIMPLE = r"(0BSD|(AFL|Apache|BSD|CC0|GPL|ISC|LGPL|LicenseRef|MIT|MPL|PSF|Unlicense|Zlib|HPND|CNRI|Python)(-[\w.-]+)?)"


def test_every_pinned_package_is_listed_once() -> None:
    names = [name for name, _ in ROWS]
    assert len(names) == len(set(names))
    assert set(names) == PINNED, f"{sorted(set(names) ^ PINNED)}: run make licenses"


def test_every_license_is_an_spdx_expression() -> None:
    expression = re.compile(rf"{SIMPLE}( (AND|OR|WITH) {SIMPLE})*")
    assert [row for row in ROWS if not expression.fullmatch(row[1]) or row[1] == "BSD"] == []  # BSD: which of them?


def test_nothing_that_is_always_installed_forbids_use_or_asks_for_our_source() -> None:
    always = (ROOT / "THIRD_PARTY.md").read_text().partition("## With the extra")[0]
    assert "| jax |" in always
    assert not re.search(r"GPL|Proprietary|MPL", always)


def test_torch_is_named_although_it_is_not_pinned() -> None:
    assert "torch" not in PINNED
    assert "`torch` (BSD-3-Clause" in (ROOT / "THIRD_PARTY.md").read_text()
