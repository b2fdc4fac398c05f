"""Grafana's dashboards, as code, for helm/yolojob/dashboards.

One row for each question that people ask. Every query is run by tests/e2e against a Prometheus that has scraped a training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as enums
from grafana_foundation_sdk.models import dashboard as models

from yolojob.api.time_parts import TimeGroup, in_group

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
JOB = 'namespace=~"$namespace", job_name=~"$job"'
NAMESPACE = 'namespace=~"$namespace"'
WAITING = f'{NAMESPACE}, part=~"{"|".join(in_group(TimeGroup.WAITING))}"'
RATE = "$__rate_interval"
WIDE, HALF, THIRD, SIXTH = 24, 12, 8, 4


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot: what it shows, and by which queries ((PromQL, legend) each)."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: Literal["lines", "stacked", "bars", "figure"] = "lines"
    width: int = HALF
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Board:
    uid: str
    title: str
    text: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    per_job: bool = False
    """Whether one may choose jobs."""

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for _, panels in self.rows for panel in panels)


def _rate(metric: str, by: str, more: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{JOB}{more}}}[{RATE}]))"


def _mean(metric: str) -> str:
    """Mean of what a histogram observed, of each job."""
    each = "namespace, job_name"
    return f"{_rate(f'{metric}_sum', each)} / {_rate(f'{metric}_count', each)}"


def _quantile(q: float, metric: str) -> str:
    """Of each job, as it goes."""
    return f"histogram_quantile({q}, {_rate(f'{metric}_bucket', 'le, namespace, job_name')})"


def _over_range(q: float, metric: str, by: str) -> str:
    """Of the whole chosen time: jobs come and go too rarely for a rate. A group without any has no quantile."""
    return f"histogram_quantile({q}, sum by (le, {by}) (increase({metric}_bucket{{{NAMESPACE}}}[$__range]))) > 0"


def _of_operator(metric: str, *quantiles: float) -> tuple[tuple[str, str], ...]:
    """Quantiles of what the operator observed."""
    buckets = f"sum by (le) (rate({metric}_bucket[{RATE}]))"
    return tuple((f"histogram_quantile({q}, {buckets})", f"p{q * 100:.0f}") for q in quantiles)


JOB_TIME = f"yolojob_job_time_seconds{{{JOB}}}"


def _parts(time: str) -> str:
    """Of all jobs together, by part."""
    return f"sum by (part) (max by (namespace, job_name, part) ({time}))"


ONE = "max by (namespace, job_name)"
STEPS = _rate("yolojob_trainer_steps_total", "namespace, job_name")
STEP_TIME = _rate("yolojob_trainer_step_seconds_sum", "namespace, job_name")
PHASES = _rate("yolojob_trainer_phase_seconds_sum", "namespace, job_name, phase")
PER_STEP = f"{PHASES} / on (namespace, job_name) group_left () {STEPS}"


def _share(phase: str) -> str:
    part = _rate("yolojob_trainer_phase_seconds_sum", "namespace, job_name", f', phase="{phase}"')
    return f"{part} / {STEP_TIME}"


def _of_job(metric: str) -> str:
    return f"{ONE} (yolojob_trainer_{metric}{{{JOB}}})"


def _on_average(what: str) -> str:
    """Seconds that one takes, of each job; 0 where there was none yet."""
    total, count = (f"yolojob_trainer_{what}_seconds_{part}{{{JOB}}}" for part in ("sum", "count"))
    return f"({ONE} ({total} / {count} > 0) or 0 * {_of_job('epoch')})"


PER_EPOCH = f"({PER_STEP}) * on (namespace, job_name) group_left () {_of_job('epoch_steps')}"
EACH_EPOCH = " + ".join(_on_average(what) for what in ("epoch", "validation", "checkpoint"))
TIME_LEFT = f"({_of_job('epochs_target')} - {_of_job('epoch')}) * ({EACH_EPOCH})"

TRAINING = Board(
    uid="yolojob-training",
    title="yolojob / Training time",
    text="Where the time of one training goes, or of many: from apply to the model, in a step, in an epoch",
    per_job=True,
    rows=(
        (
            "How far, how good, how much",
            (
                Panel(
                    title="Epochs",
                    kind="figure",
                    width=SIXTH,
                    queries=((_of_job("epoch"), "{{job_name}}"), (_of_job("epochs_target"), "{{job_name}}, to do")),
                ),
                Panel(
                    title="Time left",
                    kind="figure",
                    width=SIXTH,
                    unit="s",
                    text="Epochs to do × what one takes with its validation and checkpoint. Early stopping may end it sooner.",
                    queries=((TIME_LEFT, "{{job_name}}"),),
                ),
                Panel(
                    title="mAP50-95",
                    kind="figure",
                    width=SIXTH,
                    unit="percentunit",
                    queries=((_of_job("map_ratio"), "{{job_name}}"),),
                ),
                Panel(
                    title="Images per second",
                    kind="figure",
                    width=SIXTH,
                    queries=((_of_job("images_per_second"), "{{job_name}}"),),
                ),
                Panel(
                    title="Cost so far",
                    kind="figure",
                    width=SIXTH,
                    text="Price × running time of every pod, over all attempts. Nothing where no price is known.",
                    queries=(
                        (
                            f"max by (namespace, job_name, currency) (yolojob_job_cost{{{JOB}}})",
                            "{{job_name}} {{currency}}",
                        ),
                    ),
                ),
                Panel(
                    title="Restarts",
                    kind="figure",
                    width=SIXTH,
                    queries=((f"sum by (namespace, job_name) (yolojob_job_restarts{{{JOB}}})", "{{job_name}}"),),
                ),
            ),
        ),
        (
            "From apply to the model",
            (
                Panel(
                    title="Where the wall clock went",
                    kind="bars",
                    unit="s",
                    text="All parts of a job's time; together they are its age.",
                    queries=(
                        (
                            f"sort_desc({_parts(f'last_over_time({JOB_TIME}[$__range])')})",
                            "{{part}}",
                        ),
                    ),
                ),
                Panel(
                    title="The same, as it went",
                    kind="stacked",
                    unit="s",
                    queries=(
                        (
                            _parts(JOB_TIME),
                            "{{part}}",
                        ),
                    ),
                ),
            ),
        ),
        (
            "A step, an epoch",
            (
                Panel(
                    title="Phases of a step",
                    kind="stacked",
                    unit="s",
                    text="Mean over all ranks. all_reduce is what the backward pass did not hide.",
                    queries=((PER_STEP, "{{job_name}} {{phase}}"),),
                ),
                Panel(
                    title="Phases of an epoch",
                    kind="stacked",
                    unit="s",
                    queries=(
                        (
                            f"({PER_STEP}) * on (namespace, job_name) group_left () {_of_job('epoch_steps')}",
                            "{{job_name}} {{phase}}",
                        ),
                        (_mean("yolojob_trainer_validation_seconds"), "{{job_name}} validation"),
                        (_mean("yolojob_trainer_checkpoint_seconds"), "{{job_name}} checkpoint"),
                    ),
                ),
                Panel(
                    title="Images per second",
                    queries=(
                        (_rate("yolojob_trainer_images_total", "namespace, job_name"), "{{job_name}}"),
                        (
                            _rate("yolojob_trainer_images_total", "namespace, job_name, rank"),
                            "{{job_name}} rank {{rank}}",
                        ),
                    ),
                ),
                Panel(
                    title="Time of a step",
                    unit="s",
                    queries=tuple(
                        (_quantile(q, "yolojob_trainer_step_seconds"), f"{{{{job_name}}}} p{q * 100:.0f}")
                        for q in (0.5, 0.95)
                    ),
                ),
            ),
        ),
        (
            "What holds it up",
            (
                Panel(
                    title="Waiting for data",
                    unit="percentunit",
                    width=THIRD,
                    text="Share of the steps' time. Above a tenth: train.cache: ram, or more CPUs per worker.",
                    queries=((_share("data_wait"), "{{job_name}}"),),
                ),
                Panel(
                    title="All-reduce",
                    unit="percentunit",
                    width=THIRD,
                    text="Exposed: what the backward pass does not hide. Whole: from the first bucket to the last.",
                    queries=(
                        (_share("all_reduce"), "{{job_name}} exposed"),
                        (
                            f"{_rate('yolojob_trainer_reduction_seconds_sum', 'namespace, job_name')} / {STEP_TIME}",
                            "{{job_name}} whole",
                        ),
                    ),
                ),
                Panel(
                    title="Stragglers: computing, by rank",
                    unit="s",
                    width=THIRD,
                    text="Forward, loss and backward of a step. All others wait for the slowest.",
                    queries=(
                        (
                            _rate(
                                "yolojob_trainer_phase_seconds_sum",
                                "namespace, job_name, rank",
                                ', phase=~"forward|loss|backward"',
                            )
                            + " / "
                            + _rate("yolojob_trainer_steps_total", "namespace, job_name, rank"),
                            "{{job_name}} rank {{rank}}",
                        ),
                    ),
                ),
                Panel(
                    title="GPU memory, at most",
                    unit="bytes",
                    width=THIRD,
                    queries=(
                        (
                            f"max by (namespace, job_name, rank) (yolojob_trainer_gpu_memory_peak_bytes{{{JOB}}})",
                            "{{job_name}} rank {{rank}}",
                        ),
                    ),
                ),
                Panel(
                    title="GPU utilisation",
                    unit="percentunit",
                    width=THIRD,
                    queries=(
                        (
                            f"max by (namespace, job_name, rank) (yolojob_trainer_gpu_utilization_ratio{{{JOB}}})",
                            "{{job_name}} rank {{rank}}",
                        ),
                    ),
                ),
                Panel(
                    title="Start of each worker",
                    unit="s",
                    width=THIRD,
                    queries=tuple(
                        (
                            f"max by (namespace, job_name, rank) (yolojob_trainer_{part}_seconds{{{JOB}}})",
                            f"{{{{job_name}}}} rank {{{{rank}}}} {part}",
                        )
                        for part in ("startup", "staging", "rendezvous")
                    ),
                ),
            ),
        ),
        (
            "What it has learnt",
            (
                Panel(
                    title="mAP",
                    unit="percentunit",
                    width=THIRD,
                    queries=(
                        (_of_job("map_ratio"), "{{job_name}} mAP50-95"),
                        (_of_job("map50_ratio"), "{{job_name}} mAP50"),
                    ),
                ),
                Panel(title="Loss", width=THIRD, queries=((_of_job("loss"), "{{job_name}}"),)),
                Panel(
                    title="Trouble",
                    width=THIRD,
                    text="Rollbacks after a loss that was not finite; checkpoints and uploads that failed.",
                    queries=(
                        (_of_job("rollbacks"), "{{job_name}} rollbacks"),
                        (
                            f"sum by (namespace, job_name) (yolojob_trainer_checkpoint_failures_total{{{JOB}}})",
                            "{{job_name}} not saved",
                        ),
                    ),
                ),
            ),
        ),
    ),
)

FLEET = Board(
    uid="yolojob-fleet",
    title="yolojob / Fleet",
    text="All jobs of some namespaces: how many, how long they wait, why they restart, what they cost",
    rows=(
        (
            "Jobs",
            (
                Panel(
                    title="Jobs by phase",
                    kind="stacked",
                    queries=((f"sum by (phase) (yolojob_jobs{{{NAMESPACE}}}) > 0", "{{phase}}"),),
                ),
                Panel(
                    title="Workers that hold machines",
                    kind="stacked",
                    queries=((f"sum by (namespace) (yolojob_job_active_workers{{{NAMESPACE}}})", "{{namespace}}"),),
                ),
                Panel(
                    title="From creation until all workers ran",
                    kind="bars",
                    unit="s",
                    text="Queue, scheduling, image pull; of the jobs that came in the chosen time.",
                    queries=tuple(
                        (
                            _over_range(q, "yolojob_time_to_running_seconds", "namespace"),
                            f"{{{{namespace}}}} p{q * 100:.0f}",
                        )
                        for q in (0.5, 0.95)
                    ),
                ),
                Panel(
                    title="Queued and waiting for a place",
                    kind="bars",
                    unit="s",
                    text="Sum over the jobs that there were in the chosen time.",
                    queries=(
                        (
                            f"sum by (namespace, part) (last_over_time(yolojob_job_time_seconds{{{WAITING}}}[$__range]))",
                            "{{namespace}} {{part}}",
                        ),
                    ),
                ),
                Panel(
                    title="Restarts by cause",
                    kind="bars",
                    queries=(
                        (
                            f"sum by (cause) (increase(yolojob_restarts_total{{{NAMESPACE}}}[$__range])) > 0",
                            "{{cause}}",
                        ),
                    ),
                ),
                Panel(
                    title="How long jobs take",
                    kind="bars",
                    unit="s",
                    text="Of those that ended in the chosen time.",
                    queries=tuple(
                        (_over_range(q, "yolojob_job_duration_seconds", "phase"), f"{{{{phase}}}} p{q * 100:.0f}")
                        for q in (0.5, 0.95)
                    ),
                ),
            ),
        ),
        (
            "Money",
            (
                Panel(
                    title="Cost by namespace",
                    kind="bars",
                    text="In the chosen time, also of jobs that are gone.",
                    queries=(
                        (
                            f"sum by (namespace, currency) (increase(yolojob_cost_total{{{NAMESPACE}}}[$__range]))",
                            "{{namespace}} {{currency}}",
                        ),
                    ),
                ),
                Panel(
                    title="Cost per hour, now",
                    kind="stacked",
                    queries=(
                        (
                            f"sum by (namespace, currency) (yolojob_job_cost_per_hour{{{NAMESPACE}}})",
                            "{{namespace}} {{currency}}",
                        ),
                    ),
                ),
                Panel(
                    title="Dearest jobs",
                    kind="bars",
                    width=WIDE,
                    queries=(
                        (
                            f"topk(10, last_over_time(yolojob_job_cost{{{NAMESPACE}}}[$__range]))",
                            "{{namespace}}/{{job_name}} {{currency}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)

OPERATOR = Board(
    uid="yolojob-operator",
    title="yolojob / Operator",
    text="Whether the operator keeps up: plans, requests to the API server, its watch",
    rows=(
        (
            "Plans",
            (
                Panel(
                    title="Operators at work", kind="figure", width=SIXTH, queries=(("sum(yolojob_leader)", "leaders"),)
                ),
                Panel(
                    title="Watch lag",
                    kind="figure",
                    width=SIXTH,
                    unit="s",
                    queries=(("max(yolojob_watch_lag_seconds)", "lag"),),
                ),
                Panel(
                    title="Plans per second",
                    width=16,
                    queries=((f"sum by (result) (rate(yolojob_reconcile_seconds_count[{RATE}]))", "{{result}}"),),
                ),
                Panel(
                    title="Time of a plan and its deeds",
                    unit="s",
                    queries=_of_operator("yolojob_reconcile_seconds", 0.5, 0.95, 0.99),
                ),
                Panel(
                    title="Wait of a job for its plan",
                    unit="s",
                    queries=(
                        *_of_operator("yolojob_reconcile_queue_seconds", 0.5, 0.95),
                        ("max(yolojob_reconcile_queue_length)", "jobs that wait"),
                    ),
                ),
            ),
        ),
        (
            "The API server",
            (
                Panel(
                    title="Requests by verb and resource",
                    kind="stacked",
                    unit="reqps",
                    queries=(
                        (
                            f"sum by (verb, resource) (rate(yolojob_api_requests_total[{RATE}]))",
                            "{{verb}} {{resource}}",
                        ),
                    ),
                ),
                Panel(
                    title="Answers by code",
                    kind="stacked",
                    unit="reqps",
                    text="0 is no answer.",
                    queries=((f"sum by (code) (rate(yolojob_api_requests_total[{RATE}]))", "{{code}}"),),
                ),
                Panel(
                    title="Time of a request, p95",
                    unit="s",
                    queries=(
                        (
                            f"histogram_quantile(0.95, sum by (le, verb) (rate(yolojob_api_request_seconds_bucket[{RATE}])))",
                            "{{verb}}",
                        ),
                    ),
                ),
                Panel(
                    title="The operator itself",
                    queries=(
                        (
                            f'sum by (pod) (rate(process_cpu_seconds_total{{job=~".*yolojob.*"}}[{RATE}]))',
                            "{{pod}} cores",
                        ),
                        ('sum by (pod) (process_resident_memory_bytes{job=~".*yolojob.*"}) / 1e9', "{{pod}} GB"),
                    ),
                ),
            ),
        ),
    ),
)
BOARDS = (TRAINING, FLEET, OPERATOR)


def _build(panel: Panel) -> object:
    builder: timeseries.Panel | bargauge.Panel | stat.Panel
    instant = panel.kind in ("bars", "figure")
    if panel.kind == "bars":
        builder = bargauge.Panel().orientation(enums.VizOrientation.HORIZONTAL).height(9)
        builder.display_mode(enums.BarGaugeDisplayMode.GRADIENT)
    elif panel.kind == "figure":
        builder = stat.Panel().height(4)
    else:
        legend = common.VizLegendOptions().display_mode(enums.LegendDisplayMode.TABLE).calcs(["mean", "lastNotNull"])
        legend.placement(enums.LegendPlacement.RIGHT).show_legend(True)
        builder = timeseries.Panel().height(9).legend(legend).show_points(enums.VisibilityMode.NEVER).span_nulls(True)
        builder.tooltip(common.VizTooltipOptions().mode(enums.TooltipDisplayMode.MULTI))
        if panel.kind == "stacked":
            builder.stacking(common.StackingConfig().mode(enums.StackingMode.NORMAL)).fill_opacity(60).line_width(0)
    builder.title(panel.title).unit(panel.unit).span(panel.width).datasource(SOURCE)
    if panel.text:
        builder.description(panel.text)
    for ref, (expression, legend_format) in zip("ABCDEF", panel.queries, strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(legend_format).ref_id(ref)
        builder.with_target(query.instant() if instant else query.range())
    return builder


def _variables(board: Board) -> Iterable[object]:
    yield dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    if board is OPERATOR:
        return
    choices = [("namespace", "Namespace", "label_values(yolojob_jobs, namespace)")]
    if board.per_job:
        choices.append(("job", "Job", 'label_values(yolojob_job_time_seconds{namespace=~"$namespace"}, job_name)'))
    for name, label, query in choices:
        variable = dashboard.QueryVariable(name).label(label).datasource(SOURCE).query(query).multi(True)
        variable.include_all(True).all_value(".*").refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        yield variable.sort(models.VariableSort.ALPHABETICAL_ASC)


def render(board: Board) -> str:
    """A dashboard as the JSON that Grafana imports."""
    made = dashboard.Dashboard(board.title).uid(board.uid).description(board.text).tags(["yolojob"])
    made.time("now-1h", "now").refresh("30s").tooltip(models.DashboardCursorSync.CROSSHAIR).readonly()
    for variable in _variables(board):
        made.with_variable(variable)  # type: ignore[arg-type]
    for title, panels in board.rows:
        made.with_row(dashboard.Row(title))
        for panel in panels:
            made.with_panel(_build(panel))  # type: ignore[arg-type]
    return JSONEncoder(sort_keys=True, indent=1).encode(made.build()) + "\n"
