"""The trainer's report, metrics and exit codes."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families
from yolojob_trainer.errors import is_lost_peer
from yolojob_trainer.launch import Gang, root_cause_exit_code
from yolojob_trainer.observability.metrics import TrainerMetrics, serve
from yolojob_trainer.observability.termination_message import shorten, write_termination_message
from yolojob_trainer.observability.throughput import Throughput
from yolojob_trainer.training.span import Span

from yolojob.api.constants import ExitCode
from yolojob.api.status import Progress
from yolojob.api.time_parts import TimePart
from yolojob.api.trainer_report import Failure, Report, TrainerState


@given(st.text(max_size=9000), st.lists(st.text(max_size=2000), max_size=8))
def test_shorten_with_any_report_fits_the_termination_limit(message: str, warnings: list[str]) -> None:
    failure = Failure(rank=0, reason="TrainingFailed", message=message, exit_code=1)
    text = shorten(Report(state=TrainerState.FAILED, failure=failure, warnings=warnings, progress=Progress(epoch=3)))
    assert len(text.encode()) <= 4096
    assert Report.model_validate_json(text).state == TrainerState.FAILED


def test_termination_message_of_a_lost_peer_does_not_replace_the_cause(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()

    def write(code: ExitCode) -> None:
        failure = Failure(rank=0, reason="Why", message=code.name, exit_code=code)
        write_termination_message(Report(state=TrainerState.FAILED, failure=failure), path)

    def message() -> str:
        return str(json.loads(path.read_text())["failure"]["message"])

    write(ExitCode.PEER_LOST)
    assert message() == "PEER_LOST"
    write(ExitCode.BAD_INPUT)
    assert message() == "BAD_INPUT"
    write(ExitCode.PEER_LOST)
    assert message() == "BAD_INPUT"


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0, 0], 0),
        ([0, 1], 1),
        ([1], 1),
        ([2, 76], 2),
        ([76, 2, 1], 2),
        ([76, 1], 1),
        ([76], 76),
        ([143, 76], 143),
        ([-9], 137),
        ([-9, 76], 137),
        ([-11, 143], 139),
    ],
)
def test_verdict_of_several_exit_codes_is_the_cause(codes: list[int], expected: int) -> None:
    assert root_cause_exit_code(codes) == expected


@pytest.mark.parametrize(
    ("gang", "local", "world", "rank"),
    [((1, 0, 1), 0, "1", "0"), ((4, 3, 1), 0, "4", "3"), ((2, 1, 4), 2, "8", "6")],
)
def test_environment_of_a_process_has_its_place_in_the_gang(
    gang: tuple[int, int, int], local: int, world: str, rank: str
) -> None:
    nodes, node, processes = gang
    variables = {"PET_NNODES": nodes, "PET_NODE_RANK": node, "PET_NPROC_PER_NODE": processes, "PET_MASTER_ADDR": "a.b"}
    env = Gang.from_env({name: str(value) for name, value in variables.items()}).environment(local, 1234)
    assert (env["WORLD_SIZE"], env["RANK"], env["LOCAL_RANK"]) == (world, rank, str(local))
    assert (env["LOCAL_WORLD_SIZE"], env["MASTER_ADDR"], env["MASTER_PORT"]) == (str(processes), "127.0.0.1", "1234")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.78.1.7]:5"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("connection closed by peer"), False),
    ],
)
def test_is_lost_peer_recognises_the_messages_of_gloo(error: Exception, lost: bool) -> None:
    assert is_lost_peer(error) == lost


def test_throughput_is_the_mean_over_a_window() -> None:
    speed = Throughput(window=1.0)
    assert speed.rate is None
    for _ in range(100):
        speed.add(0.1, 16)
    assert speed.rate == pytest.approx(160)
    for _ in range(20):
        speed.add(0.2, 16)
    assert speed.rate == pytest.approx(80, rel=0.1)
    with pytest.raises(ValueError, match="at least 0"):
        speed.add(-1, 1)


def test_metrics_server_serves_both_formats_and_progress() -> None:
    metrics = TrainerMetrics(namespace="default", job_name="digits", rank=1)
    metrics.images.inc(32)
    parts = [(TimePart.FORWARD, 0.25), (TimePart.BACKWARD, 0.5)]
    metrics.observe_step(Span(epoch=0, step=0, images=32, start=0.0, parts=parts, reduction=0.375))
    metrics.describe({"device": 'CPU "fast"'})
    port = serve(metrics, lambda: {"state": "Training"}, 0)
    url = f"http://127.0.0.1:{port}"
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        families = {f.name: f for f in text_string_to_metric_families(answer.read().decode())}
    request = urllib.request.Request(f"{url}/metrics", headers={"Accept": CONTENT_TYPE_LATEST})
    with urllib.request.urlopen(request) as answer:
        assert b"# EOF" in answer.read()
    images = families["yolojob_trainer_images"].samples[0]
    assert images.value == 32
    assert images.labels == {"namespace": "default", "job_name": "digits", "rank": "1"}
    sums = {
        s.labels["phase"]: s.value for s in families["yolojob_trainer_phase_seconds"].samples if s.name.endswith("_sum")
    }
    assert sums == {"forward": 0.25, "backward": 0.5}
    with urllib.request.urlopen(f"{url}/progress") as answer:
        assert json.load(answer) == {"state": "Training"}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{url}/else")
