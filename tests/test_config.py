"""The configuration: what ships is valid, what wins over what, and what is said about mistakes."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import yaml

from experiments.report.results import Arm, Run, Task
from experiments.report.summary import summarise
from experiments.runs.checks import check_configs
from lamorel_ext.config import (
    CONFIG_DIR,
    Config,
    StageArgs,
    from_mapping,
    leaves,
    load_config,
    load_matrix,
    read_config,
    save_config,
    to_mapping,
)
from lamorel_ext.config.cells import read_cell
from lamorel_ext.envs.babyai.levels import make_level
from lamorel_ext.errors import ConfigError

EXPERIMENTS = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))
ARMS = sorted(path.stem for path in (CONFIG_DIR / "arm").glob("*.yaml"))
TASKS = sorted(path.stem for path in (CONFIG_DIR / "task").glob("*.yaml"))
MODELS = sorted(path.stem for path in (CONFIG_DIR / "model").glob("*.yaml"))


@functools.cache
def arm_config(arm: str) -> Config:
    return load_config([f"arm={arm}"])


@functools.cache
def matrix(name: str) -> dict[tuple[str, str], Config]:
    return load_matrix((), name)


def problems(*overrides: str, name: str = "default") -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides, name)
    return str(caught.value)


# --- what ships -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_valid_and_changes_nothing_but_arm_and_method(arm: str) -> None:
    base, config = arm_config("teacher_feedback+signal=gae"), arm_config(arm)
    changed = {
        field.name
        for field in dataclasses.fields(Config)
        if getattr(base, field.name) != getattr(config, field.name)
    }
    # A trial of a reward program is a few rollouts, so that these are shorter there.
    own = {"student"} if arm == "reward_program" else set()
    assert changed <= {"arm", "feedback", "method", "agent", *own}
    assert "".join(re.findall("[a-z]+", config.arm.name)) == arm.replace("_", "")


def test_no_two_arms_have_the_same_label_or_the_same_values() -> None:
    assert len({arm_config(arm).arm.name for arm in ARMS}) == len(ARMS)
    configs = [arm_config(arm) for arm in ARMS]
    assert len(
        {
            (dataclasses.replace(config.arm, name=""), config.feedback, config.method, config.agent)
            for config in configs
        }
    ) == len(configs)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_valid_and_can_be_built_and_changes_nothing_but_the_level_and_the_budget(
    task: str,
) -> None:
    base, config = load_config(), load_config([f"task={task}"])
    assert dataclasses.replace(config, env=base.env, run=base.run) == base
    env = {
        "name": base.env.name,
        "level": base.env.level,
        "num_distractors": base.env.num_distractors,
    }
    run = {
        "total_steps": base.run.total_steps,
        "eval_every": base.run.eval_every,
        "eval_episodes": base.run.eval_episodes,
    }
    assert (
        dataclasses.replace(config.env, **env) == base.env
        and dataclasses.replace(config.run, **run) == base.run
    )  # type: ignore[arg-type]
    assert config.env.name == task
    make_level(config.env.level, config.env.num_distractors)


def test_no_two_tasks_are_the_same() -> None:
    found = load_matrix([f"compare.tasks=[{','.join(TASKS)}]", "compare.arms=[llm_policy]"])
    assert [task for task, _ in found] == TASKS and {arm for _, arm in found} == {"llm_policy"}
    assert len(
        {(config.env.level, config.env.num_distractors) for config in found.values()}
    ) == len(TASKS)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["compare.tasks=[go_to_local,go_to_loca]"],
            "with task=go_to_loca: task=go_to_loca: no such file in",
        ),
        (["compare.tasks=[go_to_local,go_to_local]"], "compare.tasks: names one twice"),
        (
            ["compare.tasks=[go_to_local,go_to_local_d4]", "env.num_distractors=2"],
            "go_to_local and go_to_local_d4 have the same env values",
        ),
        (
            ["compare.arms=[teacher_feedback,teacher_feedback+signal=weighted]"],
            "teacher_feedback and teacher_feedback+signal=weighted have the same values",
        ),
        (
            [
                "compare.arms=[teacher_feedback,teacher_feedback+signal=weighted+sign=random]",
                "compare.controls=[random]",
            ],
            "teacher_feedback+sign=random and teacher_feedback+signal=weighted+sign=random have",
        ),
        (
            ["compare.tasks=[go_to_local,open_door]", "run.total_steps=0"],
            "\n  - run.total_steps: must be at least 1",
        ),
        (
            [
                "compare.tasks=[go_to_local,open_door]",
                "compare.arms=[llm_policy,teacher_feedback+signal=gae]",
                "feedback.every=1",
            ],
            (
                "\n  - with arm=teacher_feedback+signal=gae: "
                "feedback.signal: gae needs the whole rollout"
            ),
        ),
    ],
)
def test_what_is_wrong_with_a_matrix_is_said_where_it_is_wrong(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_matrix(overrides)
    assert message in str(caught.value) and "1 problem " in str(caught.value)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_one_comment_and_one_to_four_lines(arm: str) -> None:
    header, comment, *lines = (CONFIG_DIR / "arm" / f"{arm}.yaml").read_text().splitlines()
    assert header == "# @package _global_" and comment.startswith("# ") and 1 <= len(lines) <= 4


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_valid_and_sets_both_step_sizes(model: str) -> None:
    written = yaml.safe_load((CONFIG_DIR / "model" / f"{model}.yaml").read_text())
    config = load_config([f"model={model}"], "demo")
    assert config.ppo.lr == written["ppo"]["lr"] and config.feedback.lr == written["feedback"]["lr"]
    assert (
        config.lamorel_args.llm_args.model_path == written["lamorel_args"]["llm_args"]["model_path"]
    )


def test_the_default_file_names_every_key_of_the_schema_with_the_schemas_default() -> None:
    written = yaml.safe_load((CONFIG_DIR / "default.yaml").read_text())
    del written["defaults"]
    expected = dict(leaves(to_mapping(Config()))) | {"updaters": {}, "heads": {}}
    no_plugs = ("agent", "method", "lamorel_args.llm_args.initializer")  # none: not written
    expected |= dict.fromkeys(no_plugs)
    assert dict(leaves(written)) == {
        key: list(value) if isinstance(value, tuple) else value for key, value in expected.items()
    }


def test_every_key_of_the_default_file_has_a_comment() -> None:
    lines = (CONFIG_DIR / "default.yaml").read_text().split("\nlamorel_args:")[1].splitlines()
    assert [
        line
        for line in lines
        if line.strip() and not line.rstrip().endswith(":") and " # " not in line
    ] == []


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "default"])
def test_every_experiment_states_its_command_and_its_cost_at_the_top(name: str) -> None:
    text = (CONFIG_DIR / f"{name}.yaml").read_text()
    head = text.split("defaults:")[0]
    assert name in head and "Cost: " in head


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "default"])
def test_every_experiment_is_valid_and_the_cost_at_its_top_counts_its_runs(name: str) -> None:
    configs = matrix(name)
    runs = len(configs) * len(next(iter(configs.values())).compare.seeds)
    assert f"Cost: {runs} runs" in (CONFIG_DIR / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_shipped_comparison_composes_with_every_control_of_its_feedback_arms(
    name: str,
) -> None:
    configs = matrix(name)
    first = next(iter(configs))[0]
    curve = dict.fromkeys(("env_steps", "success", "return"), np.array([0.0, 1.0]))
    arms = [
        Arm(config.arm.name, {0: Run(Path(), config, "complete", {}, {}, curve)})
        for (task, _), config in configs.items()
        if task == first
    ]
    assert len({arm.label for arm in arms}) == len(arms)
    assert [edge.label for edge in summarise([Task("", tuple(arms))]).edges if edge.not_run] == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_command_at_the_top_of_an_experiment_can_be_run(name: str) -> None:
    head = (CONFIG_DIR / f"{name}.yaml").read_text().split("defaults:")[0]
    for line in head.replace("\\\n#", "").splitlines():
        command = re.sub(r"  +\(.*", "", line.partition("python -m launchers compare ")[2])
        if overrides := [word for word in shlex.split(command) if "=" in word]:
            check_configs(load_matrix(overrides, name).values())


def test_subgoals_can_be_evaluated_exactly() -> None:
    config = load_config(["run.evaluation=exact"], "vocabularies")
    assert config.guidance.vocabulary == "subgoal"
    check_configs([config])
    with pytest.raises(
        ConfigError, match="free guidance cannot be listed, nor an agent that is not `enumerable`"
    ):
        check_configs(
            [
                load_config(
                    ["arm=teacher_frozen", "run.evaluation=exact", "guidance.vocabulary=free"]
                )
            ]
        )


# --- what wins ------------------------------------------------------------------------------------


def write_layers(folder: Path) -> None:
    (folder / "arm").mkdir()
    (folder / "default.yaml").write_text(
        "defaults: [_self_, {arm: one}]\n"
        "feedback: {lr: 1.0, kl_coef: 1.0, entropy_coef: 1.0, clip_eps: 1.0}\n"
    )
    (folder / "arm" / "one.yaml").write_text(
        "# @package _global_\nfeedback: {kl_coef: 2.0, entropy_coef: 2.0, clip_eps: 2.0}\n"
    )
    (folder / "arm" / "two.yaml").write_text(
        "# @package _global_\nfeedback: {kl_coef: 3.0, entropy_coef: 3.0, clip_eps: 3.0}\n"
    )
    (folder / "trial.yaml").write_text(
        "defaults: [default, _self_]\nfeedback: {entropy_coef: 4.0, clip_eps: 4.0}\n"
    )


def test_command_line_wins_over_experiment_over_group_over_default(tmp_path: Path) -> None:
    write_layers(tmp_path)
    feedback = load_config(["arm=two", "feedback.clip_eps=5.0"], "trial", tmp_path).feedback
    assert (feedback.lr, feedback.kl_coef, feedback.entropy_coef, feedback.clip_eps) == (
        1.0,
        3.0,
        4.0,
        5.0,
    )


def test_a_file_that_changes_is_composed_again_and_what_was_set_is_not_kept(tmp_path: Path) -> None:
    write_layers(tmp_path)
    assert load_config(["feedback.lr=7.0"], "trial", tmp_path).feedback.lr == 7.0
    assert load_config([], "trial", tmp_path).feedback.lr == 1.0
    group = tmp_path / "arm" / "one.yaml"
    group.write_text(group.read_text().replace("kl_coef: 2.0", "kl_coef: 6.0"))
    assert load_config([], "trial", tmp_path).feedback.kl_coef == 6.0


def test_the_demo_takes_another_model_and_another_budget() -> None:
    config = load_config(["model=flan_t5_small", "run.total_steps=40", "arm=llm_policy"], "demo")
    assert config.lamorel_args.llm_args.model_path == "google/flan-t5-small"
    assert (config.run.total_steps, config.arm.agent, config.ppo.lr) == (40, "llm_policy", 1e-6)
    assert config.compare.output_dir == "runs/demo"


def test_a_saved_configuration_reads_back_equal(tmp_path: Path) -> None:
    stages = (
        "env.curriculum=[{level:BabyAI-GoToRedBall-v0,num_distractors:2,steps:100},"
        "{level:BabyAI-GoToObj-v0,success:0.5}]"
    )
    config = load_config(
        [
            "arm=teacher_feedback",
            "feedback.sign=inverted",
            "feedback.lr=3e-5",
            "env.level=BabyAI-GoToObj-v0",
            stages,
        ],
        "figure2_40",
    )
    assert config.env.curriculum == (
        StageArgs("BabyAI-GoToRedBall-v0", 2, 100),
        StageArgs("BabyAI-GoToObj-v0", success=0.5),
    )
    save_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


# --- what is said about mistakes ------------------------------------------------------------------


def test_every_problem_is_listed_at_once() -> None:
    text = problems(
        "run.total_step=40", "feedback.lr=fast", "env.num_envs=0.5", "student.num_steps=[1]"
    )
    assert "4 problems" in text
    assert "run.total_step: unknown key (did you mean total_steps?)" in text
    assert "feedback.lr: expected float, got 'fast'" in text
    assert "env.num_envs: expected int, got 0.5" in text
    assert "student.num_steps: expected int, got [1]" in text


def test_a_group_in_place_of_a_value_and_a_value_in_place_of_a_group_are_problems() -> None:
    with pytest.raises(ConfigError, match="env: expected a group of keys, got 3"):
        from_mapping({"env": 3})
    with pytest.raises(ConfigError, match="run.seed: expected int"):
        from_mapping({"run": {"seed": {"a": 1}}})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "lamorel_args.distributed_setup_args.n_rl_processes=0",
            "n_rl_processes: must be between 1 and 65536, got 0",
        ),
        (
            "lamorel_args.distributed_setup_args.n_llm_processes=-1",
            "n_llm_processes: must be between 1 and 65536, got -1",
        ),
        ("run.total_steps=0", "run.total_steps: must be at least 1, got 0"),
        ("run.trace_every=-1", "run.trace_every: must not be negative, got -1"),
        ("student.gamma=1.5", "student.gamma: must be between 0 and 1, got 1.5"),
        ("student.lr=-1.0", "student.lr: must not be negative, got -1.0"),
        ("feedback.clip_eps=0.0", "feedback.clip_eps: must be above 0, got 0.0"),
        ("feedback.signal=best", "feedback.signal: expected one of previous, td"),
        ("feedback.clip_eps=1e39", "feedback.clip_eps: must be at most 3.4028234663852886e+38 in"),
        ("run.seed=true", "run.seed: expected int, got True"),
        ("env.num_distractors=-1", "env.num_distractors: must not be negative, got -1"),
        (
            "env.curriculum=[{level:BabyAI-GoToObj-v0}]",
            "env.curriculum[0]: needs steps or success, or it would never end",
        ),
        ("env.curriculum=[{steps:5}]", "env.curriculum[0].level: must be named"),
        (
            "env.curriculum=[{level:a,steps:0}]",
            "env.curriculum[0].steps: must be at least 1, got 0",
        ),
        (
            "env.curriculum=[{level:a,success:1.5}]",
            "env.curriculum[0].success: must be above 0 and at most 1, got 1.5",
        ),
        (
            "env.curriculum=[{level:a,steps:1,num_distractors:-2}]",
            "env.curriculum[0].num_distractors: must not be negative, got -2",
        ),
        (
            "env.curriculum=[{level:a,step:1}]",
            "env.curriculum[0].step: unknown key (did you mean steps?)",
        ),
        ("env.curriculum=[{level:3,steps:1}]", "env.curriculum[0].level: expected str, got 3"),
        (
            "env.curriculum=[BabyAI-GoToObj-v0]",
            "env.curriculum[0]: expected a group of keys, got 'BabyAI-GoToObj-v0'",
        ),
        ("drrn.temperature=0.0", "drrn.temperature: must be above 0, got 0.0"),
        ("drrn.epsilon=1.5", "drrn.epsilon: must be between 0 and 1, got 1.5"),
        ("drrn.update_every=0", "drrn.update_every: must be at least 1, got 0"),
        ("cloning.epochs=0", "cloning.epochs: must be at least 1, got 0"),
        ("feedback.warmup_steps=-1", "feedback.warmup_steps: must not be negative, got -1"),
        (
            "feedback.warmup_steps=2100",
            "feedback.warmup_steps: must be below run.total_steps=2100, or there is no feedback at"
            " all, got 2100",
        ),
        ("feedback.every=0", "feedback.every: must be at least 1 or 'rollout', got 0"),
        ("feedback.every=1", "feedback.signal: weighted needs the whole rollout"),
        (
            "feedback.channel=both",
            "feedback.signal: weighted needs the whole rollout, but feedback.channel=both",
        ),
        ("arm.teacher=oracle", "feedback.signal: must be none where arm.teacher is oracle"),
        ("compare.seeds=[1,1]", "compare.seeds: names one twice"),
        ("compare.seeds=[-1]", "compare.seeds: must not be negative, got -1"),
        ("compare.arms=[]", "compare.arms: must not be empty"),
        ("arm=teacher_feedbak", "arm=teacher_feedbak: no such file in"),
        ("model=gpt9", "model=gpt9: no such file in"),
        ("run.seed=1,2", "'run.seed=1,2': one run has one value here"),
        ("~run", "'~run': nothing can be taken away"),
        ("env=3", "env: expected a group of keys, got 3"),
        ("run.seed", "'run.seed': Hydra: missing EQUAL"),
    ],
)
def test_an_impossible_value_is_named_with_its_key(override: str, message: str) -> None:
    assert message in problems(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("arm=teacher_random", "guidance.vocabulary=free"),
            "guidance.vocabulary: free text needs an LLM, but arm.teacher is random",
        ),
        (
            ("env.num_envs=1", "student.num_steps=1"),
            "student.num_steps: a rollout of one step of one environment",
        ),
        (
            ("arm=llm_policy", "env.num_envs=1", "ppo.num_steps=1"),
            "ppo.num_steps: a rollout of one step of one environment",
        ),
        (
            ("arm=skills", "guidance.vocabulary=subgoal", "env._target_=my.Game"),
            "guidance.vocabulary: subgoal speaks of BabyAI's objects",
        ),
        (
            ("arm=teacher_oracle", "guidance.vocabulary=subgoal"),
            "guidance.vocabulary: must be action_hint where arm.teacher is oracle",
        ),
        (
            ("arm=random", "feedback.signal=td"),
            (
                "feedback.signal: must be none where arm.agent is random: "
                "nobody gives guidance, got td"
            ),
        ),
        (
            ("arm=cloning", "guidance.vocabulary=subgoal"),
            "guidance.vocabulary: must be action_hint where arm.agent is cloning",
        ),
        (
            ("arm=bot", "arm.action_heads=true"),
            "arm.action_heads: only an LLM as policy acts with them, but arm.agent is bot",
        ),
        (
            ("arm=llm_policy_feedback+signal=td", "arm.action_heads=true"),
            "feedback.signal: must be none where arm.action_heads is true",
        ),
        (
            ("arm=student_alone", "arm.weights=fresh"),
            "arm.weights: must be pretrained where no LLM takes part, got fresh",
        ),
        (
            ("arm=llm_policy", "arm.weights=embeddings", "lamorel_args.llm_args.pretrained=false"),
            (
                "arm.weights: "
                "there are no embeddings to keep where lamorel_args.llm_args.pretrained is false"
            ),
        ),
        (
            ("arm=npae", "lamorel_args.llm_args.lora.r=4"),
            "arm.weights: must be pretrained where lamorel_args.llm_args.lora.r is above 0",
        ),
        (
            ("lamorel_args.llm_args.lora.target_modules=[q,v]",),
            "lamorel_args.llm_args.lora.target_modules: there are no adapters without a rank",
        ),
        (
            ("lamorel_args.llm_args.lora.alpha=16",),
            "lamorel_args.llm_args.lora.alpha: there are no adapters without a rank",
        ),
        (
            ("lamorel_args.llm_args.gguf_file=mine.gguf",),
            "lamorel_args.llm_args.gguf_file: names a file in the folder model_path, but that is"
            " embedded",
        ),
        (
            ("drrn.batch_size=10", "drrn.replay_size=9"),
            "drrn.replay_size: must be at least drrn.batch_size=10, got 9",
        ),
        (
            ("guidance.vocabulary=free", "feedback.kl_coef=0.1"),
            "feedback.entropy_coef and feedback.kl_coef must be 0",
        ),
    ],
)
def test_values_that_do_not_go_together_are_named(overrides: tuple[str, ...], message: str) -> None:
    assert message in problems(*overrides)


def test_an_unknown_experiment_names_the_nearest_one() -> None:
    assert "did you mean demo?" in problems(name="demoo")


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: [1,\n")
    with pytest.raises(ConfigError, match="config.yaml, line 2: no YAML"):
        read_config(tmp_path / "config.yaml")


def test_a_wrong_type_does_not_hide_an_impossible_value() -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(
            {
                "run": {"total_steps": "x"},
                "lamorel_args": {"distributed_setup_args": {"n_llm_processes": 0}},
            }
        )
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "run.total_steps",
        "lamorel_args.distributed_setup_args.n_llm_processes",
    ]


# --- numbers --------------------------------------------------------------------------------------


def fields_below(kind: Any, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Every field of the schema that holds a value, by its key; a list's key ends in ``[0]``."""
    found: dict[str, dataclasses.Field[Any]] = {}
    hints = get_type_hints(kind)
    for spec in dataclasses.fields(kind):
        hint, key = hints[spec.name], prefix + spec.name
        while get_origin(hint) is tuple:
            hint, key = get_args(hint)[0], f"{key}[0]"
        found |= fields_below(hint, f"{key}.") if dataclasses.is_dataclass(hint) else {key: spec}
    return found


