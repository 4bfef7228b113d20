"""Settings come from signatures; whatever is wrong with them is said with its place."""

from typing import Annotated, Literal

import pytest

from cynosure.ground.errors import SettingError
from cynosure.ground.settings import Range, Settings, Unit, keyword_settings


def stretch(
    image,
    *,
    width_px: Annotated[float, Unit("px"), Range(0.5, 50)] = 2.0,
    rounds: Annotated[int, Range(1, 9)] = 3,
    kind: Literal["linear", "cubic"] = "linear",
    limit: Annotated[float | None, Unit("mag"), Range(0, 30)] = None,
    window: Annotated[tuple[float, float], Unit("mag")] = (10.0, 20.0),
    careful: bool = True,
    helper=None,
):
    """Stretch.

    Parameters
    ----------
    image : array
        Not a setting.
    width_px : float
        How wide.
    rounds : int
        How often.
    """


SETTINGS = Settings({"stretch": stretch})


def test_signature_and_docstring_are_read():
    known = keyword_settings("stretch", stretch)
    assert set(known) >= {"width_px", "rounds", "kind", "limit", "window", "careful"}
    assert "image" not in known
    assert known["width_px"].unit == "px"
    assert known["width_px"].range == Range(0.5, 50)
    assert known["width_px"].text == "How wide."
    assert known["limit"].default is None


def test_only_what_was_set_is_passed():
    assert SETTINGS["stretch"] == {}
    changed = SETTINGS.updated({"stretch": {"width_px": 4}}, "here")
    assert changed["stretch"] == {"width_px": 4.0}
    assert changed.origin("stretch", "width_px") == "here"
    assert changed.origin("stretch", "rounds") == "built-in"
    assert SETTINGS["stretch"] == {}
    assert changed.resolved()["stretch"]["rounds"] == 3


def test_later_layers_win_and_by_hand_wins_over_an_instrument():
    by_hand = SETTINGS.with_texts(["stretch.rounds=5"])
    both = by_hand.over({"stretch": {"rounds": 7, "width_px": 1.5}}, "instrument x")
    assert both["stretch"] == {"rounds": 5, "width_px": 1.5}
    assert both.origin("stretch", "width_px") == "instrument x"


@pytest.mark.parametrize(
    ("text", "value"),
    [("stretch.width_px=3", 3.0), ("stretch.kind=cubic", "cubic"),
     ('stretch.kind="cubic"', "cubic"),
     ("stretch.limit=none", None), ("stretch.limit=21.5", 21.5), ("stretch.careful=false", False),
     ("stretch.window=[1, 2.5]", (1.0, 2.5)), (" stretch.rounds = 2 ", 2)],
)
def test_texts_are_toml_values_or_bare_words(text, value):
    key = text.split("=")[0].strip().split(".")[1]
    assert SETTINGS.with_texts([text])["stretch"][key] == value


@pytest.mark.parametrize(
    ("text", "says", "hints"),
    [("stretch.widht_px=3", "widht_px", "width_px"), ("strech.rounds=3", "strech", "stretch"),
     ("stretch.rounds=99", "outside", "3"), ("stretch.rounds=2.5", "integer", "3"),
     ("stretch.kind=round", "linear", "linear"), ("stretch.careful=1", "true or false", "True"),
     ("stretch rounds 3", "section.key=value", "--set"), ("stretch.limit=99", "outside", "None")],
)
def test_what_is_wrong_is_said_with_what_would_be_right(text, says, hints):
    with pytest.raises(SettingError) as caught:
        SETTINGS.with_texts([text])
    assert says in str(caught.value)
    assert hints in caught.value.hint
    assert caught.value.exit_code == 2


def test_files(tmp_path):
    good = tmp_path / "good.toml"
    good.write_text("[stretch]\nrounds = 4\n")
    assert SETTINGS.with_file(good)["stretch"] == {"rounds": 4}
    bad = tmp_path / "bad.toml"
    bad.write_text("[stretch\n")
    with pytest.raises(SettingError, match=r"bad\.toml"):
        SETTINGS.with_file(bad)
    flat = tmp_path / "flat.toml"
    flat.write_text("stretch = 4\n")
    with pytest.raises(SettingError):
        SETTINGS.with_file(flat)
    with pytest.raises(SettingError, match=r"missing\.toml"):
        SETTINGS.with_file(tmp_path / "missing.toml")
