"""Tests of trained policies under other conditions: what a condition changes, what it costs, and
the programme from end to end.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from made_runs import make_config, make_run
from tiny_llm import save_tiny_llm

from experiments import compare, generalise
from experiments.runs.entry import run_main
from experiments.suites.generalisation.conditions import (
    CONDITIONS,
    GROUPS,
    changed,
    choose,
    hindrance,
)
from experiments.suites.generalisation.outcomes import (
    RANDOM,
    Bench,
    Outcome,
    Policy,
    _examine,
    examine_policy,
)
from experiments.suites.generalisation.summary import headline, mean_change, rows_of, summarise
from lamorel_ext.agents.actors import UniformActor
from lamorel_ext.config import Config, load_config
from lamorel_ext.envs.babyai.levels import level_ids
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import Decision, Scene
from lamorel_ext.randomness import Draws
from lamorel_ext.training.evaluate import Evaluation
from lamorel_ext.training.rewording import RewordedClient
from lamorel_ext.types import ScoreRequest

SMALL = [
    "env.num_envs=4",
    "student.num_steps=8",
    "ppo.num_steps=8",
    "run.total_steps=32",
    "run.eval_every=32",
    "run.evaluation=exact",
]


# --- conditions -----------------------------------------------------------------------------------


def test_every_condition_is_one_of_a_group_and_changes_something_that_exists() -> None:
    config = load_config()
    for name, condition in CONDITIONS.items():
        assert (
            name == condition.name
            and condition.group in GROUPS
            and (condition.wording or condition.env)
        )
        assert changed(config, condition).env.level in level_ids()


def test_tests_are_chosen_by_name_and_by_group() -> None:
    assert [condition.name for condition in choose(["language", "other_nouns"])] == [
        "other_nouns",
        "french",
    ]
    assert {condition.group for condition in choose([])} == set(GROUPS)
    assert (
        "distractors_16" not in {condition.name for condition in choose(["distractors"])}
        and len(choose(["distractors_16"])) == 1
    )
    with pytest.raises(ConfigError, match="no frensh; there are words, "):
        choose(["frensh"])


def test_a_condition_changes_what_it_names_and_leaves_the_rest() -> None:
    config = load_config(
        ["env.prompt=glam", "env.level=BabyAI-GoToLocal-v0", "env.num_distractors=3"]
    )
    assert changed(config, CONDITIONS["other_nouns"]) == config
    assert changed(config, CONDITIONS["french"]).env == dataclasses.replace(
        config.env, language="fr"
    )
    assert changed(config, CONDITIONS["distractors_8"]).env == dataclasses.replace(
        config.env, num_distractors=8
    )
    pick_up = changed(config, CONDITIONS["pick_up"]).env
    assert pick_up == dataclasses.replace(
        config.env, level="BabyAI-PickupLocal-v0", num_distractors=None
    )


def test_a_bare_room_gets_its_distractors_in_the_level_that_can_have_them() -> None:
    config = load_config()
    env = changed(config, CONDITIONS["distractors_4"]).env
    assert (env.level, env.num_distractors) == ("BabyAI-GoToRedBall-v0", 4) and not hindrance(
        config, CONDITIONS["distractors_4"]
    )


@pytest.mark.parametrize(
    ("overrides", "condition", "reason"),
    [
        ([], "distractors_0", "it was trained so"),
        (["task=go_to_local"], "go_to_any", "it was trained so"),  # eight objects, the level's own
        (["task=go_to_local_d4"], "go_to_any", ""),
        (["env.level=BabyAI-GoToLocal-v0"], "distractors_8", "it was trained so"),
        (["task=pick_up_local"], "pick_up", "it was trained so"),
        (["env.language=fr"], "french", "it was trained so"),
        (["env.level=BabyAI-PickupLocal-v0"], "pick_up", "it was trained so"),
        (
            ["env.level=BabyAI-OpenDoor-v0"],
            "distractors_4",
            "BabyAI-OpenDoor-v0 takes no number of distractors",
        ),
        (["env.level=BabyAI-OpenDoor-v0"], "other_nouns", ""),
        (
            ["env.language=fr"],
            "invented_nouns",
            "other and invented words: in place of English words; the run reads French",
        ),
        (["env.language=fr"], "goal_as_wish", ""),
        (
            ["env.language=fr", "env.prompt=glam"],
            "goal_as_wish",
            "another phrase before the goal: in place of English words; the run reads French",
        ),
        (["env.language=fr", "env.prompt=glam"], "synonym_actions", ""),
        (["env.level=BabyAI-GoToFrench-v0"], "french", "it was trained so"),
        (
            ["env.level=BabyAI-GoToFrench-v0"],
            "invented_words",
            "other and invented words: in place of English words; the run reads French",
        ),
        (
            ["env.level=BabyAI-GoToFrench-v0"],
            "go_to_any",
            "BabyAI-GoToFrench-v0 alone speaks French where env.language does not",
        ),
        (["env.level=BabyAI-GoToFrench-v0", "env.language=fr"], "go_to_any", ""),
        (["env.level=BabyAI-GoToFrench-v0", "env.prompt=glam"], "goal_as_wish", ""),
    ],
)
def test_a_test_that_makes_no_sense_is_named_with_its_reason(
    overrides: list[str], condition: str, reason: str
) -> None:
    assert hindrance(load_config(overrides), CONDITIONS[condition]) == reason


def test_a_number_is_called_what_it_is_in_every_level() -> None:
    assert CONDITIONS["distractors_4"].title == "num_distractors=4"  # in GoToLocal all objects


@pytest.mark.parametrize("condition", ["go_to_any", "distractors_4", "french", "synonym_actions"])
def test_what_is_babyais_own_is_left_out_in_an_environment_of_ones_own(condition: str) -> None:
    config = load_config(["env._target_=my_kitchen.Kitchen", "env.prompt=glam"])
    assert "BabyAI's own; the run acts in my_kitchen.Kitchen" in hindrance(
        config, CONDITIONS[condition]
    )
    assert hindrance(config, CONDITIONS["other_nouns"]) == ""
    assert hindrance(config, CONDITIONS["goal_as_wish"]) == ""


@pytest.mark.parametrize("arm", ["npae", "prompt_search", "preferences", "cloning"])
def test_the_model_before_training_is_asked_as_a_policy_whatever_the_arm_was(arm: str) -> None:
    trained = load_config([f"arm={arm}"])
    zero_shot = generalise._references([Policy(arm, trained)], zero_shot=True)[0].config
    plain = load_config(["arm=llm_policy"])
    for name in ("arm", "method", "agent"):
        assert getattr(zero_shot, name) == getattr(plain, name)
    assert zero_shot.env == trained.env and zero_shot.run == trained.run


# --- numbers --------------------------------------------------------------------------------------


def exactly(success: float) -> Evaluation:
    return Evaluation(
        success,
        success / 2,
        True,
        np.zeros(0, dtype=bool),
        np.zeros(0),
        np.zeros(0, dtype=np.int64),
    )


def episodes(*successes: int) -> Evaluation:
    found = np.array(successes, dtype=bool)
    return Evaluation(
        float(found.mean()),
        float(found.mean()) / 2,
        False,
        found,
        found / 2,
        np.full(len(successes), 7),
    )


def outcome(
    arm: str, seed: int, test: str, result: Evaluation, unchanged: Evaluation, reads: bool = True
) -> Outcome:
    config: Config = load_config()
    return Outcome(
        arm, seed, CONDITIONS[test], reads, changed(config, CONDITIONS[test]), result, unchanged
    )


def test_an_arms_change_is_the_mean_over_its_seeds_with_an_interval_over_them() -> None:
    changes = (-0.5, -0.3, -0.1)
    (cell,) = summarise(
        [
            outcome("a", seed, "french", exactly(0.9 + change), exactly(0.9))
            for seed, change in enumerate(changes)
        ]
    )
    assert cell.change.estimate == pytest.approx(-0.3) and cell.success.estimate == pytest.approx(
        0.6
    )
    half = 4.302652730 * 0.2 / 3**0.5  # standard deviation 0.2, t of two degrees of freedom
    assert (cell.change.low, cell.change.high) == pytest.approx(
        (-0.3 - half, -0.3 + half), abs=1e-8
    )


def test_a_single_seed_has_an_interval_over_paired_episodes_or_none_where_it_is_exact() -> None:
    simulated, exact = summarise(
        [
            outcome("a", 0, "pick_up", episodes(1, 0, 0, 0), episodes(1, 1, 1, 0)),
            outcome("a", 0, "french", exactly(0.25), exactly(0.75)),
        ]
    )
    assert (
        simulated.change.estimate == -0.5
        and -1.0 == simulated.change.low < -0.5 < simulated.change.high < 1.0
    )
    assert simulated.success.low == pytest.approx(
        0.0456, abs=1e-4
    ) and simulated.success.high == pytest.approx(0.6994, abs=1e-4)  # Wilson
    assert (
        exact.change.estimate == -0.5
        and math.isnan(exact.change.low)
        and math.isnan(exact.success.high)
    )


def test_rows_hold_every_seed_and_the_arm() -> None:
    cells = summarise(
        [
            outcome("a", seed, "distractors_4", exactly(success), exactly(1.0))
            for seed, success in ((3, 0.5), (4, 0.7))
        ]
    )
    rows = rows_of(cells)
    assert [list(row.values())[:7] for row in rows] == [
        ["a", seed, "distractors", "distractors_4", "BabyAI-GoToRedBall-v0", "4", "0"]
        for seed in ("3", "4", "")
    ]
    assert [row["success"] for row in rows] == ["0.5", "0.7", "0.6"]
    assert [float(row["change"]) for row in rows] == pytest.approx([-0.5, -0.3, -0.4])
    assert [row["return"] for row in rows] == ["0.25", "0.35", ""]
    assert [row["unchanged"] for row in rows] == ["1", "1", "1"]


def test_the_answer_names_the_arm_that_loses_most_among_those_that_read() -> None:
    tests = [
        outcome("fragile", 0, "french", exactly(0.2), exactly(0.9)),
        outcome("fragile", 0, "other_nouns", exactly(0.89), exactly(0.9)),
        outcome("steady", 0, "french", exactly(0.8), exactly(0.9)),
        outcome("steady", 0, "other_nouns", exactly(0.9), exactly(0.9)),
        outcome("deaf", 0, "french", exactly(0.1), exactly(0.9), reads=False),
        outcome("fragile", 0, "pick_up", episodes(1, 0), episodes(1, 1)),
        outcome(RANDOM, 0, "pick_up", episodes(0, 0), episodes(1, 0), reads=False),
    ]
    first, second, third, fourth, caution = headline(summarise(tests))
    assert first == (
        "Said in other words, the same episodes cost fragile most: "
        "−0.700 under sentences in French, where it still succeeds in 0.200."
    )
    assert second == "Mean change of success over these 2 tests: fragile −0.355, steady −0.050."
    assert third == "No arm loses more than 0.02 under: nouns that exist: chair, table, car."
    assert "pick up an object 0.500 (fragile; random actions 0.000)" in fourth
    assert caution == "1 seed shows a tendency; a claim needs 10."


def test_a_gain_is_called_no_cost() -> None:
    tests = [outcome("a", 0, "distractors_8", episodes(1, 1), episodes(1, 0))]
    first, _ = headline(summarise(tests))
    assert first == (
        "Other numbers of distractors cost no arm anything; the least change is "
        "+0.500 [−1.000, +1.000], of a under num_distractors=8."
    )


def test_a_mean_over_tests_is_taken_seed_by_seed() -> None:
    changes = {1: (-0.4, 0.0), 2: (-0.2, -0.2), 3: (-0.1, -0.3)}
    tests = [
        outcome("a", seed, test, exactly(0.9 + change), exactly(0.9))
        for seed, both in changes.items()
        for test, change in zip(("french", "other_nouns"), both, strict=True)
    ]
    mean = mean_change(summarise(tests), "a")
    assert (mean.estimate, mean.low, mean.high) == pytest.approx(
        (-0.2, -0.2, -0.2)
    )  # every seed loses the same in the mean


# --- from end to end ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of three arms with a tiny model."""
    folder = tmp_path_factory.mktemp("trained")
    model = save_tiny_llm(tmp_path_factory.mktemp("tiny_llm"))
    overrides = [
        *SMALL,
        f"lamorel_args.llm_args.model_path={model}",
        "lamorel_args.llm_args.value_head_hidden=8",
        "compare.seeds=[5]",
        "compare.arms=[llm_policy,teacher_feedback+signal=gae,student_alone]",
        "compare.controls=[]",
        f"compare.output_dir={folder}",
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compare, "start_log", lambda level: None)
        assert compare.run(overrides) == 0
    return folder


