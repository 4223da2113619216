"""Numbers with units, with conversions worked out by hand."""

import pickle

import pytest

from foveal.rewards import quantity_within, resolve
from foveal.rewards.units import LONGEST, read_unit


def score(text, reference, **settings):
    (value,) = quantity_within(**settings)([f"<answer>{text}</answer>"], answer=[reference])
    return value


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("12 cm", "0.12 m"),
        (r"$0.12\,\text{m}$", "12 cm"),
        ("x = 1.2e5 µm.", "12 cm"),
        ("120 millimetres", "12 Centimeter"),
        ("36 km/h", "10 m s^-1"),
        (r"10\ \mathrm{m}\cdot\mathrm{s}^{-1}", "36 kilometers per hour"),
        (r"10 \frac{\text{m}}{\text{s}}", "10 m/s"),
        ("9.81 m/s²", "9.81 N/kg"),
        ("5 kJ/(kg K)", "5000 J kg⁻¹ K⁻¹"),
        ("1 W/m^2/K", r"1 \frac{W}{m^2 K}"),
        (r"180^\circ", "3.14159 rad"),
        ("20 °C", r"20^{\circ}\text{C}"),
        ("1 kWh", "3.6 MJ"),
        ("4.7 kΩ", "4700 ohms"),
        ("250 mL", "0.25 l"),
        ("3 feet", "1 yd"),
        ("12%", "0.12"),
        ("−3 mA", "-0.003 A"),
        ("7", "7"),
    ],
)
def test_the_ways_to_write_a_quantity(text, reference):
    assert score(text, reference) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cm",
        "12",  # which unit?
        "12 m",
        "12 mm",
        "12 cm^2",
        "12 kg",
        "12 °C",
        "12 quux",
        "12 cm or m",
        "12 cm 12 cm",
        "12 cm = 0.12 m",
        "12 or 13 cm",
        "12 cm/",
        "12 cm)",
        "12 (cm",
        "12 cm/cm",
        "12%",
        "12² cm",
        "nan cm",
        "inf cm",
        "1e400 cm",
        "12 " + "cm " * 1000,
        "12 " + "(" * 50 + "cm",
        "12 " + "km^9 km^9 km^9 km^9 km^9 km^9",
        "9" * 100_000 + " cm",
    ],
)
def test_no_unit_another_or_several_earn_nothing(text):
    assert score(text, "12 cm") == 0.0
    assert score(text, "12 cm", rel_tol=0.05) == 0.0


def test_a_number_alone_counts_only_if_units_are_not_needed():
    assert score("12", "12 cm", needs_unit=False) == 1.0
    assert score("0.12", "12 cm", needs_unit=False) == 0.0
    assert score("12 m", "12 cm", needs_unit=False) == 0.0
    assert score("12 cm", "12") == 0.0
    assert score("12", "12%") == 0.0
    assert score("20 °C", "293.15 K") == 0.0


def test_tolerances_are_in_the_unit_of_the_reference():
    assert [score(t, "100 cm", rel_tol=0.05) for t in ("1.05 m", "1.06 m")] == [1.0, 0.0]
    assert [score(t, "100 cm", rel_tol=0.0, abs_tol=1) for t in ("0.99 m", "0.98 m")] == [1.0, 0.0]


def test_a_reference_without_a_known_unit_is_skipped_and_settings_are_checked():
    assert score("12 apples", "12 apples") is None
    assert score("12 cm", "about twelve") is None
    with pytest.raises(ValueError, match="rel_tol is -1"):
        resolve("quantity_within(rel_tol=-1)")
    reward = resolve("quantity_within(needs_unit=False)")
    assert pickle.loads(pickle.dumps(reward)) == reward
    assert reward.__name__ == "quantity_within"


def test_symbols_that_look_like_a_prefix_are_read_as_themselves():
    by_hand = {
        "min": 60,
        "mm": 1e-3,
        "Pa": 1,
        "pA": 1e-12,
        "cd": 1,
        "Mg": 1e3,
        "mg": 1e-6,
        "ft": 0.3048,
    }
    read = {name: read_unit(name) for name in by_hand}
    assert {name: unit and unit.factor for name, unit in read.items()} == pytest.approx(by_hand)
    assert read_unit("x" * (LONGEST + 1)) is None
