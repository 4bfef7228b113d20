"""Star fields of known truth for the tests of the pixel floor, made without the project's own code.

A profile gives, for offsets of pixel centres from a star, the fraction of the star's light in each
pixel: the integral over the pixel, by error functions or by sub-pixels.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.special import erf

from cynosure.data.frame import Frame

FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))


def gauss(fwhm):
    """Return a round Gaussian, integrated over pixels."""
    s = fwhm * FWHM_TO_SIGMA * np.sqrt(2)

    def one(d):
        return 0.5 * (erf((d + 0.5) / s) - erf((d - 0.5) / s))

    return lambda dx, dy: one(dx) * one(dy)


def tilted(fwhm, axis_ratio=0.5, angle_deg=30.0, sub=5):
    """Return an elliptical Gaussian; `fwhm` is the geometric mean of its axes."""
    a = fwhm * FWHM_TO_SIGMA / np.sqrt(axis_ratio)
    b = a * axis_ratio
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))

    def density(dx, dy):
        u, v = (c * dx + s * dy) / a, (c * dy - s * dx) / b
        return np.exp(-0.5 * (u * u + v * v)) / (2 * np.pi * a * b)

    return over_pixels(density, sub)


def moffat(fwhm, beta=3.0, sub=5):
    """Return a Moffat profile, integrated over pixels."""
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))

    def density(dx, dy):
        return (beta - 1) / (np.pi * alpha**2) * (1 + (dx**2 + dy**2) / alpha**2) ** -beta

    return over_pixels(density, sub)


def over_pixels(density, sub):
    """Integrate a density over pixels by Gauss-Legendre nodes."""
    at, weight = np.polynomial.legendre.leggauss(sub)
    at, weight = at / 2, weight / 2

    def profile(dx, dy):
        return sum(
            wx * wy * density(dx + ax, dy + ay)
            for ax, wx in zip(at, weight)
            for ay, wy in zip(at, weight)
        )

    return profile


@dataclass
class Field:
    """An image and what it was made from."""

    image: np.ndarray
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    sky: float
    noise: float
    gain: float
    crb_xy: np.ndarray = field(default_factory=lambda: np.zeros(0))
    crb_flux: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def snr(self):
        return self.flux / self.crb_flux

    def frame(self, **more):
        return Frame(self.image.astype(np.float32), name="field", gain_e_adu=self.gain, **more)


def bounds(profile, flux, sky_variance, radius, rng, phases=6):
    """Return the Cramer-Rao bounds of position and flux, a mean over the star's phase."""
    at = np.arange(-radius, radius + 1)
    position, light, eps = np.zeros(len(flux)), np.zeros(len(flux)), 1e-3
    for px, py in rng.uniform(-0.5, 0.5, (phases, 2)):
        dx, dy = at[None, :] - px, at[:, None] - py
        p = profile(dx, dy)
        gx = (profile(dx - eps, dy) - profile(dx + eps, dy)) / (2 * eps)
        gy = (profile(dx, dy - eps) - profile(dx, dy + eps)) / (2 * eps)
        grads = np.stack([p, gx, gy]).reshape(3, -1)
        for k, f in enumerate(flux):
            scaled = grads * np.array([1, f, f])[:, None]
            c = np.linalg.inv((scaled / (f * p.ravel() + sky_variance)) @ scaled.T)
            position[k] += 0.5 * (c[1, 1] + c[2, 2]) / phases
            light[k] += c[0, 0] / phases
    return np.sqrt(position), np.sqrt(light)


def spread(n, shape, rng, apart=0.0, edge=12.0):
    """Return places, drawn at random, none closer than `apart` to another."""
    places = np.zeros((0, 2))
    while len(places) < n:
        new = rng.uniform([edge, edge], [shape[1] - 1 - edge, shape[0] - 1 - edge])
        if apart == 0 or len(places) == 0 or np.hypot(*(places - new).T).min() > apart:
            places = np.vstack([places, new])
    return places[:, 0], places[:, 1]


