r"""Units of physical quantities: ``cm``, ``m/s^2``, ``J/(kg K)``, ``\text{kg}\cdot\text{m}^2``.

Each is a factor to SI units and the exponents of their base units. SI prefixes go with the symbols
and names that take them. Degrees Celsius and Fahrenheit are kinds of their own: nothing is
converted to kelvin.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field

LONGEST = 60
"""Characters of a unit; longer text is none."""


@dataclass(frozen=True)
class Unit:
    """``factor`` times the product of SI base units, each to its exponent; ``Unit()`` is 1."""

    factor: float = 1.0
    exponents: Counter[str] = field(default_factory=Counter)

    def times(self, other: Unit, power: int) -> Unit:
        """This unit times the ``power``-th power of another."""
        exponents = Counter(self.exponents)
        for base, exponent in other.exponents.items():
            exponents[base] += exponent * power
        kept = Counter({base: exponent for base, exponent in exponents.items() if exponent})
        return Unit(self.factor * other.factor**power, kept)


# Symbol, factor, base units (of SI where there is no factor before), names.
_WITH_PREFIX = """
    m 1 m metre meter|g 1e-3 kg gram gramme|s 1 s second sec|A 1 A ampere amp|K 1 K kelvin
    |mol 1 mol mole|cd 1 cd candela|rad 1 rad radian|Hz 1 s-1 hertz|N 1 kg.m.s-2 newton
    |Pa 1 kg.m-1.s-2 pascal|J 1 kg.m2.s-2 joule|W 1 kg.m2.s-3 watt|C 1 A.s coulomb
    |V 1 kg.m2.s-3.A-1 volt|F 1 A2.s4.kg-1.m-2 farad|Ω 1 kg.m2.s-3.A-2 ohm
    |S 1 A2.s3.kg-1.m-2 siemens|H 1 kg.m2.s-2.A-2 henry|T 1 kg.s-2.A-1 tesla
    |Wb 1 kg.m2.s-2.A-1 weber|L 1e-3 m3 litre liter|eV 1.602176634e-19 kg.m2.s-2 electronvolt
    |bar 1e5 kg.m-1.s-2 bar|cal 4.184 kg.m2.s-2 calorie|Wh 3600 kg.m2.s-2 watthour"""
_WITHOUT = """
    min 60 s minute|h 3600 s hour hr|d 86400 s day|t 1e3 kg tonne|in 0.0254 m inch
    |ft 0.3048 m foot|yd 0.9144 m yard|mi 1609.344 m mile|lb 0.45359237 kg pound
    |oz 0.028349523125 kg ounce|atm 101325 kg.m-1.s-2 atmosphere|mmHg 133.322387415 kg.m-1.s-2 torr
    |° 0.017453292519943295 rad degree deg|°C 1 degC celsius|°F 1 degF fahrenheit
    |ha 1e4 m2 hectare|Å 1e-10 m angstrom|kph 0.2777777777777778 m.s-1 kmh|mph 0.44704 m.s-1 mph"""
_PREFIXES = {
    **{"p": 1e-12, "n": 1e-9, "µ": 1e-6, "m": 1e-3, "c": 1e-2, "d": 1e-1, "h": 1e2, "k": 1e3},
    **{"M": 1e6, "G": 1e9, "T": 1e12},
}
_PREFIX_NAMES = {
    **{"pico": "p", "nano": "n", "micro": "µ", "milli": "m", "centi": "c", "deci": "d"},
    **{"hecto": "h", "kilo": "k", "mega": "M", "giga": "G", "tera": "T"},
}


def _read_table(table: str) -> tuple[dict[str, Unit], dict[str, Unit]]:
    """Units by symbol, and by name in lower case."""
    symbols: dict[str, Unit] = {}
    names: dict[str, Unit] = {}
    for line in table.split("|"):
        symbol, factor, bases, *words = line.split()
        unit = Unit(float(factor))
        for base in bases.split("."):
            name, power = re.fullmatch(r"([A-Za-z]+)(-?\d)?", base).groups()  # type: ignore[union-attr]
            unit = unit.times(Unit(1.0, Counter({name: 1})), int(power or 1))
        symbols[symbol] = unit
        names.update(dict.fromkeys(words, unit))
    return symbols, names


_PREFIXED, _PREFIXED_NAMES = _read_table(_WITH_PREFIX)
_SYMBOLS, _NAMES = _read_table(_WITHOUT)
_SYMBOLS = _PREFIXED | _SYMBOLS
_NAMES = _PREFIXED_NAMES | _NAMES | {"feet": _NAMES["foot"], "inches": _NAMES["inch"]}

_SPELLINGS = {
    **{r"\cdot": "*", r"\times": "*", r"^{\circ}": "°", r"^\circ": "°", r"\circ": "°"},
    **{r"\degree": "°", r"\mu": "µ", "μ": "µ", r"\Omega": "Ω", "\u2126": "Ω", "\u212b": "Å"},
    **dict.fromkeys((r"\,", r"\;", r"\:", r"\!", r"\ ", "~", "$"), " "),
}
_SPELLING = re.compile("|".join(re.escape(s) for s in sorted(_SPELLINGS, key=len, reverse=True)))
_WRAPPED = re.compile(r"\\(?:text|textrm|mathrm|operatorname)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_RAISED = str.maketrans("⁺⁻¹²³⁴⁵⁶⁷⁸⁹", "+-123456789")
_PART = re.compile(
    r"""\s*(?:(?P<over>/|per\b)|(?P<times>[*·⋅×])|(?P<open>\()|(?P<close>\))
    |(?P<name>°\s*[CF]\b|°|[A-Za-zµΩÅ]+)
     (?:\s*(?:\^|\*\*)\s*\{?(?P<power>[-+−]?\d)\}?|(?P<raised>[⁺⁻]?[¹²³⁴-⁹])|(?P<digit>[2-4]))?)""",
    re.VERBOSE,
)


def read_unit(text: str) -> Unit | None:
    """The unit that ``text`` is as a whole, ``Unit()`` for none at all, None for anything else.

    After a slash or "per" the next unit, or the next parentheses, stand below the line:
    ``W/m^2 K`` is W K/m^2.
    """
    if len(text) > LONGEST:
        return None
    text = _FRACTION.sub(r"\1/(\2)", _WRAPPED.sub(r"\1", text))
    text = _SPELLING.sub(lambda found: _SPELLINGS[found[0]], text).strip(" *`").rstrip(". ")
    unit, signs, below, place = Unit(), [1], False, 0
    while place < len(text):
        part = _PART.match(text, place)
        if part is None:
            return None
        place = part.end()
        if part["over"]:
            below = True
        elif part["open"]:
            signs.append(-signs[-1] if below else signs[-1])
            below = False
        elif part["close"]:
            signs.pop()
            if not signs:
                return None
        elif part["name"]:
            named = _named("".join(part["name"].split()))
            if named is None:
                return None
            unit = unit.times(named, _power(part) * (-signs[-1] if below else signs[-1]))
            below = False
    return unit if len(signs) == 1 and not below and 0 < unit.factor < math.inf else None


def _power(part: re.Match[str]) -> int:
    written = part["power"] or part["raised"] or part["digit"] or "1"
    return int(written.translate(_RAISED).replace("−", "-"))


def _named(name: str) -> Unit | None:
    """The unit of one symbol (case counts) or name (it does not)."""
    if name in _SYMBOLS:
        return _SYMBOLS[name]
    if name[:1] in _PREFIXES and name[1:] in _PREFIXED:
        return Unit(_PREFIXES[name[0]]).times(_PREFIXED[name[1:]], 1)
    word = name.casefold()
    for spelled in (word, word.removesuffix("s")):
        if spelled in _NAMES:
            return _NAMES[spelled]
        for prefix, symbol in _PREFIX_NAMES.items():
            if spelled.startswith(prefix) and spelled[len(prefix) :] in _PREFIXED_NAMES:
                return Unit(_PREFIXES[symbol]).times(_PREFIXED_NAMES[spelled[len(prefix) :]], 1)
    return {"l": _SYMBOLS["L"], "ml": Unit(1e-3).times(_SYMBOLS["L"], 1)}.get(word)
