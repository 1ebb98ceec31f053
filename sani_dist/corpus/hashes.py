"""Hashes of any part of a text, from one pass over it.

A part's hash is a polynomial of its characters modulo 2^64 (Rabin and Karp), so it is the difference of two running sums. Equal parts have
equal hashes wherever they stand; of a billion parts and ten million others, two that differ are taken for equal with a chance of 1 in 2000.
"""

from __future__ import annotations

import numpy as np

# Odd, so that it has an inverse modulo 2^64.
_BASE = 0xD6E8FEB86659FD93
_MIX = np.uint64(0x9E3779B97F4A7C15)


class HashedText:
    """A text, of any part of which the hash is known."""

    def __init__(self, text: str) -> None:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        powers, self._inverses = _powers(len(codes))
        mixed = (codes.astype(np.uint64) + np.uint64(1)) * _MIX
        mixed ^= mixed >> np.uint64(32)
        self._sums = np.zeros(len(codes) + 1, np.uint64)
        np.cumsum(mixed * powers, out=self._sums[1:])

    def of(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Hashes uint64 [parts] of the parts [starts, ends)."""
        hashes: np.ndarray = (self._sums[ends] - self._sums[starts]) * self._inverses[starts]
        return hashes


_known_powers = np.ones((2, 1), np.uint64)


def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """_BASE and its inverse to the powers 0, 1, ...; uint64 [count] and [count + 1]."""
    global _known_powers
    if _known_powers.shape[1] < count + 1:
        size = max(count + 1, 2 * _known_powers.shape[1])
        _known_powers = np.ones((2, size), np.uint64)
        for powers, base in zip(_known_powers, (_BASE, pow(_BASE, -1, 2**64)), strict=True):
            powers[1:] = base
            np.cumprod(powers, out=powers)
    return _known_powers[0, :count], _known_powers[1, : count + 1]
