"""How a machine's GPUs are cut between engine processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from prebake.errors import SettingsError
from prebake.settings import Engine
from tasks.gpus import environments, visible_gpus


def cut(gpus: list[str], processes: int, **args: int) -> list[str | None]:
    engines = environments(Engine(args=args), gpus, processes)
    return [environment.get("CUDA_VISIBLE_DEVICES") for environment in engines]


def test_each_process_gets_one_gpu_of_its_own() -> None:
    assert cut(["0", "1", "2", "3"], 3) == ["0", "1", "2"]


def test_a_slice_is_as_wide_as_tensor_times_pipeline_parallel() -> None:
    gpus = [str(number) for number in range(8)]
    assert cut(gpus, 2, tensor_parallel_size=2, pipeline_parallel_size=2) == ["0,1,2,3", "4,5,6,7"]


def test_one_process_keeps_all_that_the_machine_shows() -> None:
    assert cut(["0", "1"], 1) == [None]


def test_a_machine_without_gpus_is_not_cut() -> None:
    assert cut([], 2) == [None, None]


def test_too_few_gpus_are_an_error_that_says_how_many_processes_fit() -> None:
    with pytest.raises(SettingsError, match=r"2 engines with 2 GPUs each need 4.*3 \(a,b,c\).*to 1 or less"):
        cut(["a", "b", "c"], 2, tensor_parallel_size=2)


def test_only_the_gpus_that_the_environment_names_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-3f, 5")
    assert visible_gpus() == ["GPU-3f", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_without_such_a_name_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 0\necho 1\n")
    driver.chmod(0o755)
    assert visible_gpus() == ["0", "1"]
