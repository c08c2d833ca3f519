"""Units of quantities: "cm", "dollars", "km/h", "m s^-2", "square metres", "apples". Never converted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from dyme.text.normalise import STOP_WORDS, stem

CURRENCIES = {"$": "$ us$ usd dollar dollars", "€": "€ eur euro euros", "£": "£ gbp pound pounds"}
CURRENCIES |= {"¥": "¥ jpy yen", "₹": "₹ inr rs rupee rupees"}
# a word of one letter counts in its own case only: "5 N" has a unit, "5 n" a variable
_UNIT_WORDS = CURRENCIES | {
    "¢": "¢ cent cents",
    "%": "% percent pct percentage",
    "°": "° degree degrees deg",
    "°c": "°c C celsius centigrade",
    "°f": "°f F fahrenheit",
    "nm": "nm nanometer nanometers nanometre nanometres",
    "μm": "μm um micrometer micrometers micrometre micrometres micron microns",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "dm": "dm decimeter decimeters decimetre decimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "inch": "in inch inches '' \"",
    "ft": "ft foot feet '",
    "yd": "yd yard yards",
    "mile": "mi mile miles",
    "mg": "mg milligram milligrams",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms",
    "oz": "oz ounce ounces",
    "lb": "lb lbs pound pounds",
    "ms": "ms millisecond milliseconds",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "am": "am a.m",
    "pm": "pm p.m",
    "ml": "ml milliliter milliliters millilitre millilitres",
    "l": "l L liter liters litre litres",
    "n": "N newton newtons",
    "kn": "kN kilonewton kilonewtons",
    "j": "J joule joules",
    "kj": "kJ kilojoule kilojoules",
    "cal": "cal calorie calories",
    "kcal": "kcal kilocalorie kilocalories",
    "ev": "eV electronvolt electronvolts",
    "w": "W watt watts",
    "kw": "kW kilowatt kilowatts",
    "kwh": "kWh",
    "v": "V volt volts",
    "kv": "kV kilovolt kilovolts",
    "a": "A amp amps ampere amperes",
    "ma": "mA milliamp milliamps milliampere milliamperes",
    "coulomb": "C coulomb coulombs",
    "farad": "F farad farads",
    "ω": "Ω ohm ohms",
    "kω": "kΩ kiloohm kiloohms",
    "tesla": "T tesla",
    "hz": "Hz hertz",
    "khz": "kHz kilohertz",
    "mhz": "MHz megahertz",
    "ghz": "GHz gigahertz",
    "pa": "Pa pascal pascals",
    "kpa": "kPa kilopascal kilopascals",
    "atm": "atm atmosphere atmospheres",
    "kelvin": "K kelvin kelvins",
    "mol": "mol mole moles",
    "molar": "M molar",
    "rad": "rad radian radians",
    "db": "dB decibel decibels",
    "px": "px pixel pixels",
    "pcs": "pc pcs piece pieces",
}
_WRITTEN_OUT = {"kmh": "km/h", "kph": "km/h", "mph": "mi/h", "sqm": "m^2", "sqft": "ft^2", "cc": "cm^3"}
# "5 mW" is not "5 MW"
_CASED = {"mW": "mw", "MW": "megawatt", "mV": "mv", "MPa": "mpa", "MJ": "megajoule", "mJ": "mj", "MB": "mb", "GB": "gb"}

_NO_UNITS = STOP_WORDS | {"total", "altogether", "more", "less"}
_FACTOR = re.compile(
    r"(?:(?P<order>square|cubic|sq|cu)\.? )?"
    r"(?P<word>(?:°|deg(?:ree)?s?) ?(?:[CF]\b|celsius\b|fahrenheit\b)|[ap]\.m\b|[°%$€£¥₹¢]|us\$"
    r"|''(?![\w'])|\"(?!\w)|'(?![\w'])|in(?=\.?$|\^|[23]\b|/)|(?!in\b)[^\W\d_]+)\.?"
    r"(?: ?\^ ?[{(]?(?P<power>[-+]?\d)[)}]?(?!\d)|(?P<digit>[23])(?!\w)|(?P<minus>-\d)(?!\w)"
    r"| (?P<name>squared|cubed)\b)?",
    re.IGNORECASE,
)
_DIVIDED = re.compile(r" ?/ ?(\()?| (?:per|each) ")
_TIMES = re.compile(r" ?[·⋅*×] ?|-(?=[^\W\d_])| ")
_ORDERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}


@dataclass(frozen=True)
class Unit:
    """A unit at the start of a text. `readings` are what it may mean, in canonical units; `end` is where it ends.

    `known` is False for a noun that is counted ("apples").
    """

    readings: frozenset[str]
    end: int
    known: bool


def unit_readings(word: str) -> frozenset[str]:
    """What a unit word may mean, in canonical units ("pounds": "£" or "lb"); an unknown word means its stem."""
    return _known(word) or frozenset((stem(word.casefold()),))


def is_unit(word: str) -> bool:
    """Whether `word` is a unit by itself ("%", "cm"), as opposed to any noun that is counted ("apples")."""
    return _known(word) is not None


def names_unit(word: str) -> bool:
    """Whether `word` may be a unit or a counted noun; "of" and "total" are neither."""
    return (is_unit(word) and word != "in") or (
        word.casefold() not in _NO_UNITS and any(char.isalpha() for char in word)
    )


@lru_cache(maxsize=16384)
def read_unit(text: str) -> Unit | None:
    """The longest unit at the start of `text`, after at most a blank or a hyphen; None where it starts with none.

    Factors may be raised to a power, divided ("/", "per") and multiplied ("·", blank).
    """
    position = 1 if text[:1] in ("-", " ") else 0
    factors: list[tuple[frozenset[str], int]] = []
    sign, known, closing = 1, True, False
    divided = _DIVIDED.match(text)
    if divided and not divided[1]:
        sign, position = -1, divided.end()
    end = position
    while len(factors) < 6 and (match := _FACTOR.match(text, position)):
        readings = _known(_word(match))
        power = int(match["power"] or match["digit"] or (match["minus"] if factors else None) or 1)
        power *= _ORDERS.get((match["order"] or match["name"] or "").casefold(), 1)
        if readings is None:
            if (factors and sign > 0) or power != 1 or not names_unit(match["word"]):
                break
            readings, known = unit_readings(match["word"]), False
        factors += [(reading, each * power * sign) for reading, each in _written_out(readings)]
        end = match.end("word") if match["minus"] and len(factors) == 1 else match.end()
        if closing and text[end : end + 1] == ")":
            end, closing = end + 1, False
        divided = _DIVIDED.match(text, end)
        times = None if divided or not known else _TIMES.match(text, end)
        if divided:
            sign, closing = -1, closing or bool(divided[1])
        elif times:
            sign = sign if closing else 1
        else:
            break
        position = (divided or times).end()  # type: ignore[union-attr]
    if not factors or closing:
        return None
    return Unit(_canonical(factors), end, known)


def _word(match: re.Match[str]) -> str:
    word: str = match["word"]
    if (
        len(word) > 1
        and word[0] in "°dD"
        and (scale := re.search(r"([cf])(?:elsius|ahrenheit)?$", word, re.IGNORECASE))
    ):
        return f"°{scale[1].lower()}" if word[0] == "°" or word.casefold().startswith("deg") else word
    return word


def _known(word: str) -> frozenset[str] | None:
    if len(word) == 1 or word in _CASED:
        return frozenset((_CASED[word],)) if word in _CASED else _READINGS.get(word)
    form = word.casefold()
    return frozenset((form,)) if form in _WRITTEN_OUT else _READINGS.get(form)


def _written_out(readings: frozenset[str]) -> Iterator[tuple[frozenset[str], int]]:
    name = next(iter(readings))
    written = _WRITTEN_OUT.get(name)
    if written is None:
        yield readings, 1
        return
    for sign, part in zip((1, -1), written.split("/"), strict=False):
        word, _, power = part.partition("^")
        yield _READINGS[word], sign * int(power or 1)


def _canonical(factors: list[tuple[frozenset[str], int]]) -> frozenset[str]:
    powers: dict[str, int] = {}
    for readings, power in factors:
        name = "|".join(sorted(readings))
        powers[name] = powers.get(name, 0) + power
    if len(powers) == 1 and set(powers.values()) == {1}:
        return factors[0][0]
    return frozenset((" ".join(f"{name}^{power}" for name, power in sorted(powers.items()) if power),))


def _readings() -> dict[str, frozenset[str]]:
    table: dict[str, frozenset[str]] = {}
    for unit, spellings in _UNIT_WORDS.items():
        for spelling in spellings.split():
            form = spelling if len(spelling) == 1 else spelling.casefold()
            table[form] = table.get(form, frozenset()) | {unit}
    return table


_READINGS = _readings()
