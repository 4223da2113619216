"""Gears, drawings, slopes, pulleys and optics: cases worked by hand, and what a picture says."""

import math
from itertools import pairwise

import numpy as np
import pytest

from foveal.tasks import get_task
from foveal.tasks.canvas import SCALE, Canvas, font
from foveal.tasks.drawings import _Look

NAMES = ("gears", "drawings", "inclines", "pulleys", "optics")


@pytest.fixture
def texts(monkeypatch):
    """(text, box in pixels) of all that is written, in order; for ``clear`` between rows."""
    written = []
    write = Canvas.text

    def text(self, at, text, size=11, colour=(0, 0, 0), anchor="mm", halo=None):
        box = [v / SCALE for v in font(size).getbbox(text, anchor=anchor)]
        box = [v + at[i % 2] for i, v in enumerate(box)]
        written.append((text, box, (self.width, self.height)))
        write(self, at, text, size, colour, anchor, halo)

    monkeypatch.setattr(Canvas, "text", text)
    return written


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_cut_off_or_covers_another(name, texts):
    for seed in range(50):
        texts.clear()
        get_task(name).generate(seed, 1 + seed % 5)
        assert len(texts) >= 2
        for i, (text, a, size) in enumerate(texts):
            assert min(a) >= 0 and a[2] <= size[0] and a[3] <= size[1], (seed, text)
            for other, b, _ in texts[:i]:
                wide, tall = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
                assert wide <= 1 or tall <= 1, (seed, text, other)


def _solved(name, kind, **facts):
    return get_task(name).reference_answer({"kind": kind, **facts})


# --- gears --------------------------------------------------------------------------------------


def _shaft(letter, teeth, on, front=False):
    return {"letter": letter, "teeth": teeth, "on": on, "front": front}


TRAIN = [_shaft("C", [20], -1), _shaft("A", [40, 10], 0), _shaft("B", [30], 1, True)]


def test_a_compound_train_reduces_twice_and_an_idler_does_not():
    facts = {"asked": 2, "driver": 60, "clockwise": True}
    assert _solved("gears", "turns", shafts=TRAIN, **facts) == "10"
    idler = [_shaft("C", [20], -1), _shaft("A", [40], 0), _shaft("B", [30], 1)]
    assert _solved("gears", "rpm", shafts=idler, **facts) == "40"
    assert _solved("gears", "direction", shafts=idler, **facts) == "BC"
    assert _solved("gears", "direction", shafts=idler, **{**facts, "clockwise": False}) == "A"


def test_the_teeth_that_are_asked_for_are_not_written_down(texts):
    asked = 0
    for seed in range(40):
        texts.clear()
        row = get_task("gears").generate(seed, 3)
        if row["metadata"]["kind"] == "teeth":
            hidden = row["metadata"]["shafts"][row["metadata"]["asked"]]
            at = [text for text, _, _ in texts].index(hidden["letter"])
            assert hidden["teeth"][0] == 0 and texts[at + 1][0] in ("?", str(hidden["teeth"][-1]))
            assert "?" in [text for text, _, _ in texts]
            asked += 1
    assert asked >= 5


# --- drawings -----------------------------------------------------------------------------------


def _is_told(known, asked, holes):
    """Whether the span ``asked`` follows from the ``known`` ones and equal gaps of ``holes``."""
    places = sorted({round(v) for span in [*known, asked] for v in span} | set(holes))
    row_of = {place: i for i, place in enumerate(places)}

    def difference(*signed):
        row = np.zeros(len(places))
        for place, sign in signed:
            row[row_of[round(place)]] += sign
        return row

    rows = [difference((b, 1), (a, -1)) for a, b in known]
    gaps = zip(holes, holes[1:], holes[2:], strict=False)
    rows += [difference((a, 1), (b, -2), (c, 1)) for a, b, c in gaps]
    target = difference((asked[1], 1), (asked[0], -1))
    rank = np.linalg.matrix_rank
    return rank(np.array(rows)) == rank(np.array([*rows, target]))


def test_dimensions_that_are_given_lead_to_the_one_that_is_asked_for(monkeypatch):
    spans, holes = [], []
    dimension, disc = _Look.dimension, Canvas.disc

    def noted(self, a, b, away, text, axis=1):
        spans.append((1 - axis, (a[1 - axis], b[1 - axis]), text))
        dimension(self, a, b, away, text, axis)

    def drilled(self, centre, *more):
        holes.append(round(centre[0]))
        disc(self, centre, *more)

    monkeypatch.setattr(_Look, "dimension", noted)
    monkeypatch.setattr(Canvas, "disc", drilled)
    for seed in range(150):
        spans.clear()
        holes.clear()
        row = get_task("drawings").generate(seed, 1 + seed % 5)
        facts = row["metadata"]
        if facts["kind"] == "holes":
            continue
        known = [[s for axis, s, text in spans if axis == k and text != "?"] for k in (0, 1)]
        if facts["kind"] == "area":
            corners = zip(*facts["outline"], strict=True)
            asked = [(k, pair) for k, values in enumerate(corners) for pair in pairwise(values)]
        else:
            asked = [(axis, span) for axis, span, text in spans if text == "?"]
            assert len(asked) == 1
        for axis, span in asked:
            # Without the one hidden dimension there is nothing to derive from at all.
            assert _is_told(known[axis], span, holes if facts["kind"] == "spacing" else []), seed


