"""Compiled kernels are kept by what they were made from, and somewhere in any case."""

import gc
import importlib
import os
import sys
from collections import namedtuple

import numpy as np
import pytest

from cynosure.ground import cache
from cynosure.ground.cache import compiled

CALLEE = """
from cynosure.ground.cache import compiled
STEP = {step}
@compiled
def far(x):
    '''{doc}'''
    return x + STEP
"""
CALLER = """
from cynosure.ground.cache import compiled
from callee import far
@compiled
def between(x):
    return far(x)
@compiled
def near(x):
    return between(x)
"""


@pytest.fixture
def place(monkeypatch, tmp_path):
    """Keep compiled code of this test in a folder of its own."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    forget()
    yield tmp_path / "cynosure"
    forget()


def forget():
    cache.folder.cache_clear()
    cache._readable.cache_clear()


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """Write two modules, the one calling the other, and import them anew."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(step, doc=""):
        (tmp_path / "callee.py").write_text(CALLEE.format(step=step, doc=doc))
        (tmp_path / "caller.py").write_text(CALLER)
        importlib.invalidate_caches()
        for name in ("callee", "caller"):
            sys.modules.pop(name, None)
        return importlib.import_module("caller").near

    yield make
    for name in ("callee", "caller"):
        sys.modules.pop(name, None)


def test_a_change_in_another_module_changes_the_content(modules):
    first = cache.content(modules(1))
    assert cache.content(modules(1)) == first
    assert cache.content(modules(1, "with a docstring")) == first
    assert cache.content(modules(2)) != first


def test_code_of_a_changed_callee_is_never_loaded(modules, place):
    near = modules(1)
    assert near(1) == 2
    again = modules(1)
    assert again(1) == 2
    assert sum(again.stats.cache_hits.values()) == 1
    assert modules(2)(1) == 3


def test_options_have_a_part_in_the_content():
    def half(x):
        return x / 2.0

    assert cache.content(compiled(half)) != cache.content(compiled(half, fastmath=True))


def test_fields_of_a_tuple_have_a_part_in_its_type():
    import numba

    first = namedtuple("first", "a b")
    other = namedtuple("first", "b a")
    names = {cache._spell_type(numba.typeof(kind(1.0, 2.0))) for kind in (first, other)}
    assert len(names) == 2


def test_what_has_no_content_is_refused():
    thing = object()

    @compiled
    def bad(x):
        return x + 1 if thing is None else x

    with pytest.raises(TypeError, match="content is not known"):
        cache.content(bad)


def test_every_kernel_has_a_content():
    import cynosure.geometry.match.blind
    import cynosure.pixels.measure
    import cynosure.products.detector  # noqa: F401

    kernels = [k for k in gc.get_objects() if type(k) is cache._dispatcher_class()]
    kernels = [k for k in kernels if k.__module__.startswith("cynosure.")]
    assert len(kernels) > 50
    assert len({cache.content(k) for k in kernels}) == len(kernels)


def test_all_kernels_are_kept_by_their_content():
    """No module of the package uses a decorator of numba itself."""
    for path in cache.PACKAGE.rglob("*.py"):
        if path.name != "cache.py":
            assert "import njit" not in path.read_text(encoding="utf-8"), path


def test_literal_arguments_ask_for_no_code_of_their_own(place):
    @compiled
    def inner(x, flag):
        return x + 1.0 if flag else x

    @compiled
    def outer(x):
        return inner(inner(x, True), False) + inner(x, x > 0.0)

    assert outer(1.0) == 4.0
    assert len(inner._inner.signatures) == 1


def test_a_kernel_works_in_others_and_by_itself(place):
    @compiled
    def low(x, out):
        if x.size == 0:
            raise ValueError("nothing to sum")
        part = np.zeros(x.size)
        for i in range(x.size):
            part[i] = 2.0 * x[i]
        out[0] = np.sum(part)

    @compiled
    def middle(x, out):
        low(x, out)
        return out[0]

    @compiled
    def high(x):
        return middle(x, np.empty(1)) + 1.0

    assert high(np.ones(3)) == 7.0
    assert [p.name.split("-")[0].split(".")[-1] for p in place.glob("*.kernel")] == ["high"]
    for empty in (lambda: high(np.ones(0)), lambda: low(np.ones(0), np.empty(1))):
        with pytest.raises(ValueError, match="nothing to sum"):
            empty()
    out = np.empty(1)
    low(np.ones(2), out)
    assert out[0] == 4.0
    assert middle(np.ones(4), out) == 8.0


def test_a_damaged_file_is_not_loaded(modules, place):
    assert modules(1)(1) == 2
    for path in place.glob("*.kernel"):
        path.write_bytes(path.read_bytes()[:-5])
    near = modules(1)
    assert near(1) == 2
    assert not near.stats.cache_hits


def test_a_disk_that_cannot_be_written_is_no_error(modules, place, monkeypatch):
    near = modules(1)
    cache.folder()
    place.rmdir()
    place.touch()
    assert near(1) == 2


def blocked(monkeypatch, tmp_path):
    """Leave no folder of the package or of the user that can be made."""
    file = tmp_path / "file"
    file.touch()
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(file / "home"))
    monkeypatch.setattr(cache, "PACKAGE", file)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    forget()


def test_the_folder_is_the_first_that_can_be_written_to(monkeypatch, tmp_path):
    blocked(monkeypatch, tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache.folder() == tmp_path / "x" / "cynosure" / "kernels"
    assert "temporary" not in cache.describe()
    forget()
    monkeypatch.setattr(cache, "PACKAGE", tmp_path)
    assert cache.folder() == tmp_path / "__pycache__" / "kernels"
    forget()


def test_without_a_home_the_folder_is_temporary_and_said_so(modules, monkeypatch, tmp_path):
    blocked(monkeypatch, tmp_path)
    assert cache.folder().parent == tmp_path
    assert "(temporary:" in cache.describe()
    assert modules(1)(1) == 2
    assert list(cache.folder().glob("*.kernel"))
    forget()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners of files")
def test_a_temporary_folder_that_others_can_write_to_is_not_used(monkeypatch, tmp_path):
    blocked(monkeypatch, tmp_path)
    bad = tmp_path / f"cynosure-kernels-{os.getuid()}"
    bad.mkdir()
    bad.chmod(0o777)
    assert cache.folder() != bad
    forget()


def test_a_group_is_marked_for_the_files_as_they_are(place, monkeypatch):
    assert not cache.marked(["some"])
    cache.mark("some")
    assert cache.marked(["some"])
    assert not cache.marked(["some", "other"])
    monkeypatch.setattr(cache, "_state", lambda: "another")
    assert not cache.marked(["some"])


def test_division_by_zero_is_that_of_numpy(place):
    @compiled
    def ratio(a, b):
        return a / b

    assert ratio(1.0, 0.0) == np.inf
