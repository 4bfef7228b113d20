"""The roles of the columns of a star catalogue, and the column names of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["BANDS", "GAIA_NAMES", "MADE_FROM", "NEEDED", "POGSON", "QUALITY", "ROLES", "Role"]


@dataclass(frozen=True, slots=True)
class Role:
    """The role of a column.

    Attributes
    ----------
    name : str
        Column of ``REFERENCE``, or the name of a quality column.
    unit : str
        The unit of the result; a column without a declared unit is taken to be in it.
    names : tuple of str
        Names of columns with this role, best first, lower case.
    """

    name: str
    unit: str
    names: tuple[str, ...]

    @property
    def gaia_name(self) -> str:
        """The column's name in Gaia, which is the name under which it is stored."""
        return self.names[0]


def _role(name: str, unit: str, names: str) -> Role:
    return Role(name, unit, tuple(names.split()))


_CORRELATIONS = tuple(
    _role(f"{a}_{b}_corr", "", f"{a}_{b}_corr {short}cor {a}_{b}_cov_norm")
    for a, b, short in (
        ("ra", "dec", "rade"), ("ra", "parallax", "raplx"), ("ra", "pmra", "rapmra"),
        ("ra", "pmdec", "rapmde"), ("dec", "parallax", "deplx"), ("dec", "pmra", "depmra"),
        ("dec", "pmdec", "depmde"), ("parallax", "pmra", "plxpmra"),
        ("parallax", "pmdec", "plxpmde"), ("pmra", "pmdec", "pmrapmde"),
    )
)
ROLES: tuple[Role, ...] = (
    _role("ref_id", "",
          "source_id source gaia_source_id gaiaid gaia_id ref_id objid obj_id object_id id "
          "star_id number"),
    _role("ra_deg", "deg",
          "ra ra_icrs ra_deg radeg raj2000 _raj2000 ra_j2000 _ra _ra_icrs ramean ra_mean "
          "mean_ra raicrs coord_ra alpha_j2000 alphawin_j2000 xwin_world x_world alpha "
          "rightascension right_ascension ra_gaia"),
    _role("dec_deg", "deg",
          "dec de_icrs dec_icrs dec_deg dedeg decdeg dej2000 _dej2000 decj2000 _decj2000 "
          "dec_j2000 de_j2000 _dec _de _de_icrs decmean dec_mean mean_dec deicrs coord_dec "
          "delta_j2000 deltawin_j2000 ywin_world y_world delta declination de dec_gaia"),
    _role("ref_epoch_yr", "yr",
          "ref_epoch ref_epoch_yr epoch_yr epoch obsdate refepoch epoch_mean epochmean"),
    _role("mag", "mag",
          "phot_g_mean_mag gmag g_mag g_mean_mag mag vt_mag vtmag mag_vt vmag v_mag mag_v "
          "rmag r_mag imag i_mag zmag z_mag mag_auto magnitude hpmag hp_mag mag_hp rpmag "
          "bpmag bt_mag btmag mag_bt bmag jmag jmag_2mass hmag kmag umag gmeanpsfmag "
          "rmeanpsfmag imeanpsfmag"),
    _role("color", "mag", "bp_rp bp-rp color colour"),
    _role("ra_error_mas", "mas",
          "ra_error e_ra_icrs e_raj2000 e_radeg ra_err raerr ra_error_mas e_ra sigma_ra "
          "coord_raerr errawin_world erra_world erra_deg ramean_err rameanerr"),
    _role("dec_error_mas", "mas",
          "dec_error e_de_icrs e_dej2000 e_dedeg dec_err decerr dec_error_mas e_de e_dec "
          "sigma_dec coord_decerr errbwin_world errb_world e_decj2000 decmean_err "
          "decmeanerr"),
    _role("parallax_mas", "mas", "parallax plx parallax_mas"),
    _role("parallax_error_mas", "mas",
          "parallax_error e_plx parallax_err parallaxerr parallax_error_mas sigma_parallax"),
    _role("pm_ra_mas_yr", "mas/yr",
          "pmra pm_ra pmra_mas_yr pm_ra_mas_yr pmracosdec pmalpha pmalpha_j2000 "
          "pm_ra_cosdec"),
    _role("pm_dec_mas_yr", "mas/yr",
          "pmdec pmde pm_dec pm_de pmdec_mas_yr pm_dec_mas_yr pmdelta pmdelta_j2000"),
    _role("pm_ra_error_mas_yr", "mas/yr",
          "pmra_error e_pmra pm_ra_error pm_ra_err pmra_err pmraerr sigma_pm_ra pm_raerr "
          "pm_ra_error_mas_yr pmalphaerr_j2000"),
    _role("pm_dec_error_mas_yr", "mas/yr",
          "pmdec_error e_pmde e_pmdec pm_dec_error pm_dec_err pmdec_err pmdeerr "
          "sigma_pm_dec pm_decerr pm_dec_error_mas_yr pmdeltaerr_j2000"),
    *_CORRELATIONS,
    _role("bp_mag", "mag", "phot_bp_mean_mag bpmag bp_mag"),
    _role("rp_mag", "mag", "phot_rp_mean_mag rpmag rp_mag"),
    # The error of the column that has the magnitude: see `_error_names`.
    _role("mag_error", "mag", "phot_g_mean_mag_error"),
    _role("bp_mag_error", "mag", "phot_bp_mean_mag_error"),
    _role("rp_mag_error", "mag", "phot_rp_mean_mag_error"),
    # Not of REFERENCE: what magnitude errors and the quality cuts are made from.
    _role("g_snr", "", "phot_g_mean_flux_over_error"),
    _role("bp_snr", "", "phot_bp_mean_flux_over_error"),
    _role("rp_snr", "", "phot_rp_mean_flux_over_error"),
    _role("ruwe", "", "ruwe"),
    _role("params_solved", "", "astrometric_params_solved solved"),
    _role("duplicated", "", "duplicated_source dup"),
    _role("multi_peak", "", "ipd_frac_multi_peak ipdfmp"),
)
GAIA_NAMES: dict[str, str] = {role.name: role.gaia_name for role in ROLES}
NEEDED = ("ra_deg", "dec_deg", "mag")
QUALITY = ("ruwe", "params_solved", "duplicated", "multi_peak")
# Magnitude, and the flux over its error, from which the magnitude's error is computed.
BANDS = {"mag": "g_snr", "bp_mag": "bp_snr", "rp_mag": "rp_snr"}
POGSON = 2.5 / np.log(10.0)
# Further inputs of a column of REFERENCE, beside the column of its own name.
MADE_FROM: dict[str, tuple[str, ...]] = {
    "color": ("bp_mag", "rp_mag"), "good": QUALITY, "mag_error": ("g_snr",),
    "bp_mag_error": ("bp_snr",), "rp_mag_error": ("rp_snr",),
    "parallax_mas": ("params_solved",), "pm_ra_mas_yr": ("params_solved",),
    "pm_dec_mas_yr": ("params_solved",),
}
