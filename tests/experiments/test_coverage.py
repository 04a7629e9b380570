"""What the report's 95 % intervals cover, simulated: 93 to 97 % but for the exceptions that are
stated here.
"""

from __future__ import annotations

import json

import pytest

from experiments.coverage import EFFECT, SEEDS, SHAPES, main, of_differences, of_one_arm

SETS = 1500


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_of_differences_hold_the_truth_in_93_to_97_of_100_cases(
    shape: str, seeds: int
) -> None:
    for effect in (0.0, EFFECT):
        for shared in (0.0, 0.5):
            found = of_differences(SHAPES[shape], seeds, effect, shared, SETS)
            lowest, highest = 0.93, 0.97
            # Exception: with three or five seeds nothing covers 95 % of skewed differences; these
            # intervals are too wide then, which is safe. Where one arm varies less than the other,
            # five skewed seeds are covered in 92 %.
            if seeds <= 5:
                lowest, highest = (0.91 if shape == "skewed" else 0.93), 0.985
            assert lowest <= found <= highest, (shape, seeds, effect, shared)


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_of_one_skewed_arm_is_covered_less_often(shape: str, seeds: int) -> None:
    found = of_one_arm(SHAPES[shape], seeds, SETS)
    # Exception, said in docs/results/README.md: Student's t of one skewed sample covers 87 to 93 %,
    # more with more seeds.
    lowest = {"normal": 0.93, "skewed": 0.865, "bounded": 0.88}[shape]
    assert lowest <= found <= 0.97


def test_no_comparisons_cover_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--sets", "0"])
    assert "--sets: expected at least 1, got 0" in capsys.readouterr().err


def test_the_command_prints_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sets", "20"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["seeds"] for row in rows} == set(SEEDS) and {row["shape"] for row in rows} == set(
        SHAPES
    )
    assert all(0 <= row["coverage"] <= 1 for row in rows)
