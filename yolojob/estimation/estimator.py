"""Targets worked out into options: from measurements where there are any, else from the catalogue. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from yolojob.api.errors import UserError
from yolojob.api.measurement import DataFacts, Link, Measurement, ModelProfile
from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.api.time_parts import known_part
from yolojob.catalogue.machines import Accelerator, Catalogue, Machine
from yolojob.catalogue.prices import price_of
from yolojob.estimation import billing, prediction, roofline
from yolojob.estimation.assumptions import Assumptions
from yolojob.estimation.bench_records import Record, best
from yolojob.estimation.billing import Bill, Power
from yolojob.estimation.estimate import Basis, Estimate
from yolojob.estimation.option import MOST_WORKERS, Option
from yolojob.estimation.prediction import Prediction
from yolojob.estimation.target import PROVIDERS, Target

ETHERNET = 10.0
"""Gbit/s between the nodes of a cluster, where only one worker was measured. Assumed."""


class CannotEstimate(UserError):
    """Nothing can be said of a target; the words say what is missing."""


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """What is known of one job."""

    spec: YoloTrainingJobSpec
    model_profile: ModelProfile
    data: DataFacts
    known: Catalogue
    assumed: Assumptions
    records: list[Record] = field(default_factory=list)

    def option(self, target: Target) -> Option:
        """Work out a target.

        Raises:
            CannotEstimate: it was not measured, and is not in the catalogue.
            DoesNotFit: the job does not fit into its memory.
        """
        workers = target.workers or self.spec.workers.replicas
        counts = sorted({*range(1, MOST_WORKERS + 1), workers})
        if target.is_measurable:
            record = best(self.records, target.place, workers)
            if record is None:
                raise CannotEstimate(f"{target.text}: not measured yet: yolojob bench FILE --on {target.text}")
            return self._measured(target, record, workers, counts)
        return self._predicted(target, workers, counts)

    # --- measured places ------------------------------------------------------------------------------------------

    def _measured(self, target: Target, record: Record, workers: int, counts: list[int]) -> Option:
        measured = record.measurement
        # Where each has a GPU of its own, they hardly meet.
        shared = target.is_local and measured.host.gpu is None
        waits = {known_part(p): Estimate.within(seconds, 0.5, Basis.MEASURED) for p, seconds in record.waits.items()}

        def predict(count: int) -> Prediction:
            link = None
            if not target.is_local and (measured.link is None or measured.link.between == "processes"):
                link = Link(
                    between="workers",
                    latency_seconds=2e-4,
                    bytes_per_second=ETHERNET * 1e9 / 8 * roofline.EFFICIENCY,
                )
            return prediction.predict_from_bench(
                self.spec,
                measured,
                workers=count,
                shared=shared,
                cached=target.is_local,
                waits=waits,
                link=link,
            )

        predicted = predict(workers)
        power = self._power(target, measured, predicted)
        return Option(
            target=target,
            name=_many(workers, target.place),
            predicted=predicted,
            bill=self._bill(target, record, predicted, power),
            power=power,
            scaling={count: predict(count) for count in counts if count <= self.spec.train.batch},
        )

    def _power(self, target: Target, measured: Measurement, predicted: Prediction) -> Power | None:
        if measured.energy is not None:
            words = {"nvml": "the GPUs' own counters", "rapl": "the CPU packages' own counters (RAPL)"}[
                measured.energy.source
            ]
            watts = measured.energy.watts * (1 if target.is_local else predicted.workers)
            return billing.energy(predicted, watts, words, self.assumed, Basis.MEASURED)
        if target.is_local and self.assumed.watts is not None:
            return billing.energy(
                predicted, self.assumed.watts, f"{self.assumed.watts:g} W, as told", self.assumed, Basis.PREDICTED
            )
        return None

    def _bill(self, target: Target, record: Record, predicted: Prediction, power: Power | None) -> Bill:
        if target.is_local:
            return billing.owned(predicted, power, self.assumed, self.known.currency)
        price, currency, words = record.per_worker_hour, record.currency, record.price_source
        if target.machine is not None:
            found = price_of(_unpriced(self.spec), target.machine, spot=self.spec.pricing.spot, known=self.known)
            price, currency, words = found.per_worker_hour, found.currency, found.words
        return self._rent(predicted, price, currency or self.known.currency, words)

    # --- machines of the catalogue --------------------------------------------------------------------------------

    def _predicted(self, target: Target, workers: int, counts: list[int]) -> Option:
        assert target.machine is not None
        machine = self.known.machine(target.machine)
        gpu = self.known.accelerators.get(machine.gpu)
        if gpu is None or not machine.gpus:
            raise CannotEstimate(
                f"{target.text}: what {machine.gpu or 'a machine without GPUs'} can do is not in the catalogue: measure it "
                f"(yolojob bench FILE --on CONTEXT), or add it to accelerators in a file for --catalogue"
            )
        if self.data.images is None:
            raise CannotEstimate(f"{target.text}: how many images the data set has is not known yet: --images N")
        samples = next((r.measurement.rates.samples_per_core for r in self.records), None)

        def predict(count: int) -> Prediction:
            return roofline.predict_from_roofline(
                self.spec,
                self.model_profile,
                self.data,
                machine,
                gpu,
                workers=count,
                assumed=self.assumed,
                samples_per_core=samples,
                calibration=self._calibration(),
            )

        predicted = predict(workers)
        provider = next((p for p, owner in PROVIDERS.items() if owner == machine.provider), machine.provider)
        power = billing.energy(
            predicted,
            (gpu.watts * machine.gpus + self.assumed.host_watts) * workers,
            f"data sheet: {gpu.watts:g} W for each GPU, and {self.assumed.host_watts:g} W beside them",
            self.assumed,
            Basis.PREDICTED,
        )
        spot = self.spec.pricing.spot
        price, words = self._price(machine, target.machine, spot)
        return Option(
            target=target,
            name=f"{_many(workers, target.machine)} ({provider})",
            predicted=predicted,
            bill=self._rent(predicted, price, self.known.currency, words, spot=spot),
            power=power,
            scaling={
                n: predict(n)
                for n in counts
                if n * machine.gpus <= self.spec.train.batch and self._fits(n, machine, gpu)
            },
            stays=False,
        )

    def _fits(self, workers: int, machine: Machine, gpu: Accelerator) -> bool:
        share = -(-min(self.spec.train.batch, self.data.images or 1) // (workers * machine.gpus))
        return self.model_profile.memory(share) <= gpu.memory * 1e9 * 0.95

    def _calibration(self) -> roofline.Calibration | None:
        """From a bench of this job on a GPU that the catalogue knows."""
        for record in self.records:
            name = (record.measurement.host.gpu or "").upper().replace(" ", "")
            for kind, gpu in self.known.accelerators.items():
                if kind in name:
                    return roofline.calibrate(self.spec, record.measurement, gpu)
        return None

    def _price(self, machine: Machine, name: str, spot: bool) -> tuple[float, str]:
        """(of the whole machine for an hour, where it comes from)."""
        whole, words = machine.price, f"{name}, on demand, seen {machine.date}: {machine.source}"
        if spot and machine.spot is not None:
            whole, words = machine.spot, f"{name}, spot, seen {machine.date}: {machine.source}"
        elif spot and self.assumed.spot_discount is not None:
            whole = machine.price * (1 - self.assumed.spot_discount)
            words += f", less {self.assumed.spot_discount:.0%} for spot"
        elif spot:
            words += "; no spot price is known (--assume spotDiscount=…)"
        return whole, words

    def _rent(self, predicted: Prediction, price: float | None, currency: str, words: str, spot: bool = False) -> Bill:
        return billing.rented(
            predicted,
            self.spec,
            self.assumed,
            per_worker_hour=price,
            currency=currency,
            words=words or "no price: set spec.pricing.perWorkerHour, or name the machine: CONTEXT:MACHINE",
            dataset_bytes=self.data.bytes,
            spot=spot,
        )


def _many(workers: int, name: str) -> str:
    return name if workers == 1 else f"{workers} × {name}"


def _unpriced(spec: YoloTrainingJobSpec) -> YoloTrainingJobSpec:
    """The job without prices of its own: another machine is asked for."""
    pricing = spec.pricing.model_copy(update={"machine": None, "per_worker_hour": None})
    return spec.model_copy(update={"pricing": pricing})
