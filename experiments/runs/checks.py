"""What a configuration asks for and cannot have, beyond its schema: found before folders, other
ranks, devices or models are looked at.

A mistake in the configuration is there wherever the run is started; what this machine lacks, or
what lies in a folder, is only worth hearing of once the configuration itself is possible. Free of
torch: the launchers ask too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator

from lamorel_ext.config import Config, EnvArgs, Plug, StageArgs, plugs_of
from lamorel_ext.errors import ConfigError, LevelError
from lamorel_ext.prompts.templates import can_say

TRIED = 20
"""Episodes of a level whose missions are put to the prompt's template."""


def check_configs(configs: Iterable[Config], imports: bool = True) -> None:
    """Make sure that what the runs ask for can be had. Loads no model, reads no folder, needs no
    other rank.

    Args:
        imports: False leaves alone what the configuration names by ``_target_``, but for whether
            there is such a package: a launcher imports nobody's code.

    Raises:
        ConfigError: With every problem of every run; what several have in common is said once.
    """
    found = (problem for config in configs for problem in _problems(config, imports))
    problems = dict.fromkeys(found)
    if problems:
        raise ConfigError(list(problems))


def _problems(config: Config, imports: bool) -> Iterator[str]:
    for key, plug in plugs_of(config):
        yield from _plug_problems(key, plug, config.env, imports)
    levels: dict[str, EnvArgs | StageArgs] = {} if config.env.own else {"env": config.env}
    for place, stage in enumerate(config.env.curriculum):
        levels[f"env.curriculum[{place}]"] = stage
    for group, chosen in levels.items():
        yield from _level_problems(group, chosen, config.env)
    if config.run.evaluation == "exact" and (hindrance := _hindrance(config, imports)):
        yield f"run.evaluation: exact is not possible: {hindrance}"
    if config.run.tracker == "wandb" and not _is_installed("wandb"):
        yield "run.tracker: wandb is not installed: pip install 'lamorel-ext[trackers]'"


def _is_installed(package: str) -> bool:
    """True where there is code: a mere folder of that name, as in the working folder, has none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _plug_problems(key: str, plug: Plug, env: EnvArgs, imports: bool) -> Iterator[str]:
    """Whether what the configuration names is there and takes the arguments beside it."""
    if imports:
        try:
            if key == "env":
                from lamorel_ext.envs.own_keys import own_plug

                plug = own_plug(env)
            plug.check(key, 1 if key in ("agent", "method") else 0)
        except ConfigError as error:
            yield from error.problems
    elif importlib.util.find_spec(plug.package) is None:
        yield f"{key}._target_: {plug.target}: No module named {plug.package!r}"


def _level_problems(group: str, chosen: EnvArgs | StageArgs, env: EnvArgs) -> Iterator[str]:
    """Whether there is the level, takes the number of distractors, suits the backend, and can be
    said in the prompt.
    """
    from lamorel_ext.envs.babyai.backends import choose_backend
    from lamorel_ext.envs.babyai.levels import level_spec, make_level

    level, number = chosen.level, chosen.num_distractors
    key = f"{group}.level"
    try:
        level_spec(level)
        key = f"{group}.num_distractors"
        built = make_level(level, number)
        key = "env.backend"
        choose_backend(level, env.backend, number, env.num_workers)
    except LevelError as error:
        yield f"{key}: {error}"
        return
    if env.prompt == "glam" and env.language == "fr":
        missions = (str(built.reset(seed=seed)[0]["mission"]) for seed in range(TRIED))
        if unsayable := next(
            (mission for mission in missions if not can_say(mission, env.prompt, env.language)),
            None,
        ):
            yield (
                f"env.prompt: {level}: the French glam prompt can only say go-to missions, not"
                f" {unsayable!r}; take lamorel, or env.language=en"
            )


def _hindrance(config: Config, imports: bool) -> str:
    from lamorel_ext.training.exactness import why_not_exact

    arm, feedback = config.arm, config.feedback
    reads_prompts = config.asks_llm or arm.agent == "drrn"
    told = feedback.signal != "none" and feedback.channel != "loss"
    listed, offered = config.guidance.vocabulary != "free", _may_be_exact(config.env, imports)
    return why_not_exact(config.env, reads_prompts, listed, told, offered)


def _may_be_exact(env: EnvArgs, imports: bool) -> bool:
    """False where an environment of the user's own is known to offer no enumeration."""
    try:
        return not imports or hasattr(env.own.locate("env"), "exact_evaluator")
    except ConfigError:  # that it cannot be had is said already
        return True
