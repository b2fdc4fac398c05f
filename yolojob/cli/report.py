"""`yolojob report`: shows where a run's time and money went."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolojob.cli import tables
from yolojob.cli.console import print_line
from yolojob.cli.options import (
    Context,
    FigureFormat,
    FigureOutput,
    Namespace,
    dump,
    exit_on_error,
    text_console,
)


def report(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder of a run (runs/NAME), or name of a job in the cluster.")
    ],
    page: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("report.html"),
    job: Annotated[
        str | None,
        typer.Option("--job", metavar="NAME", help="The job in the cluster that wrote this run's folder."),
    ] = None,
    output: FigureFormat = FigureOutput.TEXT,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Show where a run's time and money went, and what to change first.

    A run's folder has the details of every step; for a job in the cluster, the report uses its status. --job adds the
    job's waiting times and cost to a run's folder.
    """
    console = text_console(output)
    with exit_on_error():
        # Plots need the extra `report`, which the other commands do without.
        from yolojob.reports import run_report, run_report_page

        if Path(run).is_dir():
            result = run_report.from_folder(Path(run))
            if job is not None:
                result = run_report.merge(result, run_report.from_cluster(job, context, namespace))
        else:
            result = run_report.from_cluster(run, context, namespace)
        if output.is_text:
            tables.show_run_report(result, console)
        else:
            dump(run_report.to_json(result), output)
        run_report_page.write_run_report_page(result, page)
        print_line(console, f"Written to {page}")
