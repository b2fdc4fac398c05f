"""Estimates the options of a job: from measurements if there are any, otherwise from the catalogue. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from yolojob.api.errors import UserError
from yolojob.api.measurement import DataFacts, Link, Measurement, ModelProfile
from yolojob.api.spec import YoloTrainingJobSpec
from yolojob.api.time_parts import known_part
from yolojob.catalogue.machines import Catalogue, Machine
from yolojob.catalogue.prices import price_of
from yolojob.estimation import billing, prediction, roofline
from yolojob.estimation.assumptions import Assumptions
from yolojob.estimation.bench_records import Record, closest_record
from yolojob.estimation.billing import Bill, Power, RentalPrice
from yolojob.estimation.estimate import Basis, Estimate
from yolojob.estimation.option import MAX_SCALING_WORKERS, Option
from yolojob.estimation.prediction import Prediction, WorkerSetup
from yolojob.estimation.target import PROVIDERS, Target

CLUSTER_NETWORK_GBITS = 10.0
"""Network rate between a cluster's nodes in Gbit/s, if only one worker was measured. Assumed."""
NO_PRICE = "no price: set spec.pricing.perWorkerHour, or name the machine: CONTEXT:MACHINE"


class CannotEstimate(UserError):
    """A target cannot be estimated; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """Estimates one job on any target."""

    spec: YoloTrainingJobSpec
    model_profile: ModelProfile
    data: DataFacts
    catalogue: Catalogue
    assumptions: Assumptions
    records: list[Record] = field(default_factory=list)

    def option(self, target: Target) -> Option:
        """Estimate the job on a target.

        Raises:
            CannotEstimate: the target was not measured, and its GPU is not in the catalogue.
            DoesNotFit: the job does not fit into its memory.
        """
        workers = target.workers or self.spec.workers.replicas
        counts = sorted({*range(1, MAX_SCALING_WORKERS + 1), workers})
        if target.is_measurable:
            record = closest_record(self.records, target.place, workers)
            if record is None:
                raise CannotEstimate(f"{target.text}: not measured yet; run `yolojob bench FILE --on {target.text}`")
            return self._measured(target, record, workers, counts)
        return self._predicted(target, workers, counts)

    def _measured(self, target: Target, record: Record, workers: int, counts: list[int]) -> Option:
        measured = record.measurement
        # Workers with a GPU each hardly compete for the CPUs.
        shared = target.is_local and measured.host.gpu is None
        waits = {known_part(p): Estimate.within(seconds, 0.5, Basis.MEASURED) for p, seconds in record.waits.items()}

        def predict(count: int) -> Prediction:
            link = None
            if not target.is_local and (measured.link is None or measured.link.between == "processes"):
                link = Link(
                    between="workers",
                    latency_seconds=2e-4,
                    bytes_per_second=CLUSTER_NETWORK_GBITS * 1e9 / 8 * roofline.NETWORK_EFFICIENCY,
                )
            setup = WorkerSetup(workers=count, shared=shared, cached=target.is_local, waits=waits, link=link)
            return prediction.predict_from_bench(self.spec, measured, setup)

        predicted = predict(workers)
        power = self._power(target, measured, predicted)
        return Option(
            target=target,
            name=_name(workers, target.place),
            predicted=predicted,
            bill=self._bill(target, record, predicted, power),
            power=power,
            scaling={count: predict(count) for count in counts if count <= self.spec.train.batch},
        )

    def _power(self, target: Target, measured: Measurement, predicted: Prediction) -> Power | None:
        if measured.energy is not None:
            source = {"nvml": "the GPUs' power counters", "rapl": "the CPU packages' energy counters (RAPL)"}[
                measured.energy.source
            ]
            watts = measured.energy.watts * (1 if target.is_local else predicted.workers)
            return billing.estimate_energy(predicted, watts, source, self.assumptions, Basis.MEASURED)
        if target.is_local and self.assumptions.watts is not None:
            watts = self.assumptions.watts
            return billing.estimate_energy(predicted, watts, f"{watts:g} W, assumed", self.assumptions, Basis.PREDICTED)
        return None

    def _bill(self, target: Target, record: Record, predicted: Prediction, power: Power | None) -> Bill:
        if target.is_local:
            return billing.bill_owned(predicted, power, self.assumptions, self.catalogue.currency)
        if target.machine is not None:
            listed = price_of(
                _unpriced(self.spec), target.machine, spot=self.spec.pricing.spot, catalogue=self.catalogue
            )
            price = RentalPrice(per_worker_hour=listed.per_worker_hour, currency=listed.currency, source=listed.source)
        else:
            price = RentalPrice(
                per_worker_hour=record.per_worker_hour,
                currency=record.currency or self.catalogue.currency,
                source=record.price_source or NO_PRICE,
            )
        return billing.bill_rented(predicted, self.spec, self.assumptions, price, self.data.bytes)

    def _predicted(self, target: Target, workers: int, counts: list[int]) -> Option:
        assert target.machine is not None
        machine = self.catalogue.machine(target.machine)
        gpu = self.catalogue.accelerators.get(machine.gpu)
        if gpu is None or not machine.gpus:
            raise CannotEstimate(
                f"{target.text}: {machine.gpu or 'a machine without GPUs'} is not among the catalogue's accelerators; "
                f"measure it (yolojob bench FILE --on CONTEXT), or add it to the accelerators in a file for --catalogue"
            )
        if self.data.images is None:
            raise CannotEstimate(f"{target.text}: the number of images of the dataset is unknown; set --images N")
        model = roofline.RooflineModel(
            spec=self.spec,
            model_profile=self.model_profile,
            data=self.data,
            assumptions=self.assumptions,
            samples_per_core=next((r.measurement.rates.samples_per_core for r in self.records), None),
            calibration=self._calibration(),
        )
        predicted = model.predict(machine, gpu, workers)
        provider = next((p for p, owner in PROVIDERS.items() if owner == machine.provider), machine.provider)
        power = billing.estimate_energy(
            predicted,
            (gpu.watts * machine.gpus + self.assumptions.host_watts) * workers,
            f"data sheet: {gpu.watts:g} W for each GPU, and {self.assumptions.host_watts:g} W for the machine",
            self.assumptions,
            Basis.PREDICTED,
        )
        price = self._machine_price(machine, target.machine)
        return Option(
            target=target,
            name=f"{_name(workers, target.machine)} ({provider})",
            predicted=predicted,
            bill=billing.bill_rented(predicted, self.spec, self.assumptions, price, self.data.bytes),
            power=power,
            scaling={
                count: model.predict(machine, gpu, count)
                for count in counts
                if count * machine.gpus <= self.spec.train.batch and model.fits(machine, gpu, count)
            },
            stays=False,
        )

    def _calibration(self) -> roofline.Calibration | None:
        """The calibration by a bench of this job on a GPU of the catalogue; None without one."""
        for record in self.records:
            name = (record.measurement.host.gpu or "").upper().replace(" ", "")
            for kind, gpu in self.catalogue.accelerators.items():
                if kind in name:
                    return roofline.calibrate(self.spec, record.measurement, gpu)
        return None

    def _machine_price(self, machine: Machine, name: str) -> RentalPrice:
        """The price of the whole machine for one hour."""
        spot = self.spec.pricing.spot
        price, source = machine.price, f"{name}, on demand, seen {machine.date}: {machine.source}"
        if spot and machine.spot is not None:
            price, source = machine.spot, f"{name}, spot, seen {machine.date}: {machine.source}"
        elif spot and self.assumptions.spot_discount is not None:
            price = machine.price * (1 - self.assumptions.spot_discount)
            source += f", less {self.assumptions.spot_discount:.0%} for spot"
        elif spot:
            source += "; no spot price is known (--assume spotDiscount=…)"
        return RentalPrice(per_worker_hour=price, currency=self.catalogue.currency, source=source, spot=spot)


def _name(workers: int, name: str) -> str:
    return name if workers == 1 else f"{workers} × {name}"


def _unpriced(spec: YoloTrainingJobSpec) -> YoloTrainingJobSpec:
    """The spec without its own price, so that the price of another machine applies."""
    pricing = spec.pricing.model_copy(update={"machine": None, "per_worker_hour": None})
    return spec.model_copy(update={"pricing": pricing})