def jittered_grid(step, shape, rng, edge):
    """Return places on a grid, each moved by up to a quarter of the step: none is close."""
    edge = edge + 0.25 * step
    gx = np.arange(edge, shape[1] - edge, step)
    gy = np.arange(edge, shape[0] - edge, step)
    x, y = (a.ravel() for a in np.meshgrid(gx, gy))
    move = rng.uniform(-0.25 * step, 0.25 * step, (2, len(x)))
    return x + move[0], y + move[1]


def light_of(x, y, flux, profile, shape, radius):
    """Return the light of stars, electrons; `profile` is one, or a function of the place."""
    image = np.zeros(shape)
    for sx, sy, f in zip(x, y, flux):
        ix, iy = round(sx), round(sy)
        x0, x1 = max(ix - radius, 0), min(ix + radius + 1, shape[1])
        y0, y1 = max(iy - radius, 0), min(iy + radius + 1, shape[0])
        if x1 <= x0 or y1 <= y0:
            continue
        here = profile(sx, sy) if getattr(profile, "varies", False) else profile
        dx, dy = np.arange(x0, x1)[None, :] - sx, np.arange(y0, y1)[:, None] - sy
        image[y0:y1, x0:x1] += f * here(dx, dy)
    return image


def observe(light_e, sky_e, read_e, gain, rng, offset_adu=0.0):
    """Return what a camera records of some light, ADU."""
    electrons = rng.poisson(np.maximum(light_e + sky_e, 0)) + rng.normal(0, read_e, light_e.shape)
    return electrons / gain + offset_adu


def star_field(
    profile, fwhm, *, shape=(512, 512), n=None, step=None, snr=(5, 1000), sky=200.0, read=5.0,
    gain=1.5, seed=1, offset_adu=0.0, slope=0.0,
):
    """Make a field: stars at random (n) or on a jittered grid (step), log-uniform in S/N.

    `slope` -1 gives as many stars to each halving of the S/N twice as many.
    """
    rng = np.random.default_rng(seed)
    radius = int(np.ceil(6 * fwhm + 3))
    edge = min(max(8.0, 2.5 * fwhm), 0.25 * min(shape))
    if step is None:
        x, y = spread(n, shape, rng, edge=edge)
    else:
        x, y = jittered_grid(step, shape, rng, edge)
    u = rng.uniform(0, 1, len(x))
    lo, hi = snr
    target = lo * (hi / lo) ** u
    if slope:
        target = (lo**slope + u * (hi**slope - lo**slope)) ** (1 / slope)
    variance = sky + read**2
    here = profile(shape[1] / 2, shape[0] / 2) if getattr(profile, "varies", False) else profile
    grid = np.geomspace(1, 1e9, 160)
    limit = int(np.ceil(4 * fwhm + 3))
    position, light = bounds(here, grid, variance, limit, np.random.default_rng(0))
    flux = np.exp(np.interp(np.log(target), np.log(grid / light), np.log(grid)))
    image = observe(light_of(x, y, flux, profile, shape, radius), sky, read, gain, rng, offset_adu)
    return Field(
        image, x, y, flux, sky / gain + offset_adu, np.sqrt(variance) / gain, gain,
        np.exp(np.interp(np.log(flux), np.log(grid), np.log(position))),
        np.exp(np.interp(np.log(flux), np.log(grid), np.log(light))),
    )


def pair(truth, sources, radius=1.5):
    """Return rows of truth and of sources that are each other's nearest, brightest truth first."""
    from scipy.spatial import cKDTree

    tree = cKDTree(np.column_stack([sources["x"], sources["y"]]))
    taken, left, right = set(), [], []
    near, index = tree.query(np.column_stack([truth.x, truth.y]), k=min(4, len(sources)))
    near, index = near.reshape(len(truth.x), -1), index.reshape(len(truth.x), -1)
    for k in np.argsort(-truth.flux):
        for d, j in zip(near[k], index[k]):
            if d <= radius and j not in taken:
                taken.add(j)
                left.append(k)
                right.append(j)
                break
    return np.array(left, int), np.array(right, int)