def read_table(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open(newline="") as file:
        return {(row["arm"], row["test"]): row for row in csv.DictReader(file) if row["seed"]}


def test_a_comparison_is_tested_arm_by_arm(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generalise, "start_log", lambda level: None)
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert (
        generalise.run(
            [
                str(trained),
                "--tests",
                "other_nouns,synonym_actions,french,distractors_4",
                "--episodes",
                "3",
                "--output",
                str(tmp_path),
            ]
        )
        == 0
    )
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == f"generalisation: {tmp_path / 'generalisation.html'}"
    )
    table = read_table(tmp_path / "generalisation.csv")
    arms = ("llm_policy", "teacher_feedback/gae", "student_alone", "zero-shot")
    assert set(table) == {
        (arm, test)
        for arm in arms
        for test in ("other_nouns", "synonym_actions", "french", "distractors_4")
    } | {(RANDOM, "distractors_4")}
    assert all(
        float(table["student_alone", test]["change"]) == 0.0
        for test in ("other_nouns", "synonym_actions", "french")
    )
    assert (
        float(table["llm_policy", "synonym_actions"]["change"]) != 0.0
        and float(table["teacher_feedback/gae", "french"]["change"]) != 0.0
    )
    assert (
        table["llm_policy", "other_nouns"]["episodes"] == "0"
        and table["llm_policy", "distractors_4"]["episodes"] == "3"
    )
    page = (tmp_path / "generalisation.html").read_text()
    assert (
        page.count('<svg role="img"') == 2
        and "turn left → rotate left" in page
        and 'src="http' not in page
    )
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{kind}"
        for name in ("change_by_test", "success_by_test")
        for kind in ("svg", "png")
    }
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_single_run_is_tested_alone_and_on_episodes_where_its_prompts_remember(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generalise, "start_log", lambda level: None)
    folder = trained / "teacher_feedback+signal=gae" / "seed_5"
    options = [
        "--tests",
        "other_nouns",
        "--episodes",
        "2",
        "--no-zero-shot",
        "--output",
        str(tmp_path),
        "env.prompt=glam",
    ]
    assert generalise.run([str(folder), *options]) == 0
    row = read_table(tmp_path / "generalisation.csv")["teacher_feedback/gae", "other_nouns"]
    assert row["episodes"] == "2"  # a prompt with a history cannot be evaluated exactly


