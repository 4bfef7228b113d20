"""Functions of tasks that tests run, where workers can import them."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from cynosure.ground.errors import NoMatch
from cynosure.ground.files import atomic_path, write_text
from cynosure.pipelines.tasks.content import digest
from cynosure.pipelines.tasks.graph import Graph
from cynosure.solutions.solution import Solution


def median(frames):
    return np.median(np.stack(frames), axis=0).astype(np.float32)


def flatten(frames, bias, log):
    """Return a flat and its error, as two outputs."""
    log("flat")
    flat = median(frames) - bias
    flat /= flat.mean()
    return {"flat": flat, "error": np.full_like(flat, 0.01)}


def calibrate(raw, bias, flat, gain):
    return (raw - bias) / flat * np.float32(gain)


def write_sum(frames, out):
    with atomic_path(out, overwrite=True) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.sum(np.stack(frames), axis=0))
    return len(frames)


def night(folder, shape=(300, 200)):
    """Calibrate three frames by bias and flat and add them: arrays pass between the steps."""
    rng = np.random.default_rng(7)
    biases, flats, raws = (
        [rng.normal(level, 3.0, shape).astype(np.float32) for _ in range(3)]
        for level in (100.0, 20000.0, 700.0)
    )
    graph = Graph()
    bias = graph.add("bias", median, inputs={"frames": biases}, memory_bytes=10**6)
    flat = graph.add("flat", flatten, inputs={"frames": flats, "bias": bias},
                     outputs=("flat", "error"), memory_bytes=10**6)
    frames = [
        graph.add(f"calibrate:{k}", calibrate,
                  inputs={"raw": raw, "bias": bias, "flat": flat["flat"]}, settings={"gain": 1.5})
        for k, raw in enumerate(raws)
    ]
    total = graph.add("sum", write_sum, inputs={"frames": frames}, files={"out": folder / "s.npy"})
    graph.add("scatter", np.std, inputs={"a": frames[0]})
    graph.add("error", np.mean, inputs={"a": flat["error"]})
    return graph, total


def expected_sum(shape=(300, 200)):
    """Return what the night gives, without any graph."""
    rng = np.random.default_rng(7)
    biases, flats, raws = (
        [rng.normal(level, 3.0, shape).astype(np.float32) for _ in range(3)]
        for level in (100.0, 20000.0, 700.0)
    )
    bias = median(biases)
    flat = flatten(flats, bias, len)["flat"]
    return np.sum(np.stack([calibrate(raw, bias, flat, 1.5) for raw in raws]), axis=0)


def act(kind, value=None, log=len):
    """Do what the words say."""
    log(f"doing {kind}")
    if kind == "sleep":
        time.sleep(value)
    if kind == "error":
        raise NoMatch(image="a.fits", n_sources=value, n_reference=2)
    if kind == "bug":
        return 1 / value
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return value, os.getpid()


def die_once(mark):
    """Kill the process that runs this, the first time."""
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "lived"


def double(array):
    return 2.0 * array


def spoil(array):
    array[0] = 1e9


def ones(n):
    return np.ones(n)


def hold(array, mark):
    """Hold a shared array until the mark is gone."""
    Path(mark).touch()
    while Path(mark).exists():
        time.sleep(0.02)
    return array.sum()


def solve_text(folder, payload, log):
    """Play the solve door: an image whose text is 'bad' does not match."""
    image, overwrite = payload
    text = Path(image).read_text()
    if text == "bad":
        raise NoMatch(image=image, n_sources=3, n_reference=4)
    name = f"{Path(image).stem}_wcs.fits"
    write_text(folder / name, text, overwrite=overwrite)
    return Solution(image, digest(text), status="solved", quality=1, files=(name,))


def copy_text(source, target, suffix=""):
    write_text(target, Path(source).read_text() + suffix, overwrite=True)


def first_letter(source, target):
    write_text(target, Path(source).read_text()[0], overwrite=True)


def shout(target, source):
    """Change a file itself."""
    write_text(target, Path(source).read_text() + "!", overwrite=True)
