"""Which solution is chosen, and the words that say why."""

import dataclasses
import itertools

import numpy as np
import pytest

from cynosure.solutions.names import parse_wcsname
from cynosure.solutions.store.schema import Stored
from cynosure.solutions.store.selection import Decision, distortion_date, select_best

NEW, OLD = "IDC_2731450pi", "IDC_0461802ej"


def stored(wcsname, **changes):
    name = parse_wcsname(wcsname)
    values = {f.name: "" for f in dataclasses.fields(Stored)}
    values.update({k: None for k in (
        "quality", "rms_ra_mas", "rms_dec_mas", "fit_rms_mas", "nmatch", "ra_deg", "dec_deg",
        "radius_deg")})
    values.update(
        id=1, wcsname=wcsname, hdrname=f"a_{wcsname}", kind=name.kind, catalog=name.catalog,
        method=name.method, idctab=name.start.removeprefix("IDC_") if "IDC_" in wcsname else "",
        corners=np.zeros((0, 4, 2)), settings={}, faults=(), notes=(), valid=True, size_bytes=1,
        content_sha256=f"sha of {wcsname}",
    )
    if "rms" in changes:
        changes["rms_ra_mas"] = changes["rms_dec_mas"] = changes.pop("rms")
    return Stored(**{**values, **changes})


def best(*solutions, **kwargs):
    """Return the chosen name, which must not depend on the order."""
    decisions = [select_best("a", order, **kwargs) for order in itertools.permutations(solutions)]
    assert len({d.content_sha256 for d in decisions}) == 1
    return decisions[0]


def test_the_a_priori_hierarchy():
    ladder = ["OPUS", "OPUS-GSC240", "a name of its own", NEW, f"{NEW}-GAIADR1", f"{NEW}-GSC240",
              f"{NEW}-HSC30", f"{NEW}-FIT_REL_GAIADR2"]
    for low, high in itertools.pairwise(ladder):
        assert best(stored(low), stored(high)).wcsname == high
    assert best(*map(stored, ladder[:5])).wcsname == f"{NEW}-GAIADR1"


def test_the_newest_distortion_wins_within_a_class():
    assert best(stored(f"{OLD}-HSC30"), stored(f"{NEW}-HSC30")).wcsname == f"{NEW}-HSC30"
    assert best(stored(f"{OLD}-HSC30"), stored(f"{NEW}-GSC240")).wcsname == f"{OLD}-HSC30"
    decision = best(stored(OLD), stored(NEW))
    assert decision.considered[1].reason == (
        "older distortion model (0461802ej against 2731450pi)")
    assert decision.reason.endswith(f"newer distortion model than {OLD}")


@pytest.mark.parametrize(("root", "date"), [
    ("0461802ej", "2016-04-06T18:02"), ("w3m18525i", "2012-03-22T18:52"),
    ("2731450pi", "2018-07-03T14:50"), ("y7b1516hi", "2014-07-11T15:16"),
    ("t982101pi", "2009-09-08T21:01"), ("", ""), ("my_own_idc", ""), ("0461802", ""),
])
def test_when_a_distortion_file_was_made(root, date):
    assert distortion_date(root) == date


def test_a_posteriori_when_valid():
    good = stored(f"{NEW}-FIT_REL_GAIADR2", rms=8.0, nmatch=50)
    prior = stored(f"{NEW}-HSC30")
    assert best(good, prior).wcsname == good.wcsname
    for wrong, words in (
        ({"valid": False, "faults": ("SIPWCS,1: WCSDVARR,3 is missing",)}, "WCSDVARR,3"),
        ({"rms": 400.0}, "residuals of 400 mas"), ({"nmatch": 3}, "3 stars, 4 needed"),
        ({"quality": 5}, "quality 5"), ({"quality": -1}, "quality -1"),
    ):
        bad = dataclasses.replace(good, **{
            **({"rms_ra_mas": wrong.pop("rms")} if "rms" in wrong else {}), **wrong})
        if "residuals" in words:
            bad = dataclasses.replace(bad, rms_dec_mas=400.0)
        decision = best(bad, prior)
        assert decision.wcsname == prior.wcsname
        [excluded] = [c for c in decision.considered if c.verdict == "excluded"]
        assert words in excluded.reason
    # A ground-based image that was judged may have larger residuals.
    judged = stored("FIT_IMG_GAIADR3", rms=400.0, quality=3)
    assert best(judged, prior).wcsname == judged.wcsname
    assert best(good, prior, max_rms_mas=5.0).wcsname == prior.wcsname


