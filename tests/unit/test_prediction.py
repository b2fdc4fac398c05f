"""From a measurement to the hours of a whole job: arithmetic that can be checked by hand, and properties that always hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import minimal
from support.bench_data import ANATOMY, DATA, PLAIN, job, measurement, record, survey

from yolojob.api.fingerprint import job_fingerprint
from yolojob.api.job import YoloTrainingJob
from yolojob.api.measurement import Link, MicrobatchPass, Steps
from yolojob.catalogue import machines
from yolojob.estimation import prediction, roofline, workload
from yolojob.estimation.assumptions import Assumptions
from yolojob.estimation.estimate import Basis, Estimate, total
from yolojob.estimation.recommendation import flattening
from yolojob.estimation.target import Target


def brute(spec: Any, images: int) -> int:
    """Optimizer steps, counted as the trainer makes them."""
    import numpy as np

    train = spec.train
    steps = -(-images // train.batch)
    nominal = min(max(round((train.nbs or 64) / train.batch), 1), steps * train.epochs)
    warm = round(min(3.0 if train.warmup_epochs is None else train.warmup_epochs, max(train.epochs - 1, 0)) * steps)
    accumulate, updates = nominal, 0
    for epoch in range(train.epochs):
        boundary = 0
        for step in range(steps):
            now = step + steps * epoch
            if warm and now <= warm:
                accumulate = max(1, round(float(np.interp(now, [0, warm], [1, nominal]))))
            if step + 1 - boundary >= accumulate or step + 1 == steps:
                updates, boundary = updates + 1, step + 1
    return updates


class TestWork:
    @given(
        epochs=st.integers(1, 12),
        batch=st.integers(1, 64),
        nbs=st.sampled_from([None, 1, 16, 64, 200]),
        warmup=st.sampled_from([None, 0.0, 0.5, 3.0, 20.0]),
        images=st.integers(1, 500),
    )
    def test_optimizer_steps_are_the_trainers(
        self, epochs: int, batch: int, nbs: int | None, warmup: float | None, images: int
    ) -> None:
        given_ = {"nbs": nbs, "warmup_epochs": warmup}
        train = {"epochs": epochs, "batch": batch, **{k: v for k, v in given_.items() if v is not None}}
        spec = YoloTrainingJob.model_validate(minimal(train=train)).spec
        assert workload.count_workload(spec, images).updates == brute(spec, images)

    @pytest.mark.parametrize(
        ("train", "mosaic"),
        [
            ({"epochs": 20}, 10),
            ({"epochs": 5}, 0),
            ({"epochs": 20, "close_mosaic": 0}, 20),
            ({"epochs": 20, "mosaic": 0.0}, 0),
            ({"epochs": 20, "mosaic": 0.0, "mixup": 0.1}, 10),
        ],
    )
    def test_epochs_with_mosaic(self, train: dict[str, Any], mosaic: int) -> None:
        assert workload.count_workload(job(train=train).spec, 100).mosaic_epochs == mosaic

    def test_the_defaults_are_ultralytics(self) -> None:
        from ultralytics.utils import DEFAULT_CFG as defaults

        assert (
            defaults.close_mosaic,
            defaults.warmup_epochs,
            defaults.nbs,
        ) == (workload.CLOSE_MOSAIC, workload.WARMUP_EPOCHS, workload.NOMINAL_BATCH)
        assert {name: getattr(defaults, name) for name in workload.MIXES} == workload.MIXES


def predict(workers: int = 1, shared: bool = True, **facts: Any) -> prediction.Prediction:
    return prediction.predict_from_bench(job().spec, measurement(**facts), workers=workers, shared=shared, cached=True)


class TestMeasured:
    def test_the_parts_add_up(self) -> None:
        """20 epochs of 25 steps, 10 of them with mosaic."""
        found = predict()
        plain, mosaic = sum(PLAIN.values()), sum(PLAIN.values()) + 0.02
        expected = 250 * plain + 250 * mosaic + 500 * 0.01 + 20 * (0.5 + 0.1 + 0.02) + 3.0
        assert found.total.value == pytest.approx(expected)
        assert found.parts["data_wait"].value == pytest.approx(250 * 0.01 + 250 * 0.03)
        assert found.total.basis is Basis.MEASURED
        assert found.total.low < expected < found.total.high
        assert found.limit == "computing"

    def test_staging_counts_where_the_data_is_not_there(self) -> None:
        cold = prediction.predict_from_bench(job().spec, measurement(), workers=1, shared=False, cached=False)
        assert cold.total.value == pytest.approx(predict().total.value + 2.0)

    def test_two_workers_of_one_machine_are_slowed_down_as_the_twin_was(self) -> None:
        found = predict(2)
        compute = 0.085 * 0.072 / 0.084  # half of the images, beside a twin
        assert found.parts["forward"].value == pytest.approx(500 * 0.03 * compute / 0.085)
        assert found.parts["data_wait"].value == pytest.approx(predict().parts["data_wait"].value / 2)
        ring = 2 / 2 * 4 * ANATOMY.parameters / 1e9 + 1e-4
        waiting = 0.5642 * 0.01  # the larger of two normal variates is 1 / sqrt(pi) of their deviation above the mean
        assert found.parts["all_reduce"].value == pytest.approx(500 * (ring + waiting), rel=0.05)
        assert found.parts["validation"].value == pytest.approx(20 * 0.5), "the work is the same, and so are the CPUs"
        assert found.parts["startup"].value == pytest.approx(3.0 * 1.6)
        assert found.total.basis is Basis.SCALED

    def test_two_workers_with_machines_of_their_own_are_not(self) -> None:
        apart = predict(2, shared=False)
        assert apart.parts["forward"].value == pytest.approx(500 * 0.03 * 0.048 / 0.084)
        assert apart.total.value < predict(2).total.value

    @given(st.integers(1, 8), st.integers(1, 8))
    def test_more_workers_never_make_a_pass_longer(self, few: int, more: int) -> None:
        few, more = sorted((few, more))
        one, other = predict(few, shared=False), predict(more, shared=False)
        assert other.parts["backward"].value <= one.parts["backward"].value * (1 + 1e-9)

    def test_a_bench_without_half_passes_scales_by_images(self) -> None:
        found = predict(2, shared=False, microbatch_passes=[MicrobatchPass(images=16, seconds=0.084)])
        assert found.parts["forward"].value == pytest.approx(500 * 0.03 / 2)

    def test_a_noisy_bench_has_a_wider_interval(self) -> None:
        noisy = [Steps(with_mosaic=False, count=10, seconds=PLAIN, deviation=0.05)]
        calm = [Steps(with_mosaic=False, count=10, seconds=PLAIN, deviation=0.001)]
        a, b = predict(steps=noisy).total, predict(steps=calm).total
        assert a.high - a.low > b.high - b.low

    def test_why_it_flattens(self) -> None:
        scaling = {
            n: predict(n, shared=False, link=Link(between="workers", latency_seconds=0.05, bytes_per_second=1e8))
            for n in (1, 8)
        }
        assert "gradients must be reduced" in flattening(scaling)


class TestFigures:
    def test_a_sum_is_known_as_its_worst_part_that_counts(self) -> None:
        large, small = Estimate.within(100.0, 0.1, Basis.MEASURED), Estimate.factor(1.0, 2.0)
        assert total([large, small]).basis is Basis.MEASURED
        assert total([large, small.times(50)]).basis is Basis.PREDICTED

    @given(st.lists(st.floats(0, 1e9), max_size=6))
    def test_intervals_hold_their_values(self, values: list[float]) -> None:
        found = total(Estimate.within(v, 0.2, Basis.SCALED) for v in values)
        assert found.low <= found.value * (1 + 1e-9)
        assert found.value <= found.high * (1 + 1e-9) + 1e-9


def on(machine: str, workers: int = 1, **spec: Any) -> prediction.Prediction:
    known = machines.builtin()
    row = known.machine(machine)
    return roofline.predict_from_roofline(
        job(**spec).spec, ANATOMY, DATA, row, known.accelerators[row.gpu], workers=workers, assumed=Assumptions()
    )


class TestRoofline:
    def test_a_better_gpu_is_not_slower(self) -> None:
        times = [on(m).parts["forward"].value for m in ("g4dn.xlarge", "g5.xlarge", "a2-highgpu-1g", "a3-highgpu-8g")]
        assert times == sorted(times, reverse=True)

    def test_it_is_a_prediction_and_says_so(self) -> None:
        found = on("g2-standard-4")
        assert found.total.basis is Basis.PREDICTED
        assert found.total.high > 1.5 * found.total.value

    def test_few_cpus_starve_a_fast_gpu(self) -> None:
        assert on("g2-standard-4", train={"epochs": 300, "batch": 64, "imgsz": 1280}).limit == "waiting for data"

    def test_what_does_not_fit_says_how_much_is_missing(self) -> None:
        large = ANATOMY.model_copy(update={"activation_bytes": 2 << 30})
        known = machines.builtin()
        row = known.machine("g4dn.xlarge")
        with pytest.raises(roofline.DoesNotFit, match=r"batch 16 needs 40.0 GiB in each GPU, 25.9 GiB more.*fits is 5"):
            roofline.predict_from_roofline(
                job().spec, large, DATA, row, known.accelerators["T4"], workers=1, assumed=Assumptions()
            )

    def test_a_bench_on_another_gpu_makes_it_better_known(self) -> None:
        host = measurement().host.model_copy(update={"gpu": "NVIDIA L4", "gpus": 1})
        known = survey(record("cluster", host=host))
        option = known.option(Target(text="g5.xlarge", machine="g5.xlarge"))
        assert option.predicted.parts["forward"].basis is Basis.SCALED
        assert (
            survey().option(Target(text="g5.xlarge", machine="g5.xlarge")).predicted.parts["forward"].basis
            is Basis.PREDICTED
        )


def test_the_fingerprint_is_of_what_the_speed_depends_on() -> None:
    base = {"epochs": 20, "batch": 16}
    same = [{**base, "epochs": 99}, {**base, "seed": 7}, {**base, "lr0": 0.1}]
    other = [{**base, "imgsz": 320}, {**base, "batch": 32}, {**base, "mosaic": 0.0}, {**base, "amp": "bf16"}]
    found = job_fingerprint(job(train=base).spec)
    assert {job_fingerprint(job(train=t).spec) for t in same} == {found}
    assert found not in {job_fingerprint(job(train=t).spec) for t in other}
    assert job_fingerprint(job(train=base, workers={"replicas": 4}).spec) == found
