"""Chooses between options: the recommendation, the Pareto front, buying against renting, the effect of more workers. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from yolojob.api.time_parts import TimePart
from yolojob.estimation.assumptions import Assumptions
from yolojob.estimation.estimate import Basis
from yolojob.estimation.option import Option
from yolojob.estimation.prediction import Prediction
from yolojob.format import money_amount, rough_duration


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
            f"{fastest.name} is the fastest with {time_and_cost(fastest)}; which is cheapest nobody can say: "
            f"{fastest.bill.price_source}."
        )
    fastest, cheapest = front[0], min(front, key=lambda o: o.cost or 0.0)
    if fastest is cheapest:
        sentence = f"Take {fastest.name}: it is the fastest and the cheapest, {time_and_cost(fastest)}"
    else:
        saved = cheapest.seconds - fastest.seconds
        more = (fastest.cost or 0.0) - (cheapest.cost or 0.0)
        currency = fastest.bill.currency
        sentence = (
            f"Take {cheapest.name} to save money ({time_and_cost(cheapest)}), or {fastest.name} to save "
            f"{rough_duration(saved)} for {money_amount(more, currency)} more ({time_and_cost(fastest)})"
        )
    unpriced = [o.name for o in allowed if o.cost is None]
    if unpriced:
        sentence += f"; {', '.join(unpriced)} has no price and is not considered"
    bases = {o.predicted.total.basis for o in (fastest, cheapest)}
    known = "measured" if bases == {Basis.MEASURED} else " and ".join(sorted(b.value for b in bases))
    terms = [f"the times are {known}", *dict.fromkeys(o.bill.price_source for o in (cheapest, fastest))]
    if assumed.must_stay_here and len(allowed) < len(options):
        terms.append("machines elsewhere are left out because the data must stay here")
    return f"{sentence}. This assumes: {'; '.join(terms)}; all epochs are trained."


def time_and_cost(option: Option) -> str:
    cost = "no price" if option.cost is None else money_amount(option.cost, option.bill.currency)
    return f"{rough_duration(option.seconds)}, {cost}"


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
        f"{SCALING_LIMITS.get(worst, worst.label)} "
        f"({rough_duration(all_.parts[worst].value)} of {rough_duration(all_.total.value)})"
    )


SCALING_LIMITS = {
    TimePart.ALL_REDUCE: "gradients must be reduced among all of them",
    TimePart.DATA_WAIT: "the data does not come faster",
    TimePart.FORWARD: "a pass has costs of its own, however few images it has",
    TimePart.BACKWARD: "a pass has costs of its own, however few images it has",
    TimePart.LOSS: "a pass has costs of its own, however few images it has",
    TimePart.OPTIMIZER: "every worker makes every optimizer step",
    TimePart.STARTUP: "the start does not get shorter",
    TimePart.STAGING: "every node fetches the data",
    TimePart.IMAGE_PULL: "the image has to be pulled",
    TimePart.SCHEDULING: "the machines have to come first",
    TimePart.VALIDATION: "the validation does not get shorter",
    TimePart.CHECKPOINT: "one worker saves for all",
    TimePart.RENDEZVOUS: "they have to find each other",
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