def kinds_of(spec: dataclasses.Field[Any]) -> set[str]:
    return set(re.findall(r"\w+", str(spec.type)))


NUMERIC = {
    key: spec for key, spec in fields_below(Config).items() if kinds_of(spec) & {"int", "float"}
}


def mapping_with(key: str, value: Any) -> dict[str, Any]:
    """Plain values that set one key."""
    *groups, name = key.split(".")
    mapping: Any = value
    while name.endswith("[0]"):
        name, mapping = name.removesuffix("[0]"), [mapping]
    mapping = {name: mapping}
    for group in reversed(groups):
        mapping = {group.removesuffix("[0]"): [mapping] if group.endswith("[0]") else mapping}
    return mapping


@pytest.mark.parametrize("key", NUMERIC)
def test_every_number_declares_its_bounds_and_no_key_takes_what_is_not_a_number(key: str) -> None:
    spec = NUMERIC[key]
    assert "bounds" in spec.metadata, f"{key} must be made with options.number"
    for value in (math.nan, math.inf, -math.inf, 1e39):  # float32 ends at 3.4e38
        mapping = mapping_with(key, value)
        if value > 0 and not spec.metadata["bounds"]["finite"]:
            from_mapping(mapping)
            continue
        with pytest.raises(ConfigError) as caught:
            from_mapping(mapping)
        named = [problem for problem in caught.value.problems if problem.startswith(f"{key}: ")]
        named = [problem for problem in named if "_target_" not in problem]  # whose key it is
        assert len(named) == 1 and str(value) in named[0]


