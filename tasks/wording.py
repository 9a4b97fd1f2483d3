"""How numbers are written. Changes are in points (hundredths); a missing number is a dash, never a 0."""

from __future__ import annotations

import re
from collections.abc import Mapping

MISSING = "–"
BASE = "base"  # the model without an adapter


def share(value: float | None) -> str:
    """A share as percent: 74.7."""
    return MISSING if value is None else f"{100 * value:.1f}"


def percent(value: float | None) -> str:
    """A share with its sign: 74.7 %."""
    return MISSING if value is None else f"{100 * value:.1f} %"


def signed(value: float | None) -> str:
    """A change in points: +25.1, and 0.0 without a sign."""
    if value is None:
        return MISSING
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def interval(low: float | None, high: float | None, *, sign: bool) -> str:
    """The interval of a share, or with `sign` of a change: [+0.4, +3.1]. Empty where an end is missing."""
    if low is None or high is None:
        return ""
    write = signed if sign else share
    return f"[{write(low)}, {write(high)}]"


def nats(value: float | None) -> str:
    """Nats a token, three digits: 0.0312."""
    return MISSING if value is None else f"{value:#.3g}" if value else "0"


def nats_interval(low: float | None, high: float | None) -> str:
    """An interval in nats a token. Empty where an end is missing."""
    return "" if low is None or high is None else f"[{nats(low)}, {nats(high)}]"


def p_value(p: float | None) -> str:
    """Three digits below 0.1, two from there on: p = 0.032."""
    if p is None:
        return MISSING
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def stars(p: float | None, *, confidence: float) -> str:
    """Marks of significance of an adjusted p-value: * below 1 - confidence, ** below 0.01, *** below 0.001."""
    if p is None or p >= 1 - confidence:
        return ""
    return "***" if p < 0.001 else "**" if p < 0.01 else "*"


def count(n: float | None) -> str:
    """A whole number with commas between the thousands: 1,600."""
    return MISSING if n is None else f"{n:,.0f}"


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Counts of a step, rows first and without zeros: `1,600 rows in, 1,583 rows out, 17 dropped too long`."""
    rows = {name: counts[name] for name in ("rows_in", "rows_out") if name in counts}  # a manifest sorts by name
    said = (f"{n:,} {re.sub(r'[._]+', ' ', name)}" for name, n in {**rows, **counts}.items() if n)
    return ", ".join(said) or "nothing to count"


def rate(learning_rate: float) -> str:
    """A learning rate: 0.0005 as 5e-4."""
    mantissa, exponent = f"{learning_rate:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def setting(value: object) -> str:
    """The value of a training option: a float below 0.01 as 5e-4, any other number as short as it is exact."""
    if isinstance(value, float):
        return rate(value) if 0 < value < 0.01 else f"{value:g}"
    return str(value)


def seconds(value: float | None) -> str:
    """A duration in its two largest units: 1 h 3 min, 3 min 20 s, or 4.2 s."""
    if value is None:
        return MISSING
    minutes, rest = divmod(value, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest:.0f} s" if minutes else f"{rest:.1f} s"


def listed(names: list[str]) -> str:
    """Names in a sentence: a, b and c. There must be one."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def level(confidence: float) -> str:
    """The level of an interval: 95 %."""
    return f"{100 * confidence:g} %"
