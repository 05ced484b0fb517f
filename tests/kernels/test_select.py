import logging

import pytest
import torch

from skipgpt.kernels import select


def test_a_kernel_that_runs_is_launched() -> None:
    assert select.can_launch(torch.device("cpu"))  # in Triton's interpreter


def test_where_no_kernel_can_be_built_pytorch_packs_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(select, "triton_kernels", fail)
    with caplog.at_level(logging.WARNING, "skipgpt"):
        assert not select.can_launch(torch.device("cpu"))
    assert "Failed to find C compiler" in caplog.text
