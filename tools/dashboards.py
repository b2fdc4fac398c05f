"""Generates the Grafana dashboards in helm/yolojob/dashboards.

Each row answers one question. tests/e2e run every query against a Prometheus that has scraped a training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as enums
from grafana_foundation_sdk.models import dashboard as models

from yolojob.api.task import MAIN_METRICS
from yolojob.api.time_parts import TimeGroup, in_group

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
JOB = 'namespace=~"$namespace", job_name=~"$job"'
NAMESPACE = 'namespace=~"$namespace"'
WAITING = f'{NAMESPACE}, part=~"{"|".join(in_group(TimeGroup.WAITING))}"'
RATE = "$__rate_interval"
METRIC_PATTERNS = [re.escape(name).replace("\\", "\\\\") for name in MAIN_METRICS]
"""Regular expressions of the metrics, as a string in PromQL."""
VALIDATION_METRICS = (
    "max by (namespace, job_name, metric) "
    f'(yolojob_trainer_validation_metric{{{JOB}, metric=~"{"|".join(METRIC_PATTERNS)}"}})'
)
WIDE, HALF, THIRD, SIXTH = 24, 12, 8, 4


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel. `queries` has (PromQL, legend) for each query."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: Literal["lines", "stacked", "bars", "figure"] = "lines"
    width: int = HALF
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    text: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    per_job: bool = False
    """Whether the dashboard has a variable for jobs."""

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for _, panels in self.rows for panel in panels)


def _rate(metric: str, by: str, more: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{JOB}{more}}}[{RATE}]))"


def _mean(metric: str) -> str:
    """Mean of a histogram's observations, for each job."""
    labels = "namespace, job_name"
    return f"{_rate(f'{metric}_sum', labels)} / {_rate(f'{metric}_count', labels)}"


def _quantile(q: float, metric: str) -> str:
    """Quantile of recent observations, for each job."""
    return f"histogram_quantile({q}, {_rate(f'{metric}_bucket', 'le, namespace, job_name')})"


def _over_range(q: float, metric: str, by: str) -> str:
    """Quantile over the time range: jobs end too rarely for a rate. Groups without observations are dropped."""
    return f"histogram_quantile({q}, sum by (le, {by}) (increase({metric}_bucket{{{NAMESPACE}}}[$__range]))) > 0"


def _operator_quantiles(metric: str, *quantiles: float) -> tuple[tuple[str, str], ...]:
    """Quantiles of the operator's observations."""
    buckets = f"sum by (le) (rate({metric}_bucket[{RATE}]))"
    return tuple((f"histogram_quantile({q}, {buckets})", f"p{q * 100:.0f}") for q in quantiles)


JOB_TIME = f"yolojob_job_time_seconds{{{JOB}}}"


def _parts(time: str) -> str:
    """Seconds of all jobs together, by part."""
    return f"sum by (part) (max by (namespace, job_name, part) ({time}))"


PER_JOB = "max by (namespace, job_name)"
STEPS = _rate("yolojob_trainer_steps_total", "namespace, job_name")
STEP_TIME = _rate("yolojob_trainer_step_seconds_sum", "namespace, job_name")
PHASES = _rate("yolojob_trainer_phase_seconds_sum", "namespace, job_name, phase")
PER_STEP = f"{PHASES} / on (namespace, job_name) group_left () {STEPS}"


def _share(phase: str) -> str:
    part = _rate("yolojob_trainer_phase_seconds_sum", "namespace, job_name", f', phase="{phase}"')
    return f"{part} / {STEP_TIME}"


def _of_job(metric: str) -> str:
    return f"{PER_JOB} (yolojob_trainer_{metric}{{{JOB}}})"


def _mean_duration(what: str) -> str:
    """Mean seconds of an epoch, validation or checkpoint, for each job; 0 without observations."""
    total, count = (f"yolojob_trainer_{what}_seconds_{part}{{{JOB}}}" for part in ("sum", "count"))
    return f"({PER_JOB} ({total} / {count} > 0) or 0 * {_of_job('epoch')})"