def test_windows_are_taken_off_the_face_and_a_scale_goes_from_part_to_paper():
    square = [[0.0, 0.0], [40.0, 0.0], [40.0, 40.0], [0.0, 40.0]]
    hole = [[10.0, 10.0], [20.0, 10.0], [20.0, 30.0], [10.0, 30.0]]
    facts = {"unit": 2.0, "grain": 1.0}
    assert _solved("drawings", "area", outline=square, windows=[hole], **facts) == "350"
    ends = [[0.0, 0.0], [0.0, 40.0]]
    assert _solved("drawings", "scale", ends=ends, scale=[1, 5], **facts) == "4"
    assert _solved("drawings", "scale", ends=ends, scale=[5, 1], **facts) == "100"


# --- slopes and pulleys -------------------------------------------------------------------------


def test_a_level_push_presses_the_block_on_the_slope_and_a_rope_lifts_it():
    slope = {"foot": [0.0, 300.0], "top": [400.0, 0.0], "mass": 5.0, "mu": 0.5, "g": 10.0}
    still = {**slope, "push": 0.0, "toward": [0.0, 0.0]}
    kinds = ("normal", "friction", "force", "acceleration")
    assert [_solved("inclines", kind, **still) for kind in kinds] == ["40", "20", "50", "2"]
    level = {**slope, "push": 100.0, "toward": [1.0, 0.0]}
    assert _solved("inclines", "normal", **level) == "100"
    assert _solved("inclines", "acceleration", **level) == "0"
    assert _solved("inclines", "normal", **{**slope, "push": 10.0, "toward": [0.0, -1.0]}) == "32"


@pytest.mark.parametrize("name", ["inclines", "pulleys"])
def test_masses_and_friction_stand_in_the_picture(name, texts):
    for seed in range(40):
        texts.clear()
        row = get_task(name).generate(seed, 1 + seed % 5)
        said = " ".join(text for text, _, _ in texts)
        facts = row["metadata"]
        for body in facts.get("bodies") or [facts]:
            for mass in facts.get("loads") or [body["mass"]]:
                assert not mass or f"{mass:g} kg" in said
            assert not body.get("mu") or f"mu = {body['mu']:g}" in said
        assert f"g = {facts['g']:g} m/s^2" in row["problem"]


def test_masses_on_a_rope_share_one_acceleration():
    def body(mass, place, mu=0.0):
        return {"mass": mass, "place": place, "mu": mu}

    atwood = {"bodies": [body(3.0, "left"), body(2.0, "right")], "asked": 0, "g": 10.0}
    assert _solved("pulleys", "acceleration", **atwood) == "2"
    assert _solved("pulleys", "tension", **atwood) == "24"
    bodies = [body(2.0, "left"), body(4.0, "table", 0.5), body(10.0, "right")]
    table = {"bodies": bodies, "g": 10.0}
    assert _solved("pulleys", "acceleration", asked=0, **table) == "3.75"
    assert _solved("pulleys", "tension", asked=1, **table) == "62.5"


def test_strands_that_hang_below_the_ring_do_not_carry():
    facts = {"loads": [30.0, 6.0], "g": 10.0, "rise": 2.0, "ring": 176.0}
    ends = [70.0, 70.0, 70.0, 190.0]
    assert _solved("pulleys", "force", strand_ends=ends, **facts) == "120"
    assert _solved("pulleys", "rope", strand_ends=ends, **facts) == "6"


# --- optics -------------------------------------------------------------------------------------


def test_rays_at_mirrors_and_in_layers():
    half, root = 0.5, math.sqrt(3) / 2
    corner = {"ray": [half, root], "mirrors": [[1.0, 0.0], [0.0, 1.0]]}
    assert _solved("optics", "mirror", to_normal=True, **corner) == "60"
    assert _solved("optics", "mirror", to_normal=False, **corner) == "30"
    layers = {"ray": [half, root], "indices": [1.0, 1.77, 1.0]}
    assert _solved("optics", "refraction", to_normal=True, **layers) == "30"
    thick = {"ray": [half, root], "indices": [1.5, 1.0]}
    assert _solved("optics", "refraction", to_normal=False, **thick) == "41.41"


@pytest.mark.parametrize(
    "focal, far, distance, size",
    [(10.0, 30.0, "15", "2"), (10.0, 5.0, "10", "8"), (-10.0, 10.0, "5", "2")],
)
def test_real_virtual_and_diverging_lenses(focal, far, distance, size):
    facts = {"focal": focal, "object": far, "height": 4.0}
    assert _solved("optics", "image", **facts) == distance
    assert _solved("optics", "size", **facts) == size
