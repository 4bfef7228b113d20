"""Kernels are compiled ahead, in processes of their own."""

import sys

from cynosure.ground import cache
from cynosure.pipelines import compiling


def test_groups_that_were_compiled_are_left_alone(monkeypatch):
    done = {"psf"}
    asked = []

    def compile_apart(names, tell):
        for name in names:
            asked.append(name)
            tell()
        return True

    monkeypatch.setattr(compiling, "marked", lambda names: set(names) <= done)
    monkeypatch.setattr(compiling, "_compile_apart", compile_apart)
    told = []
    assert compiling.compile_kernels(
        ("psf", "sky", "fit"), workers=1, say=lambda *counts: told.append(counts)
    )
    assert asked == ["fit", "sky"]
    assert told == [(1, 2), (2, 2)]


def test_processes_get_shares_that_take_the_same_time(monkeypatch):
    monkeypatch.setattr(compiling, "SECONDS", {"a": 5, "b": 4, "c": 3, "d": 2})
    assert compiling._share_out(("d", "c", "b", "a"), 2) == [["a", "d"], ["b", "c"]]
    assert compiling._share_out(("a", "d"), 8) == [["a"], ["d"]]


def test_every_group_has_its_time():
    assert set(compiling.SECONDS) == set(compiling.GROUPS)


def test_a_process_tells_when_each_group_is_done(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import cynosure.pipelines.compiling as c\nc.compile_group = lambda name: None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told = []
    assert compiling._compile_apart(("sky", "fit"), lambda: told.append(1))
    assert len(told) == 2


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