def test_chips_of_different_solutions_are_the_last_resort():
    """Such a solution tears the chips apart: never before a sound one, but better than nothing."""
    words = "SIPWCS,2 holds another solution, IDC_x-HSC30"
    torn = stored(f"{NEW}-FIT_REL_GAIAeDR3", rms=5.0, nmatch=573, doubts=(words,))
    for policy in ("hierarchy", "measured"):
        for sound in ("OPUS", NEW, f"{NEW}-FIT_REL_GAIADR1"):
            decision = best(torn, stored(sound), policy=policy)
            assert decision.wcsname == sound
            [lost] = [c for c in decision.considered if c.verdict == "passed over"]
            assert lost.reason == f"doubtful: {words}"
        assert "not in doubt rather than" in best(torn, stored(NEW), policy=policy).reason
    broken = stored(NEW, valid=False, faults=("broken",))
    decision = best(torn, broken)
    assert decision.wcsname == torn.wcsname
    assert f"doubtful: {words}" in decision.reason
    chosen = best(torn, stored(NEW), choice=torn.content_sha256)
    assert (chosen.wcsname, chosen.rule) == (torn.wcsname, "user")


def test_only_relative_is_not_placed():
    decision = best(stored(f"{NEW}-FIT_REL_NONE", rms=3.0, nmatch=90), stored(NEW))
    assert decision.wcsname == NEW
    assert decision.considered[1].group == "unplaced"


def test_fits_against_each_other():
    dr2 = stored(f"{NEW}-FIT_REL_GAIADR2", rms=6.0, nmatch=200)
    edr3 = stored(f"{NEW}-FIT_REL_GAIAeDR3", rms=9.0, nmatch=150)
    assert best(dr2, edr3).wcsname == edr3.wcsname
    measured = best(dr2, edr3, policy="measured")
    assert (measured.wcsname, measured.rule) == (dr2.wcsname, "measured")
    assert measured.considered[1].reason == "rms 9 mas against 6"
    image = stored(f"{NEW}-FIT_IMG_GAIADR2", rms=5.0, nmatch=200)
    assert best(dr2, image).wcsname == dr2.wcsname
    poor = stored(f"{NEW}-FIT_REL_GAIAeDR3", rms=90.0, nmatch=150)
    assert best(dr2, poor).wcsname == dr2.wcsname
    assert best(dr2, poor).considered[1].reason == "quality 3 against 1"
    unknown = stored(f"{NEW}-FIT_REL_GAIADR1")
    assert best(unknown, poor).wcsname == poor.wcsname


def test_two_of_a_name_are_told_apart_always_alike():
    one = stored(NEW, content_sha256="1", created="2020-01-01", hdrname="x")
    two = stored(NEW, content_sha256="2", created="2023-01-01", hdrname="y")
    assert best(one, two).content_sha256 == "2"
    same = dataclasses.replace(one, content_sha256="3", hdrname="z")
    decision = best(one, same)
    assert decision.content_sha256 == "3"
    assert decision.considered[1].reason == "the same but for its name"


def test_the_users_choice_is_above_all():
    bad = stored(f"{NEW}-FIT_IMG_GAIADR1", rms=900.0)
    good = stored(f"{NEW}-FIT_REL_GAIAeDR3", rms=5.0)
    decision = best(bad, good, choice=bad.content_sha256, made_by="me")
    assert (decision.wcsname, decision.rule, decision.made_by) == (bad.wcsname, "user", "me")
    assert "would have been excluded" in decision.reason
    assert decision.considered[0].verdict == "chosen"
    gone = best(bad, good, choice="sha of what was removed")
    assert (gone.wcsname, gone.rule) == (good.wcsname, "hierarchy")


def test_nothing_to_choose():
    assert best().reason == "no solution is known"
    decision = best(stored(NEW, valid=False, faults=("broken",)))
    assert (decision.wcsname, decision.rule, decision.reason) == (
        "", "none", "no solution may be used")


def test_the_record():
    decision = best(stored(NEW), stored(f"{NEW}-HSC30"), made_by="me")
    assert Decision.from_dict(decision.to_dict()) == decision
    assert Decision.from_dict({**decision.to_dict(), "later": 1}) == decision
    with pytest.raises(dataclasses.FrozenInstanceError):
        decision.wcsname = "x"
    text = str(decision)
    assert f"chosen      {NEW}-HSC30" in text
    assert f"passed over {NEW}: distortion comes after HSC" in text
    assert decision.made > "2020"
