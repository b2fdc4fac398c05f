"""Durations, sizes and amounts of money as text for people."""

from __future__ import annotations


def money_amount(value: float, currency: str) -> str:
    """Money for people: to the hundredth, and of less than one to three digits."""
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


def byte_size(count: float) -> str:
    """Bytes for people, in binary units as Kubernetes has them: 1.5 GiB."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            break
        count, unit = count / 1024, larger
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def short_duration(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else duration(seconds)


def time_unit(longest: float) -> tuple[str, float]:
    """(name, factor from seconds) of the unit in which such times are read best."""
    return ("s", 1.0) if longest < 300 else ("minutes", 1 / 60) if longest < 18000 else ("hours", 1 / 3600)