@pytest.mark.parametrize("key", NUMERIC)
def test_a_number_just_outside_its_bounds_is_refused_and_one_inside_is_not(key: str) -> None:
    bounds, whole = NUMERIC[key].metadata["bounds"], "float" not in kinds_of(NUMERIC[key])
    step = 1 if whole else 1e-6
    refused = [bounds["at_least"] - step, bounds["above"], bounds["at_most"] + step]
    taken = [bounds["at_least"], bounds["above"] + step, bounds["at_most"]]
    for values, wanted in ((refused, 1), (taken, 0)):
        for value in values:
            if math.isfinite(value):
                found = out_of_bounds_of(mapping_with(key, int(value) if whole else value))
                start = re.sub(r"(\[0\])+$", "", key) + ": must "
                own = [
                    text for text in found if text.startswith(start) and "batch_size=" not in text
                ]
                assert len(own) == wanted, value


@pytest.mark.parametrize(
    ("key", "most", "too_much"),
    [
        ("lamorel_args.peer_timeout", 2_000_000, 2_147_484),  # milliseconds in a C int
        ("lamorel_args.gloo_timeout", 10**9, 10**14),  # datetime.timedelta
        ("lamorel_args.distributed_setup_args.merge_wait_s", 1e9, 1e10),  # threading.TIMEOUT_MAX
        ("lamorel_args.llm_args.num_threads", 2**15, 3 * 10**9),  # a C int
        ("run.num_threads", 2**15, 3 * 10**9),
        ("lamorel_args.distributed_setup_args.n_llm_processes", 2**16, 10**8),  # a list of each
    ],
)
def test_what_fits_no_timer_and_no_c_int_is_refused(key: str, most: float, too_much: float) -> None:
    assert not out_of_bounds_of(mapping_with(key, most))
    (problem,) = out_of_bounds_of(mapping_with(key, too_much))
    assert problem.startswith(f"{key}: must be between ")


