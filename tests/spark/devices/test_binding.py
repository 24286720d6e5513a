"""Which device a worker gets, and what is refused; GPUs are told of by a program of the test's own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparknet.config import Cluster
from sparknet.errors import ClusterError, ConfigError
from sparknet.spark.devices import binding, file_leases, gpus
from sparknet.spark.devices.binding import bound_device
from sparknet.spark.devices.gpus import Gpu, host_gpus, usable_gpus

FOUR = tuple(Gpu(index=str(at), name="T", memory="16384 MiB", driver="550.1", uuid=f"GPU-{at}") for at in range(4))

SMI = """#!/bin/sh
i=0
while [ $i -lt 4 ]; do echo "$i, Tesla T4, 15360 MiB, 550.54.15, GPU-abc$i"; i=$((i+1)); done
"""


@pytest.fixture
def with_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A host with GPUs and a torch for CUDA."""

    def make(count: int = 4) -> None:
        monkeypatch.setattr(gpus, "host_gpus", lambda: FOUR[:count])
        monkeypatch.setattr(binding, "torch_has_cuda", lambda: True)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(binding, "_before", [])
    monkeypatch.setattr(file_leases.tempfile, "gettempdir", lambda: str(tmp_path))
    return make


def test_the_drivers_program_tells_of_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    host_gpus.cache_clear()
    try:
        found = host_gpus()
        assert [gpu.index for gpu in found] == ["0", "1", "2", "3"]
        assert (found[1].name, found[1].memory, found[1].driver) == ("Tesla T4", "15360 MiB", "550.54.15")
        program.write_text("#!/bin/sh\nexit 9\n")
        host_gpus.cache_clear()
        assert host_gpus() == ()
    finally:
        host_gpus.cache_clear()


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ("0", "1", "2", "3")),
        ("", ()),
        ("2,3", ("2", "3")),
        ("GPU-1", ("1",)),
        ("GPU-3,0", ("3", "0")),
        ("1,7,2", ("1",)),
        ("-1", ()),
    ],
)
def test_what_the_variable_leaves(visible: str | None, expected: tuple[str, ...]) -> None:
    assert usable_gpus(visible, FOUR) == expected


def test_a_worker_sees_its_own_gpu_alone_and_gives_it_back(with_gpus: Callable[..., None]) -> None:
    with_gpus(2)
    seen: list[str] = []
    for _ in range(2):
        with bound_device(Cluster(), host="here", holder="w") as bound:
            assert bound.device == torch.device("cuda:0")
            child = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
            seen.append(subprocess.run(child, capture_output=True, text=True, check=True).stdout.strip())
            assert bound.shown == f"GPU {seen[-1]} of here"
            assert bound.valid()
    assert seen == ["0", "0"], "the next task of a process sees all that the first one saw"


def test_no_gpu_is_taken_where_none_is_wanted_or_there(with_gpus: Callable[..., None]) -> None:
    with_gpus(4)
    with bound_device(Cluster(device="cpu"), host="here", holder="w") as bound:
        assert (bound.device.type, bound.shown) == ("cpu", "cpu")
    with_gpus(0)
    with bound_device(Cluster(), host="here", holder="w") as bound:
        assert bound.device.type == "cpu"


def test_where_all_are_taken_the_cpu_will_do_unless_it_will_not(with_gpus: Callable[..., None]) -> None:
    with_gpus(1)
    with bound_device(Cluster(), host="here", holder="first"):
        with bound_device(Cluster(), host="here", holder="second") as second:
            assert second.shown == "cpu, since all GPUs of here are taken"
        wanted = Cluster(device="cuda", start_seconds=0.2)
        with (
            pytest.raises(ClusterError, match="all GPUs of here are taken: GPU 0 of here: first"),
            bound_device(wanted, host="here", holder="second"),
        ):
            pass


@pytest.mark.parametrize(
    ("cluster", "count", "message"),
    [
        (Cluster(device="cuda"), 0, r"cluster\.device is 'cuda' and here has no GPU that this process may use"),
        (Cluster(leases="spark"), 1, r"cluster\.leases is 'spark' and Spark has given this task no GPU"),
        (Cluster(leases="redis"), 1, r"cluster\.leases is 'redis' and no server is named"),
    ],
)
def test_what_cannot_be_had(
    with_gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch, cluster: Cluster, count: int, message: str
) -> None:
    monkeypatch.delenv("Redis", raising=False)
    with_gpus(count)
    with pytest.raises(ConfigError, match=message), bound_device(cluster, host="here", holder="w"):
        pass


def test_a_build_without_cuda_is_told(with_gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(1)
    monkeypatch.setattr(binding, "torch_has_cuda", lambda: False)
    with (
        pytest.raises(ConfigError, match=r"torch \S+ on here was built without CUDA"),
        bound_device(Cluster(device="cuda"), host="here", holder="w"),
    ):
        pass


def test_the_originals_gpu_hosts(with_gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(4)
    monkeypatch.setenv("GPU_HOSTS", "a, b")
    with bound_device(Cluster(), host="c", holder="w") as bound:
        assert bound.device.type == "cpu"
    with bound_device(Cluster(), host="b", holder="w") as bound:
        assert bound.device.type == "cuda"


def test_a_process_whose_cuda_has_seen_another_gpu_makes_way(
    with_gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(4)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(binding, "_before", [None])
    with (
        pytest.raises(ClusterError, match="has used GPU 3 before and is given GPU 0 now"),
        bound_device(Cluster(), host="here", holder="w"),
    ):
        pass
