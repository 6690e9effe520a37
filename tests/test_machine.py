"""The cores of a machine, also where the system does not tell them."""

import os

import machine


def test_cores_are_counted_with_and_without_affinity(monkeypatch):
    assert 1 <= machine.usable_cores() <= os.cpu_count()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert machine.usable_cores() == os.cpu_count()
