"""Two processes on two CUDA devices, by NCCL, do what one does."""

import pytest
import torch

from tests.gpu.checks import assert_same_training, launch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices"),
]


def test_two_processes_train_as_one(tmp_path):
    """Started by accelerate; the first iteration's rewards are equal, parameters to rounding."""
    for processes in (1, 2):
        ended = launch(tmp_path / str(processes), processes=processes)
        assert ended.returncode == 0, ended.stdout

    assert_same_training(tmp_path / "1", tmp_path / "2")
