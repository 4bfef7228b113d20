"""Progress: a line an image and a heartbeat where nobody watches, a bar on a terminal."""

import io
import time

from cynosure.faces import progress
from cynosure.faces.progress import Progress, Steps
from cynosure.ground.errors import NoMatch
from cynosure.pipelines.tasks.outcome import Done


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
