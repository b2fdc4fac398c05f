"""Devices of the distributed world, as far as a machine without a GPU can tell."""

from __future__ import annotations

import os
import signal
import threading

import pytest

pytestmark = pytest.mark.torch

WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
"""Architectures of a wheel of torch."""


@pytest.mark.parametrize(
    ("capability", "architectures", "works"),
    [
        ((7, 0), WHEEL, False),
        ((7, 5), WHEEL, True),
        ((8, 9), WHEEL, True),
        ((9, 0), WHEEL, True),
        ((10, 3), WHEEL, True),
        ((12, 1), WHEEL, True),
        ((13, 0), WHEEL, False),
        ((13, 0), [*WHEEL, "compute_120"], True),
        ((7, 0), [], True),
    ],
)
def test_check_capability_refuses_gpus_without_kernels(
    capability: tuple[int, int], architectures: list[str], works: bool
) -> None:
    from yolojob_trainer.distributed.world import check_capability
    from yolojob_trainer.errors import BadInput

    if works:
        check_capability(capability, architectures, 0)
    else:
        with pytest.raises(BadInput, match=rf"GPU 0 has compute capability {capability[0]}.{capability[1]}"):
            check_capability(capability, architectures, 0)


@pytest.mark.parametrize(("in_pod", "reason", "code"), [(True, "NoWorkingGpu", 1), (False, "NotEnoughGpus", 2)])
def test_required_gpu_that_is_missing_is_the_nodes_fault_only_in_a_pod(
    monkeypatch: pytest.MonkeyPatch, in_pod: bool, reason: str, code: int
) -> None:
    import torch
    from yolojob_trainer.distributed.world import World
    from yolojob_trainer.errors import TrainerError

    from yolojob.api.spec import Gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if in_pod:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    else:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(TrainerError, match=r"1 process\(es\) need one GPU each") as missing:
        World.from_env(Gpu(), lambda _: None)
    assert (missing.value.reason, missing.value.exit_code) == (reason, code)


def test_wait_for_ranks_names_those_that_do_not_connect() -> None:
    from torch._C._distributed_c10d import HashStore
    from yolojob_trainer.distributed.world import wait_for_ranks
    from yolojob_trainer.errors import PeerLost

    store = HashStore()
    store.set("1", "here")
    with pytest.raises(PeerLost, match=r"rank\(s\) 0, 2 have not connected after 0 s"):
        wait_for_ranks(store, str, 3, 0.0)


def test_signal_handlers_run_while_a_rank_is_waited_for() -> None:
    """A blocking `get` would keep them from running, so that SIGTERM would not end the process."""
    from torch._C._distributed_c10d import HashStore
    from yolojob_trainer.distributed.world import wait_for_ranks

    store = HashStore()
    previous = signal.signal(signal.SIGUSR1, lambda *_: store.set("0", "here"))
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        wait_for_ranks(store, str, 1)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert store.check(["0"])


@pytest.mark.parametrize("required", [True, False])
def test_gpu_without_kernels_is_refused_only_if_a_gpu_is_required(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], required: bool
) -> None:
    import torch
    from yolojob_trainer.distributed.world import World
    from yolojob_trainer.errors import BadInput

    from yolojob.api.spec import Gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: WHEEL)
    gpu = Gpu(required=required)
    if required:
        with pytest.raises(BadInput, match=r"compute capability 7\.0"):
            World.from_env(gpu, lambda _: None)
    else:
        assert World.from_env(gpu, lambda _: None).device.type == "cpu"
        assert "trains on the CPU" in capsys.readouterr().err
