"""Compares options: recommendation, Pareto front, buying against renting, effect of more workers. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from yolojob.api.time_parts import TimePart
from yolojob.estimation.assumptions import Assumptions
from yolojob.estimation.estimate import Basis
from yolojob.estimation.option import Option
from yolojob.estimation.prediction import Prediction
from yolojob.format import money_amount, rough_duration


def pareto(options: list[Option]) -> list[Option]:
    """The Pareto front of the options with a price, the fastest first: no other option is both faster and cheaper."""
    priced = [o for o in options if o.cost is not None]

    def is_dominated(option: Option) -> bool:
        assert option.cost is not None
        return any(
            other.seconds <= option.seconds
            and (other.cost or 0.0) <= option.cost
            and (other.seconds, other.cost) != (option.seconds, option.cost)
            for other in priced
        )

    return sorted((o for o in priced if not is_dominated(o)), key=lambda o: o.seconds)


def recommend(options: list[Option], assumptions: Assumptions) -> str:
    """The recommendation and its assumptions, as text."""
    allowed = [o for o in options if o.stays or not assumptions.must_stay_here]
    if not allowed:
        return "None of these: the data must stay at this site (mustStayHere), and all options are off-site."
    front = pareto(allowed)
    if not front:
        fastest = min(allowed, key=lambda o: o.seconds)
        return (
            f"{fastest.name} is the fastest with {time_and_cost(fastest)}; the cheapest is unknown: "
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
        sentence += f"; not considered for lack of a price: {', '.join(unpriced)}"
    bases = {o.predicted.total.basis for o in (fastest, cheapest)}
    basis_text = "measured" if bases == {Basis.MEASURED} else " and ".join(sorted(b.value for b in bases))
    terms = [f"the times are {basis_text}", *dict.fromkeys(o.bill.price_source for o in (cheapest, fastest))]
    if assumptions.must_stay_here and len(allowed) < len(options):
        terms.append("off-site machines are excluded because the data must stay at this site")
    return f"{sentence}. This assumes: {'; '.join(terms)}; all epochs are trained."


def time_and_cost(option: Option) -> str:
    cost = "no price" if option.cost is None else money_amount(option.cost, option.bill.currency)
    return f"{rough_duration(option.seconds)}, {cost}"


def flattening(scaling: dict[int, Prediction]) -> str:
    """The speed-up by more workers, and what limits it; empty with fewer than two numbers of workers."""
    if len(scaling) < 2:
        return ""
    few, many = min(scaling), max(scaling)
    base, scaled = scaling[few], scaling[many]
    speedup = base.total.value / scaled.total.value
    ideal = many / few
    if speedup > 0.85 * ideal:
        return f"{many} workers are {speedup:.1f} times as fast as {few}: close to the ideal"
    excess = {
        part: estimate.value - (base.parts[part].value / ideal if part in base.parts else 0.0)
        for part, estimate in scaled.parts.items()
    }
    worst = max(excess, key=lambda p: excess[p])
    return (
        f"{many} workers are {speedup:.1f} times as fast as {few}, not {ideal:.0f}: "
        f"{SCALING_LIMITS.get(worst, worst.label)} "
        f"({rough_duration(scaled.parts[worst].value)} of {rough_duration(scaled.total.value)})"
    )


SCALING_LIMITS = {
    TimePart.ALL_REDUCE: "gradients must be reduced among all workers",
    TimePart.DATA_WAIT: "data loading does not get faster",
    TimePart.FORWARD: "a pass has a fixed cost, independent of its number of images",
    TimePart.BACKWARD: "a pass has a fixed cost, independent of its number of images",
    TimePart.LOSS: "a pass has a fixed cost, independent of its number of images",
    TimePart.OPTIMIZER: "every worker executes every optimizer step",
    TimePart.STARTUP: "startup does not get shorter",
    TimePart.STAGING: "every node downloads the dataset",
    TimePart.IMAGE_PULL: "every node pulls the image",
    TimePart.SCHEDULING: "the machines must be provisioned first",
    TimePart.VALIDATION: "validation does not get shorter",
    TimePart.CHECKPOINT: "one worker saves the checkpoints",
    TimePart.RENDEZVOUS: "the workers must find each other",
}


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """Buying against renting, by trainings per month."""

    trainings: list[float]
    curves: dict[str, list[float]]
    """Money per month by option."""
    summary: str
    """Where buying becomes cheaper, as text."""


def break_even(options: list[Option], assumptions: Assumptions) -> BreakEven | None:
    """Costs per month by number of trainings; None without a purchase price, a local option with known power, and a
    rented one with a price."""
    local = next((o for o in options if o.target.is_local), None)
    others = [o for o in options if not o.target.is_local and o.cost is not None]
    if local is None or local.power is None or assumptions.purchase_price is None or not others:
        return None
    monthly = assumptions.purchase_price / (assumptions.years * 12)
    running = (
        local.power.kwh.value * assumptions.electricity_price + assumptions.people_hours_local * assumptions.people_rate
    )
    max_trainings = 2 * assumptions.trainings_per_month
    crossings = {o.name: monthly / ((o.cost or 0.0) - running) for o in others if (o.cost or 0.0) > running}
    max_trainings = max([max_trainings, *(1.3 * count for count in crossings.values())])
    points = [max_trainings * i / 40 for i in range(41)]
    curves = {f"buy ({local.name})": [monthly + running * n for n in points]}
    curves |= {f"rent {o.name}": [(o.cost or 0.0) * n for n in points] for o in others}
    if crossings:
        comparisons = "; ".join(
            f"from {count:.1f} trainings per month on, cheaper than {name}" for name, count in crossings.items()
        )
        summary = f"A machine like this one for {assumptions.purchase_price:g} {local.bill.currency} is, {comparisons}."
        capacity = 730 * 3600 / local.seconds
        summary += f" It can run {capacity:.0f} trainings per month."
    else:
        summary = "Buying never pays off: electricity alone costs more than renting."
    return BreakEven(trainings=points, curves=curves, summary=summary)