def test_the_servers_are_for_every_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = ["llm_policy", "teacher_frozen"]
    for arm in arms:
        make_run(make_config(arm, 0, tmp_path, arms), [0.0, 0.5])
    served: list[str] = []

    def ranked(config: object, client: object, others: Iterable[Config]) -> int:
        served.extend(one.arm.name for one in others)
        return 0

    monkeypatch.setattr(generalise, "run_as_ranked", ranked)
    monkeypatch.setattr(generalise, "start_log", lambda level: None)
    assert generalise.run([str(tmp_path)]) == 0
    assert set(arms) <= set(served)


def test_missions_that_french_prompts_cannot_say_are_left_out_with_the_reason() -> None:
    config = load_config(
        [
            "arm=student_alone",
            "env.level=BabyAI-PickupLocal-v0",
            "env.prompt=glam",
            "env.num_envs=1",
            "run.eval_episodes=2",
        ]
    )
    unused = RewordedClient(Mock())
    outcomes, left_out = examine_policy(
        Policy("a", config), choose(["french", "other_nouns"]), unused
    )
    assert [outcome.condition.name for outcome in outcomes] == ["other_nouns"] and outcomes[
        0
    ].change == 0.0
    assert [item.condition.name for item in left_out] == [
        "french"
    ] and "can only say go-to missions, got 'pick up" in left_out[0].reason


