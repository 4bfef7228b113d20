"""Kernels are compiled ahead, in processes of their own."""

import sys

from cynosure.ground import cache
from cynosure.pipelines import compiling


def test_groups_that_were_compiled_are_left_alone(monkeypatch):
    done = {"psf"}
    asked = []
    monkeypatch.setattr(compiling, "marked", lambda names: set(names) <= done)
    monkeypatch.setattr(compiling, "_compile_apart", lambda name: asked.append(name) or True)
    told = []
    assert compiling.compile_kernels(
        ("psf", "sky", "fit"), workers=1, say=lambda *counts: told.append(counts)
    )
    assert asked == ["sky", "fit"]
    assert told == [(1, 2), (2, 2)]


def test_a_process_that_fails_is_told(monkeypatch):
    monkeypatch.setattr(compiling, "marked", lambda names: False)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert not compiling.compile_kernels(("sky",), workers=1)


def test_a_group_compiles_what_a_solve_needs_and_is_marked(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    cache.folder.cache_clear()
    cache._readable.cache_clear()
    monkeypatch.setitem(compiling.GROUPS, "sky", lambda: None)
    compiling.compile_group("sky")
    assert cache.marked(["sky"])
    cache.folder.cache_clear()
    cache._readable.cache_clear()
