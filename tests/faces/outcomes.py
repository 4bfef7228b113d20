"""An outcome as the solve door gives it, made up so that its truth is known."""

import numpy as np

from cynosure.data.tables import MATCHES, SOURCES
from cynosure.ground.numeric import rms
from cynosure.pipelines.evidence import thumbnail
from cynosure.solutions.quality import Measured, judge
from cynosure.solutions.solution import Solution

NX, NY, SCALE = 2400, 1800, 0.8


def make_matches(n=900, seed=3, sigma0=12.0):
    rng = np.random.default_rng(seed)
    table = MATCHES.empty(n)
    table["x"], table["y"] = rng.uniform(0, NX, n), rng.uniform(0, NY, n)
    table["ref_mag"] = np.clip(20.0 - rng.exponential(1.8, n), 10.0, 20.0)
    table["ref_color"] = rng.normal(1.1, 0.4, n)
    table["flux_e"] = 10 ** (0.4 * (26.0 - table["ref_mag"])) * 60
    table["snr"] = np.sqrt(table["flux_e"] / 8.0)
    error_px = np.hypot(1.1 / table["snr"], 0.0)
    table["x_err"] = table["y_err"] = error_px
    sigma = np.hypot(error_px * SCALE * 1000.0, sigma0)
    table["sigma_ra_mas"] = table["sigma_dec_mas"] = sigma
    table["dra_mas"], table["ddec_mas"] = sigma * rng.normal(size=(2, n))
    outlier = rng.random(n) < 0.03
    table["dra_mas"][outlier] += rng.normal(0, 400, int(outlier.sum()))
    turn = np.radians(33.0)
    east = -(table["x"] - NX / 2) * np.cos(turn) + (table["y"] - NY / 2) * np.sin(turn)
    north = (table["x"] - NX / 2) * np.sin(turn) + (table["y"] - NY / 2) * np.cos(turn)
    table["ref_dec_deg"] = 69.68 + north * SCALE / 3600
    table["ref_ra_deg"] = 148.97 + east * SCALE / 3600 / np.cos(np.radians(69.68))
    table["dec_deg"] = table["ref_dec_deg"] + table["ddec_mas"] / 3.6e6
    table["ra_deg"] = table["ref_ra_deg"] + table["dra_mas"] / 3.6e6 / np.cos(np.radians(69.68))
    table["ref_id"] = np.arange(n) + 10**17
    table["reserved"] = (rng.random(n) < 0.15) & ~outlier
    table["used"] = ~table["reserved"] & ~outlier
    return table


def make_sources(matches, seed=4):
    rng = np.random.default_rng(seed)
    extra = SOURCES.empty(len(matches) // 2)
    extra["x"], extra["y"] = rng.uniform(0, NX, len(extra)), rng.uniform(0, NY, len(extra))
    extra["snr"] = 6.0
    own = SOURCES.build(x=matches["x"], y=matches["y"], snr=matches["snr"], chip=matches["chip"])
    return np.concatenate([own, extra])


def make_image(sources, matches, seed=5):
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 12, (NY, NX)).astype(np.float32)
    yy, xx = np.mgrid[-7:8, -7:8]
    for row in matches:
        x, y = round(row["x"]), round(row["y"])
        if 8 <= x < NX - 8 and 8 <= y < NY - 8:
            image[y - 7:y + 8, x - 7:x + 8] += row["flux_e"] / 12 * np.exp(-(xx**2 + yy**2) / 4)
    return image


