"""What the tests of several modules use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """torch.compile without what earlier tests compiled."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
