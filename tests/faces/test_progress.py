"""Progress: a line an image and a heartbeat where nobody watches, a bar on a terminal."""

import io
import time

import pytest

from cynosure.faces import progress
from cynosure.faces.progress import Pace, Progress, Steps
from cynosure.ground.errors import NoMatch
from cynosure.pipelines.tasks.done import Done, Planned


class Terminal(io.StringIO):
    def isatty(self):
        return True


def play(total=2, **options):
    with Progress(total, **options) as watch:
        watch.started("a.fits")
        watch.step("a.fits", "match")
        watch.finished(Done("a.fits", None, None, 1.25))
        watch.started("b.fits")
        watch.finished(Done("b.fits", None, NoMatch(image="b.fits"), 0.5))


def test_a_line_an_image(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    play()
    assert stream.getvalue().splitlines() == [
        "[1/2] a.fits: done in 1.2 s", "[2/2] b.fits: failed (10) in 0.5 s",
    ]


def test_one_image_alone_needs_no_line(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    play(1)
    play(2, quiet=True)
    assert stream.getvalue() == ""


def test_the_time_left_is_the_rest_of_each_kind_at_its_own_rate():
    tasks = [Planned(f"crop:{k}", "crop", 1.0 + k) for k in range(3)]
    tasks += [Planned("coadd", "coadd", 10.0), Planned("match", "match", 1.0)]
    pace = Pace(tasks, 1)
    assert pace.left_s([]) is None
    pace.ended("crop:0", 4.0)
    assert pace.left_s([]) == pytest.approx((2 + 3 + 10 + 1) * 4.0)
    pace.ended("coadd", 2.0)  # 0.2 s a weight; the match goes at (4 + 2) / (1 + 10)
    assert pace.left_s([]) == pytest.approx((2 + 3) * 4.0 + 6 / 11)
    assert pace.left_s([3.0]) == pytest.approx((2 + 3) * 4.0 + 6 / 11 - 3.0)
    pace.ended("crop:2", 0.0, ran=False)
    assert pace.left_s([]) == pytest.approx(2 * 4.0 + 6 / 11), "a failure tells no rate"
    pace.ended("crop:1", 8.0)
    pace.ended("match", 1.0)
    pace.ended("match", 1.0)
    assert pace.left_s([]) == 0.0
    half = Pace(tasks, 2)
    half.ended("crop:0", 4.0)
    assert half.left_s([]) == pytest.approx((2 + 3 + 10 + 1) * 4.0 / 2)


def test_a_long_time_left_is_told(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with Progress(9) as watch:
        watch.planned([Planned(f"{k}.fits", "image") for k in range(3)], 1)
        watch.started("0.fits")
        watch.finished(Done("0.fits", None, None, 100.0))
        watch.started("1.fits")
        watch.finished(Done("1.fits", None, None, 2.0))
    assert stream.getvalue().splitlines() == [
        "[1/3] 0.fits: done in 100.0 s, about 3 min left",
        "[2/3] 1.fits: done in 2.0 s, about 51 s left",
    ]


def test_a_long_step_is_told(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "HEARTBEAT_S", 0.05)
    with Progress(1) as watch:
        watch.started("a.fits")
        watch.step("a.fits", "measure")
        time.sleep(0.3)
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 2
    assert set(lines) == {"a.fits: measure (0 s)"}


def test_a_bar_on_a_terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    play()
    text = stream.getvalue()
    assert "images" in text
    assert "[1/2]" not in text


def test_steps(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with Steps() as steps:
        steps(1, 9, "partitions")
    assert stream.getvalue() == "", "quick work is not talked about"
    monkeypatch.setattr(progress, "HEARTBEAT_S", 0.0)
    with Steps() as steps:
        steps(3, 9, "partitions")
    with Steps(quiet=True) as steps:
        steps(4, 9, "partitions")
    assert stream.getvalue() == "partitions 3/9\n"
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Steps() as steps:
        time.sleep(0.12)
        steps(5, 9, "partitions")
    assert "partitions 5/9" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