def make_extras(image):
    gx, gy = (g.ravel() for g in np.meshgrid(np.linspace(0, NX, 12), np.linspace(0, NY, 9)))
    u, v = (gx - NX / 2) / NX, (gy - NY / 2) / NX
    r2 = u**2 + v**2
    yy, xx = np.mgrid[-8:9, -8:9]
    stamps = [np.exp(-(xx**2 + (1 + 0.3 * k / 9) * yy**2) / (4 + k / 3)) for k in range(9)]
    return {
        "shape": (NY, NX), "thumbnail": thumbnail(image),
        "distortion": {"x": gx, "y": gy, "dx_px": 40 * u * r2, "dy_px": 40 * v * r2},
        "wcs_error": np.column_stack([gx, gy, 1.0 + 20 * r2**2]),
        "psf": np.column_stack([
            gx, gy, 2.6 + 0.8 * r2, 0.04 + 0.2 * r2, np.degrees(np.arctan2(v, u)),
        ]),
        "psf_stamps": np.array(stamps),
        "ledger": [
            {"round": k, "geometry": "poly3", "n_used": 780 - 6 * k, "rms_mas": 90 / k + 13,
             "a": 1.0, "sigma0_mas": 40 / k + 12} for k in range(1, 6)
        ],
        "scores": {f"poly{k}": {"score": s, "n": 120.0} for k, s in
                   ((1, 14.2), (2, 13.9), (3, 8.21), (4, 8.22), (5, 8.26))},
        "evidence": {"tried": ["quads: 214 hypotheses, best log-odds 812.0"],
                     "second_log_odds": 9.1},
    }


def with_reference(extras, matches, seed=8):
    """Add the reference stars of the chip: those of the matches and sixty without a source."""
    rng = np.random.default_rng(seed)
    lost = np.column_stack([rng.uniform(0, s, 60) for s in (NX, NY)] + [rng.uniform(16, 20, 60)])
    own = np.column_stack([matches["x"] + 0.1, matches["y"], matches["ref_mag"]])
    return {**extras, "reference": np.concatenate([own, lost])}


def make_solution(image="demo.fits", matches=None, **changes):
    matches = make_matches() if matches is None else matches
    used, reserved = matches[matches["used"]], matches[matches["reserved"]]
    numbers = {
        "rms_ra_mas": rms(used["dra_mas"]), "rms_dec_mas": rms(used["ddec_mas"]),
        "rms_reserved_ra_mas": rms(reserved["dra_mas"]),
        "rms_reserved_dec_mas": rms(reserved["ddec_mas"]),
    }
    verdict = judge(Measured(
        n_used=len(used), n_reserved=len(reserved), rms_mas=numbers["rms_ra_mas"],
        rms_reserved_mas=numbers["rms_reserved_ra_mas"], scale_arcsec=SCALE, log_odds=812.0,
        chi2_dof=1.02, coverage=1.0, before_ratio=0.01, wcs_error_mas=4.0,
    ))
    solution = Solution(
        image, "0" * 64, software="cynosure 0.1.0", created="2026-01-02T03:04:05+00:00",
        settings={"quality": {"min_used": 6}}, status=verdict.status, quality=verdict.quality,
        checks=tuple(c.to_dict() for c in verdict.checks), wcsname="FIT_IMG_GAIADR3",
        catalog="GAIADR3", epoch_yr=2025.5, n_sources=len(matches) * 3 // 2, n_reference=960,
        n_matched=len(matches), n_used=len(used), n_reserved=len(reserved), **numbers,
        sigma0_mas=12.0, a=1.01, chi2=1530.0, dof=1500.0, chi2_dof=1.02, log_odds=812.0,
        before_offset_arcsec=312.0, before_rms_mas=3000.0, center_ra_deg=148.97,
        center_dec_deg=69.68, scale_arcsec=SCALE, rotation_deg=33.0, parity=1,
        width_deg=NX * SCALE / 3600, height_deg=NY * SCALE / 3600, form="tpv", order=3,
        chips=({"name": "demo.fits", "hdu": 0, "shape": [NY, NX],
                "cards": {"CRPIX1": 1200.5, "CRPIX2": 900.5, "CRVAL1": 148.97, "CRVAL2": 69.68,
                          "CD1_1": -1.9e-4, "CD1_2": 1.2e-4, "CD2_1": 1.2e-4, "CD2_2": 1.9e-4}},),
        wcs_error_mas={"center": 0.9, "corner": 4.0}, n_clipped=26, clip_rounds=5,
        files=("demo_wcs.fits", "demo.solution.json", "demo.matches.parquet"),
        seconds={"read": 0.2, "detect": 0.8, "fit": 0.1, "total": 1.1},
    )
    return solution.replaced(**changes)