@pytest.mark.parametrize("key", [key for key in NUMERIC if "int" in kinds_of(NUMERIC[key])])
def test_a_whole_number_of_more_than_64_bits_is_refused(key: str) -> None:
    name = re.sub(r"(\[0\])+$", "", key)
    assert any(
        text.startswith(f"{name}: must ") for text in out_of_bounds_of(mapping_with(key, 2**63))
    )


def out_of_bounds_of(mapping: dict[str, Any]) -> Sequence[str]:
    try:
        from_mapping(mapping)
    except ConfigError as error:
        return error.problems
    return ()


def test_impossible_numbers_are_named_with_all_other_mistakes() -> None:
    text = problems(
        "student.lr=nan",
        "feedback.kl_coef=inf",
        "ppo.adam_eps=0.0",
        "run.total_step=4",
        "run.seed=-.inf",
    )
    assert "5 problems" in text
    assert "student.lr: must be a number, got nan" in text
    assert "feedback.kl_coef: must be finite, got inf" in text
    assert "ppo.adam_eps: must be above 0, got 0.0" in text
    assert "student.lr: must be finite" in problems(f"student.lr=1{'0' * 400}")


@pytest.mark.parametrize(
    "override",
    [
        "run.num_threads=2",
        "lamorel_args.llm_args.num_threads=4",
        "lamorel_args.llm_args.dtype=bfloat16",
        "lamorel_args.llm_args.parallelism.use_gpu=true",
        "lamorel_args.distributed_setup_args.client_devices=[0]",
    ],
)
def test_a_portable_run_refuses_what_goes_by_the_machine(override: str) -> None:
    assert f"{override.split('=')[0]}: must be" in problems("run.portable=true", override)


