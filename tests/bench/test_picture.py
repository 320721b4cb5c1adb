"""``bench --picture``: the main rows as one picture, light and dark."""

import numpy as np
import pytest
from PIL import Image

from skipdit_cli.bench.results.picture import DARK, LIGHT, WIDTH, Column, choose_rows, draw
from skipdit_cli.media import read_metadata

QUICK = ("--steps", 6, "--rounds", 1, "--warmup", 0, "--guidance-scale", 1, "--cache-interval", 2)


@pytest.mark.parametrize("kind", ["exact", "video"])
def test_it_writes_a_light_and_a_dark_picture(skipdit, converted, latte_pipeline, tmp_path, kind):
    model = converted(num_layers=3) if kind == "exact" else latte_pipeline()
    flags = ("--batch-size", 1, "--exact" if kind == "exact" else "--no-exact", "--picture", tmp_path / "a.png")
    ran = skipdit("bench", "-m", model, *QUICK, *flags, "--json")
    assert ran.code == 0, ran.stderr
    assert "a.png and " in ran.stderr and "a-dark.png." in ran.stderr
    light, dark = (Image.open(tmp_path / name) for name in ("a.png", "a-dark.png"))
    assert light.size == dark.size and light.width == WIDTH
    assert light.getpixel((0, 0)) == LIGHT.background and dark.getpixel((0, 0)) == DARK.background
    assert read_metadata(tmp_path / "a.png")["rows"] == ran.json["rows"]
    chosen = [title for _, title in choose_rows(ran.json["rows"], ran.json["macs"])]
    if kind == "exact":
        assert chosen[:4] == [
            ("uncached", "6 steps"),
            ("cached", "with branches"),
            ("cached", "no branches"),
            ("5 steps", "ddim"),
        ]
    else:
        assert chosen[:2] == [("uncached", "6 steps"), ("cached", "N = 1")]
    assert skipdit("bench", "-m", model, *QUICK, *flags).code == 2  # the file exists


def test_an_error_has_a_colour_of_its_own():
    errors = np.zeros((2, 2))
    errors[0, 1] = 1.0
    column = Column(("a", "b"), np.zeros((2, 2, 3)), errors, 9.0, None)
    image = draw([column], LIGHT, "legend")
    colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert {LIGHT.ramp[0], LIGHT.ramp[-1], (0, 0, 0)} < colours


def test_it_does_not_go_into_the_folder_of_the_model(skipdit, converted):
    model = converted()
    ran = skipdit("bench", "-m", model, *QUICK, "--picture", model / "a.png")
    assert ran.code == 2 and "lies inside" in ran.stderr
