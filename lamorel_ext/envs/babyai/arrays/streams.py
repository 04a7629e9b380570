"""numpy's random words for many seeds at once: ``SeedSequence`` and ``PCG64``, in arrays.

Building numpy's own objects takes longer than drawing a whole episode from them. Both algorithms
are part of numpy's promise that a seed gives the same numbers in every release; a test holds these
to them.
"""

from __future__ import annotations

from functools import cache

import numpy as np

_POOL = 4
_HASH_A, _TIMES_A = 0x43B0D7E5, 0x931E8875
_HASH_B, _TIMES_B = 0x8B51F9DD, 0x58F38DED
_MIX_LEFT, _MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_SHIFT = np.uint32(16)
_LCG = 0x2360ED051FC65DA44385DF649FCCF645
_LANES = 8
"""Numbers of each seed that are computed side by side: few enough for what is computed to stay in
the processor's cache.
"""
_BITS_32, _BITS_64, _BITS_128 = 2**32 - 1, 2**64 - 1, 2**128 - 1


class _Hash:
    """The running constants of one pass of hashing."""

    def __init__(self, start: int, factor: int) -> None:
        self._constant, self._factor = start, factor

    def __call__(self, values: np.ndarray) -> np.ndarray:
        before = np.uint32(self._constant)
        self._constant = self._constant * self._factor & _BITS_32
        mixed = (values ^ before) * np.uint32(self._constant)
        return mixed ^ (mixed >> _SHIFT)


def seed_states(entropy: np.ndarray, num_words: int) -> np.ndarray:
    """``SeedSequence(row).generate_state(num_words)`` for every row.

    Args:
        entropy: ``(n, words)`` uint32.
        num_words: 32-bit words wanted.

    Returns:
        ``(n, num_words)`` uint32.
    """
    columns = list(entropy.T)
    hashed = _Hash(_HASH_A, _TIMES_A)
    nothing = np.zeros(len(entropy), dtype=np.uint32)
    pool = [hashed(columns[i] if i < len(columns) else nothing) for i in range(_POOL)]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                pool[target] = _mixed(pool[target], hashed(pool[source]))
    for column in columns[_POOL:]:
        pool = [_mixed(value, hashed(column)) for value in pool]
    drawn = _Hash(_HASH_B, _TIMES_B)
    return np.stack([drawn(pool[i % _POOL]) for i in range(num_words)], axis=1)


def random_words(seeds: np.ndarray, num_words: int) -> np.ndarray:
    """The first 32-bit words of ``PCG64(seed)`` for every seed, in the order in which numpy's
    bounded integers use them.

    Args:
        seeds: ``(n,)`` integers below 2**32.
        num_words: Words wanted, an even number.

    Returns:
        ``(n, num_words)`` uint32: the lower half of each 64-bit number before its upper half.
    """
    state = seed_states(seeds.astype(np.uint32)[:, None], 8).astype(np.uint64)
    first_high, first_low, stream_high, stream_low = (
        state[:, i] | state[:, i + 1] << np.uint64(32) for i in range(0, 8, 2)
    )
    stream_high = stream_high << np.uint64(1) | stream_low >> np.uint64(63)
    stream_low = stream_low << np.uint64(1) | np.uint64(1)
    first_low = first_low + stream_low
    first_high = first_high + stream_high + (first_low < stream_low)
    stream = stream_high[:, None], stream_low[:, None]
    powers, sums = _jumps(_LANES)
    place = _sum(
        _product(first_high[:, None], first_low[:, None], *powers), _product(*stream, *sums)
    )
    # From here on every lane leaps as many steps as the last but one has gone by now: _LANES.
    far, far_sum = ((high[-2:-1], low[-2:-1]) for high, low in (powers, sums))
    added = _product(*stream, *far_sum)
    numbers = np.empty((len(seeds), -(-num_words // 2 // _LANES) * _LANES), dtype="<u8")
    for begin in range(0, numbers.shape[1], _LANES):
        numbers[:, begin : begin + _LANES] = _output(*place)
        place = _sum(_product(*place, *far), added)
    return numbers.view("<u4")[:, :num_words]


def _output(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """What the generator gives in a state."""
    turn = high >> np.uint64(58)
    mixed = high ^ low
    rotated: np.ndarray = mixed >> turn | mixed << (np.uint64(64) - turn & np.uint64(63))
    return rotated


def words_of(seed: int, start: int, count: int) -> list[int]:
    """Words of one seed, from numpy itself: ``count`` of them from the place ``start`` on, both
    even. Any seed that numpy takes.
    """
    bits = np.random.PCG64(seed)
    if start:
        bits.advance(start // 2)
    numbers = bits.random_raw(count // 2)
    words: list[int] = numbers.astype("<u8").view("<u4").tolist()
    return words


def _mixed(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    product: np.ndarray = left * _MIX_LEFT - right * _MIX_RIGHT
    mixed: np.ndarray = product ^ (product >> _SHIFT)
    return mixed


@cache
def _jumps(count: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Upper and lower halves of what the start and the stream's constant are multiplied by to reach
    each of ``count`` numbers at once.

    The generator's state s becomes a s + c at every step, after k steps a^k s + (1 + a + ... +
    a^(k-1)) c; its first number needs two steps.
    """
    powers, sums = [], []
    power, total = _LCG, 1
    for _ in range(count):
        total = (total * _LCG + 1) & _BITS_128
        power = power * _LCG & _BITS_128
        powers.append(power)
        sums.append(total)
    return _halves(powers), _halves(sums)


def _halves(values: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([value >> 64 for value in values], dtype=np.uint64), np.array(
        [value & _BITS_64 for value in values], dtype=np.uint64
    )


def _sum(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of 128-bit numbers modulo 2**128, as upper and lower halves."""
    low = one[1] + other[1]
    return one[0] + other[0] + (low < one[1]), low


def _product(
    high: np.ndarray, low: np.ndarray, other_high: np.ndarray, other_low: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Product of 128-bit numbers modulo 2**128, as upper and lower halves."""
    half, mask = np.uint64(32), np.uint64(_BITS_32)
    a, b, c, d = low >> half, low & mask, other_low >> half, other_low & mask
    cross = b * d
    cross = a * d + (cross >> half)
    other_cross = b * c + (cross & mask)
    upper = a * c + (cross >> half) + (other_cross >> half)
    return upper + high * other_low + low * other_high, low * other_low