PER_EPOCH = f"({PER_STEP}) * on (namespace, job_name) group_left () {_of_job('epoch_steps')}"
EACH_EPOCH = " + ".join(_mean_duration(what) for what in ("epoch", "validation", "checkpoint"))
TIME_LEFT = f"({_of_job('epochs_target')} - {_of_job('epoch')}) * ({EACH_EPOCH})"

TRAINING = Board(
    uid="yolojob-training",
    title="yolojob / Training time",
    text="Where the time of trainings goes: from kubectl apply to the model, within a step, and within an epoch",
    per_job=True,
    rows=(
        (
            "Progress, accuracy, cost",
            (
                Panel(
                    title="Epochs",
                    kind="figure",
                    width=SIXTH,
                    queries=((_of_job("epoch"), "{{job_name}}"), (_of_job("epochs_target"), "{{job_name}} target")),
                ),
                Panel(
                    title="Time left",
                    kind="figure",
                    width=SIXTH,
                    unit="s",
                    text="Remaining epochs × mean time of an epoch. Early stopping may end it sooner.",
                    queries=((TIME_LEFT, "{{job_name}}"),),
                ),
                Panel(
                    title="Main metric",
                    kind="figure",
                    width=SIXTH,
                    queries=((VALIDATION_METRICS, "{{job_name}} {{metric}}"),),
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
                    text="Price × running time of every pod, over all attempts. Empty if the price is unknown.",
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
            "Time from kubectl apply to the model",
            (
                Panel(
                    title="Wall-clock time by part",
                    kind="bars",
                    unit="s",
                    text="All parts of a job's time; their sum is the job's age.",
                    queries=(
                        (
                            f"sort_desc({_parts(f'last_over_time({JOB_TIME}[$__range])')})",
                            "{{part}}",
                        ),
                    ),
                ),
                Panel(
                    title="Wall-clock time by part, over time",
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
            "Steps and epochs",
            (
                Panel(
                    title="Phases of a step",
                    kind="stacked",
                    unit="s",
                    text="Mean over all ranks. all_reduce is the part that does not overlap with the backward pass.",
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
                    title="Step time",
                    unit="s",
                    queries=tuple(
                        (_quantile(q, "yolojob_trainer_step_seconds"), f"{{{{job_name}}}} p{q * 100:.0f}")
                        for q in (0.5, 0.95)
                    ),
                ),
            ),
        ),
        (
            "Bottlenecks",
            (
                Panel(
                    title="Waiting for data",
                    unit="percentunit",
                    width=THIRD,
                    text="Fraction of the step time. Above 10 %: set train.cache: ram, or more CPUs per worker.",
                    queries=((_share("data_wait"), "{{job_name}}"),),
                ),
                Panel(
                    title="All-reduce",
                    unit="percentunit",
                    width=THIRD,
                    text="Part of the step time. Exposed: not overlapped. Whole: from the first bucket to the last.",
                    queries=(
                        (_share("all_reduce"), "{{job_name}} exposed"),
                        (
                            f"{_rate('yolojob_trainer_reduction_seconds_sum', 'namespace, job_name')} / {STEP_TIME}",
                            "{{job_name}} whole",
                        ),
                    ),
                ),
                Panel(
                    title="Stragglers: compute time by rank",
                    unit="s",
                    width=THIRD,
                    text="Forward, loss and backward of a step. All ranks wait for the slowest one.",
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
                    title="Peak GPU memory",
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
                    title="Startup of each worker",
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
            "Accuracy and loss",
            (
                Panel(
                    title="Metrics of the validation",
                    width=THIRD,
                    text="The main metrics of all tasks; more is better. B: boxes, M: masks, P: poses.",
                    queries=((VALIDATION_METRICS, "{{job_name}} {{metric}}"),),
                ),
                Panel(title="Loss", width=THIRD, queries=((_of_job("loss"), "{{job_name}}"),)),
                Panel(
                    title="Rollbacks and failed saves",
                    width=THIRD,
                    text="Rollbacks after a non-finite loss; failed checkpoints and uploads.",
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
    text="All jobs of the selected namespaces: number, waiting times, restarts and costs",
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
                    title="Active workers",
                    kind="stacked",
                    queries=((f"sum by (namespace) (yolojob_job_active_workers{{{NAMESPACE}}})", "{{namespace}}"),),
                ),
                Panel(
                    title="Time from creation until all workers run",
                    kind="bars",
                    unit="s",
                    text="Queue, scheduling and image pull of jobs that started in the time range.",
                    queries=tuple(
                        (
                            _over_range(q, "yolojob_time_to_running_seconds", "namespace"),
                            f"{{{{namespace}}}} p{q * 100:.0f}",
                        )
                        for q in (0.5, 0.95)
                    ),
                ),
                Panel(
                    title="Time in the queue and waiting for nodes",
                    kind="bars",
                    unit="s",
                    text="Sum over all jobs in the time range.",
                    queries=(
                        (
                            "sum by (namespace, part) "
                            f"(last_over_time(yolojob_job_time_seconds{{{WAITING}}}[$__range]))",
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
                    title="Duration of jobs",
                    kind="bars",
                    unit="s",
                    text="Jobs that ended in the time range.",
                    queries=tuple(
                        (_over_range(q, "yolojob_job_duration_seconds", "phase"), f"{{{{phase}}}} p{q * 100:.0f}")
                        for q in (0.5, 0.95)
                    ),
                ),
            ),
        ),
        (
            "Cost",
            (
                Panel(
                    title="Cost by namespace",
                    kind="bars",
                    text="Cost in the time range, including deleted jobs.",
                    queries=(
                        (
                            f"sum by (namespace, currency) (increase(yolojob_cost_total{{{NAMESPACE}}}[$__range]))",
                            "{{namespace}} {{currency}}",
                        ),
                    ),
                ),
                Panel(
                    title="Current cost per hour",
                    kind="stacked",
                    queries=(
                        (
                            f"sum by (namespace, currency) (yolojob_job_cost_per_hour{{{NAMESPACE}}})",
                            "{{namespace}} {{currency}}",
                        ),
                    ),
                ),
                Panel(
                    title="Most expensive jobs",
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
    text="Operator load: reconciles, requests to the API server, and watch lag",
    rows=(
        (
            "Reconciles",
            (
                Panel(
                    title="Leading operators", kind="figure", width=SIXTH, queries=(("sum(yolojob_leader)", "leaders"),)
                ),
                Panel(
                    title="Watch lag",
                    kind="figure",
                    width=SIXTH,
                    unit="s",
                    queries=(("max(yolojob_watch_lag_seconds)", "lag"),),
                ),
                Panel(
                    title="Reconciles per second",
                    width=16,
                    queries=((f"sum by (result) (rate(yolojob_reconcile_seconds_count[{RATE}]))", "{{result}}"),),
                ),
                Panel(
                    title="Duration of a reconcile",
                    unit="s",
                    queries=_operator_quantiles("yolojob_reconcile_seconds", 0.5, 0.95, 0.99),
                ),
                Panel(
                    title="Wait of a job for its reconcile",
                    unit="s",
                    queries=(
                        *_operator_quantiles("yolojob_reconcile_queue_seconds", 0.5, 0.95),
                        ("max(yolojob_reconcile_queue_length)", "waiting jobs"),
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
                    title="Responses by code",
                    kind="stacked",
                    unit="reqps",
                    text="Code 0: no response.",
                    queries=((f"sum by (code) (rate(yolojob_api_requests_total[{RATE}]))", "{{code}}"),),
                ),
                Panel(
                    title="Duration of a request, p95",
                    unit="s",
                    queries=(
                        (
                            "histogram_quantile(0.95, sum by (le, verb) "
                            f"(rate(yolojob_api_request_seconds_bucket[{RATE}])))",
                            "{{verb}}",
                        ),
                    ),
                ),
                Panel(
                    title="Operator CPU and memory",
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
    builder = dashboard.Dashboard(board.title).uid(board.uid).description(board.text).tags(["yolojob"])
    builder.time("now-1h", "now").refresh("30s").tooltip(models.DashboardCursorSync.CROSSHAIR).readonly()
    for variable in _variables(board):
        builder.with_variable(variable)  # type: ignore[arg-type]
    for title, panels in board.rows:
        builder.with_row(dashboard.Row(title))
        for panel in panels:
            builder.with_panel(_build(panel))  # type: ignore[arg-type]
    return JSONEncoder(sort_keys=True, indent=1).encode(builder.build()) + "\n"
