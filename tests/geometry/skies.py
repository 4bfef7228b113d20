"""Small skies of known truth for the tests of recognition."""

from dataclasses import dataclass

import numpy as np

from cynosure.data.frame import Pointing
from cynosure.geometry.skymodel import SkyModel
from cynosure.ground.sky import deproject


@dataclass
class Sky:
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    star: np.ndarray  # row of the catalogue, -1 for a false source
    ra: np.ndarray
    dec: np.ndarray
    mag: np.ndarray
    pointing: Pointing
    shape: tuple
    truth: SkyModel
    rotation: float
    parity: int
    scale: float

    @property
    def lists(self):
        return self.x, self.y, self.flux, self.ra, self.dec, self.mag

    def errors_px(self, model):
        """How far a model is from the truth at the catalogue's stars in the frame."""
        ny, nx = self.shape
        x, y = self.truth.sky_to_pixel(self.ra, self.dec)
        inside = (x > 0) & (x < nx - 1) & (y > 0) & (y < ny - 1)
        tx, ty = self.truth.sky_to_pixel(*model.pixel_to_sky(x[inside], y[inside]))
        return np.hypot(tx - x[inside], ty - y[inside])

    def purity(self, match):
        return np.mean(self.star[match.source_index] == match.reference_index)


def camera(ra, dec, scale, rotation, parity, shape, distortion):
    """TAN with a radial distortion: `distortion` of the corner's radius at the corner.

    `rotation` is the angle of +y from north through east; parity +1 has east to the left.
    """
    ny, nx = shape
    norm = np.hypot(nx, ny) / 2
    t = np.radians(rotation)
    up = np.array([np.sin(t), np.cos(t)])  # xi, eta of +y
    right = parity * np.array([-np.cos(t), np.sin(t)])  # xi, eta of +x
    s = scale / 3600 * norm
    coeff = np.zeros((2, 10))
    coeff[:, 1], coeff[:, 2] = s * right, s * up
    # (u, v) (u^2 + v^2): the terms u^3, u v^2 and u^2 v, v^3
    coeff[:, 6], coeff[:, 8] = distortion * s * right, distortion * s * right
    coeff[:, 7], coeff[:, 9] = distortion * s * up, distortion * s * up
    return SkyModel(ra, dec, (nx - 1) / 2, (ny - 1) / 2, norm, coeff)


def make_sky(
    seed, n=150, *, shape=(1500, 2000), scale=1.0, center=None, radius=0.5, depth=1.0,
    missing=0.3, spurious=0.3, distortion=0.0, noise=0.2, scatter=0.2, rotation=None, parity=None,
    wrong=False, false_x=None, false_y=None, cluster=0,
):
    """Make a field with about `n` sources and a catalogue `depth` times as dense."""
    rng = np.random.default_rng(seed)
    ny, nx = shape
    ra0, dec0 = center or (rng.uniform(0, 360), np.degrees(np.arcsin(rng.uniform(-0.95, 0.95))))
    rotation = rng.uniform(0, 360) if rotation is None else rotation
    parity = int(rng.choice([-1, 1])) if parity is None else parity
    truth = camera(ra0, dec0, scale, rotation, parity, shape, distortion)
    half = truth.scale_px * scale / 3600
    cone = radius + 1.1 * half
    area = np.pi * cone**2 / (nx * ny * (scale / 3600) ** 2)
    a, r = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.uniform())
    aim = tuple(float(v) for v in deproject(r * np.cos(a), r * np.sin(a), ra0, dec0))

    def stars(count):
        a, r = rng.uniform(0, 2 * np.pi, count), cone * np.sqrt(rng.uniform(size=count))
        ra, dec = deproject(r * np.cos(a), r * np.sin(a), *aim)
        extra = deproject(*rng.normal(0.2 * half, 0.1 * half, (2, cluster)), ra0, dec0)
        mag = np.log10(rng.uniform(1e-9, 1, count + cluster)) / 0.3
        return np.concatenate([ra, extra[0]]), np.concatenate([dec, extra[1]]), mag

    n_true = n * (1 - spurious) / (1 - missing)
    ra, dec, mag = stars(int(n_true * area * max(depth, 1)))
    x, y = truth.sky_to_pixel(ra, dec)
    seen = (x > 0) & (x < nx - 1) & (y > 0) & (y < ny - 1)
    seen &= (mag < np.log10(1 / max(depth, 1)) / 0.3) & (rng.uniform(size=len(x)) > missing)
    seen = np.flatnonzero(seen)
    kept = np.flatnonzero(mag < np.log10(min(depth, 1)) / 0.3)
    number = np.full(len(ra), -1)
    number[kept] = np.arange(len(kept))
    m = round(len(seen) * spurious / (1 - spurious))
    fx = rng.uniform(0, nx, m) if false_x is None else false_x(rng)
    fy = rng.uniform(0, ny, m) if false_y is None else false_y(rng)
    flux = 10 ** (-0.4 * (mag[seen] + rng.normal(0, scatter, len(seen))))
    x = np.concatenate([x[seen] + rng.normal(0, noise, len(seen)), fx])
    y = np.concatenate([y[seen] + rng.normal(0, noise, len(seen)), fy])
    star = np.concatenate([number[seen], np.full(len(fx), -1)])
    flux = np.concatenate([flux, rng.choice(flux, len(fx))])
    order = rng.permutation(len(x))
    ra, dec, mag = ra[kept], dec[kept], mag[kept]
    if wrong:
        ra, dec, mag = stars(len(ra))
        star[:] = -1
    pointing = Pointing(*aim, radius, scale * (1 + rng.uniform(-0.08, 0.08)), 0.1)
    return Sky(
        x[order], y[order], flux[order], star[order], ra, dec, mag, pointing, shape, truth,
        rotation, parity, scale,
    )