# --- cells and controls ---------------------------------------------------------------------------


def test_a_list_in_a_cell_is_a_cell_for_each_value_and_a_name_is_the_cell_again() -> None:
    cells = (
        "{base: teacher_feedback, signal: [td, previous], "
        "student.kappa: [2, 5], feedback.lr: 0.00003}"
    )
    configs = load_matrix([f"compare.arms=[teacher_frozen,{cells}]", "compare.controls=[]"])
    names = [arm for _, arm in configs]
    assert names == [
        "teacher_frozen",
        *(
            f"teacher_feedback+signal={signal}+student.kappa={kappa}+lr=3e-05"
            for signal in ("td", "previous")
            for kappa in (2, 5)
        ),
    ]
    config = configs["", names[-1]]
    assert (config.feedback.signal, config.student.kappa, config.feedback.lr) == (
        "previous",
        5.0,
        3e-5,
    )
    assert config.arm.name == "teacher_feedback/previous/kappa=5/lr=3e-05"
    assert (
        load_matrix(
            [
                f"compare.arms=[{','.join(chr(34) + name + chr(34) for name in names)}]",
                "compare.controls=[]",
            ]
        )
        == configs
    )


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("lr=1e-5", "lr=1e-05", 1e-5),
        ("lr=0.00001", "lr=1e-05", 1e-5),
        ("student.kappa=5.0", "student.kappa=5", 5.0),
        ("env.num_distractors=null", "env.num_distractors=null", None),
        ("run.portable=true", "run.portable=true", True),
        ("compare.name=12:30", "compare.name=12:30", "12:30"),
        ("compare.name=on", "compare.name=on", "on"),
    ],
)
def test_a_cell_means_what_a_command_line_would_and_has_one_name(
    typed: str, name: str, value: Any
) -> None:
    cell = read_cell(f"student_alone+{typed}")
    assert cell.name == f"student_alone+{name}" and read_cell(cell.name) == cell
    assert list(cell.values.values()) == [value]


