"""Every random draw is a function of what it is for: (seed, purpose, epoch or step), never of what ran before it."""

from __future__ import annotations

import hashlib
import operator

import torch


def seed_for(*keys: int | str) -> int:
    """A 63-bit seed from any keys, the same on every machine and in every process.

    NumPy's integers and tensors of one integer count as the integers they hold; other keys are a TypeError.

    >>> seed_for(0, "order", 1) == seed_for(0, "order", 1) != seed_for(0, "order", 2)
    True
    """
    # The digest is of the keys' text, and the text of a NumPy integer is not that of an int.
    plain = tuple(str(key) if isinstance(key, str) else int(operator.index(key)) for key in keys)
    return int.from_bytes(hashlib.blake2b(repr(plain).encode(), digest_size=8).digest(), "little") >> 1


def generator_for(*keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded by `seed_for`."""
    return torch.Generator(device).manual_seed(seed_for(*keys))
