"""Free memory: what Linux calls available, and no more than control groups leave."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import pytest

from shuffle_jax.data import free_memory
from shuffle_jax.data.free_memory import GUESS, free_device_memory, free_host_memory
from shuffle_jax.sharding import data_mesh

MIB = 1 << 20


@pytest.fixture
def system(tmp_path):
    """A machine with 1,000 MiB available, and a function that writes its files."""

    def write(name: str, text: object) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    write("proc/meminfo", f"MemTotal:       9999999 kB\nMemFree:   1 kB\nMemAvailable:   {1000 * 1024} kB")
    write.free = lambda: free_host_memory(tmp_path / "proc", tmp_path / "cgroup") / MIB
    return write


def test_what_is_available_is_free(system):
    assert system.free() == 1000


def test_a_control_group_leaves_its_limit_less_what_it_uses_and_cannot_drop(system):
    system("proc/self/cgroup", "0::/user/job")
    system("cgroup/user/job/memory.max", 500 * MIB)
    system("cgroup/user/job/memory.current", 300 * MIB)
    system("cgroup/user/job/memory.stat", f"anon 7\ninactive_file {100 * MIB}")
    assert system.free() == 300
    system("cgroup/user/memory.max", "max")  # no limit
    system("cgroup/user/memory.current", 900 * MIB)
    assert system.free() == 300
    system("cgroup/user/memory.max", 1100 * MIB)  # the limit of one above counts too
    assert system.free() == 200
    system("cgroup/user/memory.current", 1200 * MIB)
    assert system.free() == 0


def test_in_a_container_the_limit_stands_at_the_root(system):
    system("proc/self/cgroup", "0::/../outside")
    system("cgroup/memory.max", 64 * MIB)
    system("cgroup/memory.current", 14 * MIB)
    assert system.free() == 50


def test_older_control_groups_are_read_too(system):
    system("proc/self/cgroup", "5:cpu,cpuacct:/job\n4:memory:/job\n1:name=systemd:/job")
    system("cgroup/memory/job/memory.limit_in_bytes", 500 * MIB)
    system("cgroup/memory/job/memory.usage_in_bytes", 400 * MIB)
    system("cgroup/memory/job/memory.stat", f"total_inactive_file {50 * MIB}")
    assert system.free() == 150


def test_a_system_that_says_nothing_has_half_of_its_pages_or_a_guess(tmp_path, monkeypatch):
    def free() -> int:
        return free_host_memory(tmp_path, tmp_path)

    monkeypatch.setattr(free_memory.os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert free() == 1000 * 4096 // 2
    monkeypatch.setattr(free_memory.os, "sysconf_names", {})
    assert free() == GUESS


def test_this_machine_has_memory():
    free = free_host_memory()
    assert MIB < free < 1 << 50
    # Two devices and what was read share it; other processes may have taken some meanwhile.
    assert free_device_memory(data_mesh(jax.devices()[:2])) == pytest.approx(free / 3, rel=0.5)


def test_an_accelerator_says_itself_what_is_free_and_the_fullest_counts():
    def mesh(*counts: dict[str, int] | None) -> SimpleNamespace:
        return SimpleNamespace(
            local_devices=[SimpleNamespace(platform="gpu", memory_stats=lambda c=count: c) for count in counts]
        )

    full, empty = {"bytes_limit": 100, "bytes_in_use": 70}, {"bytes_limit": 100, "bytes_in_use": 0}
    assert free_device_memory(mesh(empty, full)) == 30
    assert free_device_memory(mesh(None)) == free_device_memory(mesh({"num_allocs": 3})) == GUESS