def test_a_value_that_the_arms_do_not_differ_in_reaches_all_of_them() -> None:
    configs = load_matrix(
        ["compare.arms=[teacher_feedback,teacher_feedback+epochs=2]", "feedback.signal=td"]
    )
    assert {config.feedback.signal for config in configs.values()} == {"td"}


def test_controls_stand_behind_each_feedback_arm_and_nowhere_else() -> None:
    configs = load_matrix(
        [
            "compare.arms=[llm_policy,teacher_frozen,teacher_feedback+signal=td]",
            "compare.controls=[random,inverted]",
        ]
    )
    arms = (
        "llm_policy",
        "teacher_frozen",
        "teacher_feedback+signal=td",
        "teacher_feedback+signal=td+sign=random",
        "teacher_feedback+signal=td+sign=inverted",
    )
    assert tuple(arm for _, arm in configs) == arms
    assert all(config.compare.arms == arms for config in configs.values())
    plain, control = (configs["", arm].feedback for arm in arms[2:4])
    assert dataclasses.replace(plain, sign="random") == control


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["compare.arms=[{signal: td}]"], r"compare.arms\[0\].base: must name a file"),
        (["compare.arms=['teacher_feedback+td']"], "expected base.key=value"),
        (["compare.arms=['teacher_feedback+signl=td']"], "feedback.signl: unknown key"),
        (
            ["compare.arms=['teacher_feedback+signal=td+feedback.signal=gae']"],
            "names feedback.signal twice",
        ),
        (
            ["compare.arms=['teacher_feedback+lr=0.1']", "feedback.lr=0.2"],
            "feedback.lr: set by the cell",
        ),
        (
            ["compare.arms=[teacher_frozen,teacher_feedback]", "feedback.signal=td"],
            r"feedback.signal: would go over what tells the arms apart \(none of teacher_frozen, "
            r"weighted of teacher_feedback\); ask for a cell, such as \{base: teacher_feedback, "
            r"feedback.signal: td\}",
        ),
        (
            ["compare.arms=[teacher_frozen,teacher_feedback]", "feedback={lr: 0.1, signal: td}"],
            r"feedback.signal: would go over .* \{base: teacher_feedback, feedback.signal: td\}",
        ),
        (
            ["compare.arms=['teacher_feedback+lr=0.1']", "feedback={lr: 0.2}"],
            "feedback.lr: set by the cell",
        ),
        (["compare.arms=['']"], "compare.arms: '': must begin with the name of a file"),
        (["compare.arms=[llm_policy,'']"], "compare.arms: '': must begin with the name of a file"),
        (
            [
                "compare.arms=['teacher_feedback+signal=td+epochs=2',"
                "'teacher_feedback+epochs=2+signal=td']"
            ],
            r"teacher_feedback.signal=td.epochs=2 is asked for twice",
        ),
        (
            ["compare.arms=[llm_policy,student_alone]", "arm.agent=student"],
            r"arm.agent: would go over what tells the arms apart",
        ),
        (
            ["compare.arms=['teacher_feedback+lr=1e-5','teacher_feedback+lr=0.00001']"],
            "teacher_feedback.lr=1e-05 is asked for twice",
        ),
        (
            [
                "compare.arms=['student_alone+student.hidden_size=64',"
                "'student_alone+student.hidden_size=64.0']"
            ],
            "student_alone.student.hidden_size=64 is asked for twice",
        ),
    ],
)
def test_a_cell_that_cannot_be_is_refused(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_matrix(overrides)


@pytest.mark.parametrize("other", ["feedback.signal=gae", "++feedback={signal: gae}"])
def test_a_run_refuses_a_value_that_its_cell_sets(other: str) -> None:
    for overrides in (
        [other, "arm=teacher_feedback+signal=td"],
        ["arm='student_alone+signal=td'", other],
    ):
        with pytest.raises(ConfigError, match="feedback.signal: set by the cell .*; leave it out"):
            load_config(overrides)


@pytest.mark.parametrize("other", ["arm=teacher_frozen", "+arm='teacher_feedback+signal=gae'"])
def test_another_arm_after_a_cell_is_refused(other: str) -> None:
    with pytest.raises(ConfigError, match=r"an arm is given already, teacher_feedback.signal=td"):
        load_config(["arm=teacher_feedback+signal=td", "run.seed=3", other])


def test_a_control_is_run_once_however_its_cell_is_written() -> None:
    arms = ("teacher_feedback+signal=td", "teacher_feedback+sign=random+signal=td")
    quoted = ",".join(f"'{arm}'" for arm in arms)
    configs = load_matrix([f"compare.arms=[{quoted}]", "compare.controls=[random]"])
    assert tuple(arm for _, arm in configs) == arms


@pytest.mark.parametrize(
    ("former", "signal", "sign"),
    [
        ({"signal": "random", "inverts": "gae", "shuffles": "gae"}, "constant", "random"),
        ({"signal": "positive"}, "constant", "positive"),
        ({"signal": "inverted", "inverts": "td", "shuffles": "gae"}, "td", "inverted"),
        ({"signal": "shuffled", "inverts": "gae", "shuffles": "weighted"}, "weighted", "shuffled"),
        ({"signal": "inverted", "inverts": "random"}, "constant", "random"),
        ({"signal": "inverted"}, "gae", "inverted"),
        ({"signal": "td", "inverts": "gae", "shuffles": "gae"}, "td", "own"),
    ],
)
def test_configurations_of_earlier_runs_are_read(
    former: dict[str, str], signal: str, sign: str
) -> None:
    feedback = from_mapping({"feedback": former}).feedback
    assert (feedback.signal, feedback.sign) == (signal, sign)
