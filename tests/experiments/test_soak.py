"""What a long launch says of its memory, its speed and its answers."""

from __future__ import annotations

import pytest

from experiments.bench.scale.soak import growth_of, rows


def test_a_soak_judges_memory_once_it_has_settled_and_by_the_rank_that_grew_most() -> None:
    samples = [
        {"time": float(at), "env_steps": float(at), "env_steps_per_s": speed}
        | {"memory_mib_rank_0": 100.0, "memory_mib_rank_1": memory}
        | {f"answer_seconds_p{percentile}": 0.1 * at for percentile in (50, 95, 99)}
        for at, speed, memory in [(0, 9.0, 50.0), (300, 2.0, 200.0), (400, 4.0, 210.0)]
    ]
    found = {row.name: row for row in rows(samples)}
    memory = found["soak_memory"]
    assert memory.value == pytest.approx(0.05) and memory.passed is False
    assert memory.detail["memory_mib_rank_1"] == "200 to 210 MiB"
    growth = found["soak_memory_growth"]
    assert growth.value == pytest.approx(0.05) and growth.passed is False
    assert growth.detail["memory_mib_rank_0"] == 0.0
    assert found["soak_steps"].value == 3.0
    assert found["soak_answer_p99"].value == 35.0
    with pytest.raises(RuntimeError, match="1 samples after 300 s"):
        rows(samples[:2])


def test_what_an_update_takes_and_returns_is_no_growth_of_a_soak() -> None:
    memory = [600.0, 760.0, 640.0, 700.0] * 12
    assert growth_of(_memory_every_half_minute(memory), "memory") == 0.0
    assert growth_of(_memory_every_half_minute(memory[::-1]), "memory") == 0.0


def test_a_leak_of_one_mib_a_minute_is_growth_of_a_soak() -> None:
    leaking = [600 + 60 * (place % 2) + place / 2 for place in range(52)]
    # Five windows, the medians of the first and the last (604 + 660.5) / 2 and (625 + 680.5) / 2.
    grew = growth_of(_memory_every_half_minute(leaking), "memory")
    assert grew == pytest.approx(20.5 / 632.25) and grew > 0.03
    assert growth_of(_memory_every_half_minute(leaking[::-1]), "memory") == 0.0


def _memory_every_half_minute(values: list[float]) -> list[dict[str, float]]:
    return [{"time": 1e9 + 30.0 * place, "memory": own} for place, own in enumerate(values)]
