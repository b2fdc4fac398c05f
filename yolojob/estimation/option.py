"""One place for a training, with its time, its money, its energy; and which of several places to choose. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from yolojob.estimation.assumptions import Assumptions
from yolojob.estimation.billing import Bill, Power
from yolojob.estimation.estimate import Basis
from yolojob.estimation.prediction import Prediction
from yolojob.estimation.target import Target

MOST_WORKERS = 8
"""Scaling is shown up to here."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A target, worked out."""

    target: Target
    name: str
    """For people: "local", "2 × g2-standard-4 (gke)"."""
    predicted: Prediction
    bill: Bill
    power: Power | None
    scaling: dict[int, Prediction] = field(default_factory=dict)
    """By number of workers."""
    stays: bool = True
    """Whether the data stays at this place."""

    @property
    def seconds(self) -> float:
        return self.predicted.total.value

    @property
    def cost(self) -> float | None:
        return self.bill.total.value if self.bill.total else None


def pareto(options: list[Option]) -> list[Option]:
    """Those than which no other is both faster and cheaper; of those that have a price."""
    priced = [o for o in options if o.cost is not None]

    def beaten(one: Option) -> bool:
        assert one.cost is not None
        return any(
            other.seconds <= one.seconds
            and (other.cost or 0.0) <= one.cost
            and (other.seconds, other.cost) != (one.seconds, one.cost)
            for other in priced
        )

    return sorted((o for o in priced if not beaten(o)), key=lambda o: o.seconds)


def recommend(options: list[Option], assumed: Assumptions) -> str:
    """One sentence, with what it assumes."""
    allowed = [o for o in options if o.stays or not assumed.must_stay_here]
    if not allowed:
        return "None of these: the data must stay here (mustStayHere), and all of them are elsewhere."
    front = pareto(allowed)
    if not front:
        fastest = min(allowed, key=lambda o: o.seconds)
        return (
            f"{fastest.name} is the fastest with {words_of(fastest)}; which is cheapest nobody can say: "
            f"{fastest.bill.price_words}."
        )
    fastest, cheapest = front[0], min(front, key=lambda o: o.cost or 0.0)
    if fastest is cheapest:
        sentence = f"Take {fastest.name}: it is the fastest and the cheapest, {words_of(fastest)}"
    else:
        saved = cheapest.seconds - fastest.seconds
        more = (fastest.cost or 0.0) - (cheapest.cost or 0.0)
        currency = fastest.bill.currency
        sentence = (
            f"Take {cheapest.name} to save money ({words_of(cheapest)}), or {fastest.name} to save {clock(saved)} for "
            f"{amount(more, currency)} more ({words_of(fastest)})"
        )
    unpriced = [o.name for o in allowed if o.cost is None]
    if unpriced:
        sentence += f"; {', '.join(unpriced)} has no price and is not considered"
    bases = {o.predicted.total.basis for o in (fastest, cheapest)}
    known = "measured" if bases == {Basis.MEASURED} else " and ".join(sorted(b.value for b in bases))
    terms = [f"the times are {known}", *dict.fromkeys(o.bill.price_words for o in (cheapest, fastest))]
    if assumed.must_stay_here and len(allowed) < len(options):
        terms.append("machines elsewhere are left out because the data must stay here")
    return f"{sentence}. This assumes: {'; '.join(terms)}; all epochs are trained."


def words_of(option: Option) -> str:
    cost = "no price" if option.cost is None else amount(option.cost, option.bill.currency)
    return f"{clock(option.seconds)}, {cost}"


def amount(value: float, currency: str) -> str:
    """Money for people: to the hundredth, and of less than one to three digits."""
    return f"{value:.2f} {currency}" if value >= 1 else f"{value:.3g} {currency}"


def clock(seconds: float) -> str:
    """45 s, 12 min, 3.4 h or 2.1 days."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.0f} {name}" if value >= 10 or name == "s" else f"{value:.1f} {name}"
    return f"{seconds / 86400:.1f} days"


def flattening(scaling: dict[int, Prediction]) -> str:
    """Why more workers do not help as they should."""
    if len(scaling) < 2:
        return ""
    few, many = min(scaling), max(scaling)
    one, all_ = scaling[few], scaling[many]
    speedup = one.total.value / all_.total.value
    ideal = many / few
    if speedup > 0.85 * ideal:
        return f"{many} workers are {speedup:.1f} times as fast as {few}: nearly all that there is to gain"
    excess = {
        part: figure.value - (one.parts[part].value / ideal if part in one.parts else 0.0)
        for part, figure in all_.parts.items()
    }
    worst = max(excess, key=lambda p: excess[p])
    return (
        f"{many} workers are {speedup:.1f} times as fast as {few}, not {ideal:.0f}: "
        f"{REASONS.get(worst, worst)} ({clock(all_.parts[worst].value)} of {clock(all_.total.value)})"
    )


REASONS = {
    "all_reduce": "gradients must be reduced among all of them",
    "data_wait": "the data does not come faster",
    "forward": "a pass has costs of its own, however few images it has",
    "backward": "a pass has costs of its own, however few images it has",
    "loss": "a pass has costs of its own, however few images it has",
    "optimizer": "every worker makes every optimizer step",
    "startup": "the start does not get shorter",
    "staging": "every node fetches the data",
    "image pull": "the image has to be pulled",
    "scheduling": "the machines have to come first",
    "validation": "the validation does not get shorter",
    "checkpoint": "one worker saves for all",
    "rendezvous": "they have to find each other",
}


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """Buying against renting, by trainings per month."""

    trainings: list[float]
    curves: dict[str, list[float]]
    """Money per month by option."""
    words: str


def break_even(options: list[Option], assumed: Assumptions) -> BreakEven | None:
    """What each option costs per month, by how many trainings there are; none without a purchase price and a machine here."""
    own = next((o for o in options if o.target.is_local), None)
    others = [o for o in options if not o.target.is_local and o.cost is not None]
    if own is None or own.power is None or assumed.purchase_price is None or not others:
        return None
    monthly = assumed.purchase_price / (assumed.years * 12)
    running = own.power.kwh.value * assumed.electricity_price + assumed.people_hours_local * assumed.people_rate
    most = 2 * assumed.trainings_per_month
    cross = {o.name: monthly / ((o.cost or 0.0) - running) for o in others if (o.cost or 0.0) > running}
    most = max([most, *(1.3 * c for c in cross.values())]) if cross else most
    points = [most * i / 40 for i in range(41)]
    curves = {f"buy ({own.name})": [monthly + running * n for n in points]}
    curves |= {f"rent {o.name}": [(o.cost or 0.0) * n for n in points] for o in others}
    if cross:
        said = "; ".join(f"from {count:.1f} trainings a month on, cheaper than {name}" for name, count in cross.items())
        words = f"A machine like this one for {assumed.purchase_price:g} {own.bill.currency} is, {said}."
        capacity = 730 * 3600 / own.seconds
        words += f" It can make {capacity:.0f} a month."
    else:
        words = "Buying never pays: the electricity alone costs more than renting."
    return BreakEven(trainings=points, curves=curves, words=words)
