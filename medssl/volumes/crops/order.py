"""In which order things come: a permutation for every epoch, of which any place is calculated by itself.

Nothing is stored and nothing is drawn beforehand, so that a step costs the same with ten volumes and with a million.
"""

from __future__ import annotations

import math
from hashlib import blake2b

ROUNDS = 8


def shuffled(position: int, count: int, key: str) -> int:
    """Which of `count` things comes at `position`: a permutation of 0 .. count - 1 for each epoch of `count` positions and each `key`.

    A Feistel network over the numbers below a product of two near-equal sides that is just above `count` (Black and Rogaway,
    "Ciphers with arbitrary finite domains", CT-RSA 2002); a number that falls beyond `count` is sent through again.
    """
    epoch, number = divmod(position, count)
    high = math.isqrt(count - 1) + 1
    low = -(-count // high)
    keys = blake2b(f"{key}/{epoch}/{count}".encode(), digest_size=16).digest()
    while True:
        left, right = divmod(number, low)
        for turn in range(0, ROUNDS, 2):
            left = (left + _mixed(keys, turn, right)) % high
            right = (right + _mixed(keys, turn + 1, left)) % low
        number = left * low + right
        if number < count:
            return number


def _mixed(key: bytes, turn: int, value: int) -> int:
    return int.from_bytes(blake2b(value.to_bytes(8, "little"), key=key, salt=bytes([turn]), digest_size=8).digest(), "little")
