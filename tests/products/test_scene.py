"""Scene descriptions: what is read is what was written, and mistakes are named."""

import dataclasses

import pytest

from cynosure.ground.errors import SettingError
from cynosure.ground.settings import keyword_settings
from cynosure.products.faults import FAULTS, Faults
from cynosure.products.scene import SECTIONS, Scene, load_scene, scene_names, scene_toml

SHIPPED = [
    "cluster", "crowded", "demo", "faults", "multichip", "sparse", "undersampled", "wide",
]  # fmt: skip


def test_the_scenes_that_are_shipped():
    assert scene_names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_written_and_read_again_a_scene_is_the_same(name, tmp_path):
    scene = load_scene(name)
    assert scene.name == name
    assert scene.about
    path = tmp_path / "copy.toml"
    path.write_text(scene_toml(scene), "utf-8")
    assert load_scene(path) == scene
    Faults(scene.faults)


def test_a_scene_without_a_name_is_named_after_its_file(tmp_path):
    path = tmp_path / "mine.scene.toml"
    path.write_text("[sky]\nn_stars = 7\n")
    scene = load_scene(str(path))
    assert scene.name == "mine"
    assert scene.sky.n_stars == 7
    assert scene.camera == Scene().camera


def test_unknown_keys_are_refused_with_the_nearest():
    with pytest.raises(SettingError, match="n_star") as caught:
        Scene().updated({"sky": {"n_star": 3}})
    assert "n_stars" in caught.value.hint
    with pytest.raises(SettingError, match="skies") as caught:
        Scene().updated({"skies": {}})
    assert "sky" in caught.value.hint
    with pytest.raises(SettingError, match="hot_colum") as caught:
        Faults(("hot_colum",))
    assert "hot_column" in caught.value.hint


def test_values_out_of_range_and_of_the_wrong_type_are_refused():
    with pytest.raises(SettingError, match=r"-1"):
        Scene().updated({"sky": {"n_stars": -1}})
    with pytest.raises(SettingError, match="family"):
        Scene().updated({"psf": {"family": "airy"}})
    with pytest.raises(SettingError, match="dec_deg"):
        Scene().updated({"sky": {"dec_deg": "north"}})
    with pytest.raises(SettingError, match="parity"):
        Scene().updated({"camera": {"parity": 0}})
    with pytest.raises(SettingError, match="3 values of chip_x_px"):
        Scene().updated({"camera": {"chip_x_px": [1, 2, 3]}})
    with pytest.raises(SettingError, match="date_obs"):
        Scene().updated({"camera": {"date_obs": "yesterday"}})


def test_files_that_are_no_scenes(tmp_path):
    with pytest.raises(SettingError, match="no scene 'nothing'") as caught:
        load_scene("nothing")
    assert "demo" in caught.value.hint
    broken = tmp_path / "broken.toml"
    broken.write_text("[sky\n")
    with pytest.raises(SettingError, match="not TOML"):
        load_scene(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingError, match=r"broken\.toml"):
        load_scene(broken)


def test_the_default_seed_comes_from_the_content():
    demo = load_scene("demo")
    assert demo.content_seed() == load_scene("demo").content_seed()
    assert dataclasses.replace(demo, name="other", about="x").content_seed() == demo.content_seed()
    assert demo.updated({"sky": {"n_stars": 1501}}).content_seed() != demo.content_seed()
    assert demo.updated({"scene": {"faults": ["cube"]}}).content_seed() != demo.content_seed()
    assert demo.updated({"scene": {"seed": 5}}).content_seed() == 5


def test_every_setting_says_what_it_is():
    for section, kind in SECTIONS.items():
        known = keyword_settings(section, kind)
        assert set(known) == set(kind.__dataclass_fields__), section
        for name, setting in known.items():
            assert setting.text, f"{section}.{name} has no text"


def test_every_fault_has_a_sentence():
    for name, fault in FAULTS.items():
        assert fault.about.endswith("."), name
