"""Durations, sizes, amounts of money and metrics as text for people."""

from __future__ import annotations

from collections.abc import Mapping


def printable(text: str) -> str:
    """Text of others with its control characters visible: in a terminal they could move the cursor, or write into the
    clipboard. Line breaks and tabs stay."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in text
    )


def money_amount(value: float, currency: str) -> str:
    """An amount with two decimals; amounts below 1 with three significant digits."""
    return f"{value:.2f} {currency}" if value >= 1 else f"{value:.3g} {currency}"


def rough_duration(seconds: float) -> str:
    """45 s, 12 min, 3.4 h or 2.1 days."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.0f} {name}" if value >= 10 or name == "s" else f"{value:.1f} {name}"
    return f"{seconds / 86400:.1f} days"


def duration(seconds: float) -> str:
    """1:02:03, 4:05 or 6.7 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def coarse_age(seconds: float) -> str:
    """45s, 12m, 3h or 2d: at most four characters, as kubectl prints ages."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "m"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds // unit:.0f}{name}"
    return f"{seconds // 86400:.0f}d"


def byte_size(count: float) -> str:
    """Bytes in binary units, as in Kubernetes: 1.5 GiB."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            break
        count, unit = count / 1024, larger
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def short_duration(seconds: float) -> str:
    """12.3 ms, or `duration` from one second on."""
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else duration(seconds)


def time_unit(longest: float) -> tuple[str, float]:
    """(name, factor from seconds) of the most readable unit for times up to `longest` seconds."""
    return ("s", 1.0) if longest < 300 else ("minutes", 1 / 60) if longest < 18000 else ("hours", 1 / 3600)


def metrics_line(metrics: Mapping[str, float]) -> str:
    """Metrics with three decimals: mAP50 0.912, mAP50-95 0.713; empty without any."""
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