class Asks(UniformActor):
    """Asks the LLM, and does not listen."""

    reads_prompts, enumerable = True, False

    def __init__(self, llm: RewordedClient) -> None:
        super().__init__()
        self._llm = llm

    def decide(self, scene: Scene, draws: Draws) -> Decision:
        self._llm.score_batch(ScoreRequest(scene.shown, scene.candidates))
        return super().decide(scene, draws)


def test_words_of_which_the_policy_reads_none_are_no_test_that_it_passes() -> None:
    config = load_config(["env.level=BabyAI-OpenDoor-v0", "run.eval_episodes=1"])
    client = RewordedClient(Mock())
    bench = Bench(Policy("a", config), Asks(client), client=client)
    outcomes, left_out = _examine(bench, choose(["other_nouns", "other_colours"]))
    assert [outcome.condition.name for outcome in outcomes] == ["other_colours"]
    (nouns,) = left_out  # key, ball and box: there are doors alone
    assert nouns.condition.name == "other_nouns" and "has these words" in nouns.reason


def test_what_cannot_be_tested_is_said_without_a_traceback(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        ([str(tmp_path)], "holds no run"),
        ([str(trained), "--arms", "lm_policy"], "arms: no lm_policy in"),
        ([str(trained), "--tests", "nonsense"], "tests: no nonsense; there are"),
        ([str(trained), "--episodes", "0"], "--episodes: must be at least 1, got 0"),
    ):
        assert run_main(generalise.run, arguments) in (1, 2)
        errors = capsys.readouterr().err
        assert message in errors and "Traceback" not in errors
