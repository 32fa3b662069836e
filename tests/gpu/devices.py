"""What `make gpu` tests on a CUDA device, and every test run on the processor.

Nothing here needs more than torch, transformers and pytest. On a machine without CUDA the same
tests run on the processor, but those of what it has not: captured steps, waits for a device.
"""

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """CUDA where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def cuda(device) -> torch.device:
    """For tests of what a processor does not have."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    return device
