"""Values and combinations of values that mean nothing, each named by its key."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from lamorel_ext.config.schema import CompareArgs, Config, EnvArgs, LlmArgs, StageArgs
from lamorel_ext.methods.feedback.options import CREDITS_OF_CANDIDATES, ONLINE_SIGNALS
from lamorel_ext.options import out_of_bounds

PATH_KEYS = (
    "run.output_dir",
    "compare.output_dir",
    "lamorel_args.llm_args.model_path",
    "lamorel_args.accelerate_args.config_file",
)
"""Keys that name a file or folder: ``~`` at their beginning means home, and none may be empty."""


def impossible_values(config: Config) -> list[str]:
    """Problems that only show once every value has its type."""
    drrn, problems = config.drrn, out_of_bounds(config)
    if drrn.replay_size < drrn.batch_size:
        problems.append(
            f"drrn.replay_size: must be at least drrn.batch_size={drrn.batch_size}, got"
            f" {drrn.replay_size}"
        )
    return [
        *problems,
        *_impossible_workers(config.env),
        *_impossible_curriculum(config.env.curriculum),
        *_impossible_environment(config),
        *_impossible_method(config),
        *_impossible_plugs(config),
        *_impossible_llm(config),
        *_impossible_comparison(config.compare),
        *_impossible_portability(config),
        *_impossible_paths(config),
    ]


def _impossible_paths(config: Config) -> Iterator[str]:
    """An empty path is an unset variable of a shell more often than the current folder."""
    for key in PATH_KEYS:
        value = functools.reduce(getattr, key.split("."), config)
        if isinstance(value, str) and not value.strip():
            what = "null" if key.endswith("config_file") else "a path (. is the current folder)"
            yield f"{key}: must not be empty; expected {what}. Is a shell variable unset?"


def _impossible_workers(env: EnvArgs) -> Iterator[str]:
    if env.backend == "processes" and env.num_workers == 0:
        yield "env.num_workers: must be at least 1 where env.backend is processes, got 0"
    if env.backend in ("minigrid", "vector", "table") and env.num_workers > 0:
        yield (
            f"env.num_workers: must be 0 where env.backend is {env.backend}, got {env.num_workers}"
        )


def _impossible_environment(config: Config) -> Iterator[str]:
    """What is said of BabyAI's levels means nothing of an environment of the user's own."""
    env = config.env
    if not env.own:
        keys = [("action_texts", ()), ("success_above", 0.0), ("max_steps", None)]
        for name, default in keys:
            if getattr(env, name) != default:
                yield f"env.{name}: is of an environment of one's own, but there is no env._target_"
        return
    wanted = (
        ("num_distractors", None, "null"),
        ("curriculum", (), "empty"),
        ("language", "en", "en"),
        ("backend", "auto", "auto"),
    )
    for name, default, said in wanted:
        if getattr(env, name) != default:
            yield (
                f"env.{name}: must be {said} where env._target_ names an environment of one's own,"
                f" got {getattr(env, name)!r}; an argument of its own needs another name"
            )
    if config.arm.agent in ("student", "own") and config.guidance.vocabulary == "subgoal":
        yield (
            "guidance.vocabulary: subgoal speaks of BabyAI's objects; where env._target_ names an"
            " environment of one's own it can be action_hint or free"
        )
    if config.arm.agent == "llm_policy" and config.arm.action_heads:
        yield (
            "arm.action_heads: the heads have BabyAI's six actions; where env._target_ names an"
            " environment of one's own the actions' texts are scored"
        )


def _impossible_curriculum(stages: Sequence[StageArgs]) -> Iterator[str]:
    for place, stage in enumerate(stages):
        key = f"env.curriculum[{place}]"
        if not stage.level:
            yield f"{key}.level: must be named"
        if stage.steps is None and stage.success is None:
            yield f"{key}: needs steps or success, or it would never end"


def _impossible_method(config: Config) -> Iterator[str]:
    """Combinations of arm and feedback that mean nothing."""
    feedback, arm, vocabulary = config.feedback, config.arm, config.guidance.vocabulary
    used = feedback.signal
    yield from _impossible_credit(config)
    yield from _impossible_rollouts(config)
    if used == "none" and feedback.sign != "own":
        yield f"feedback.sign: must be own where feedback.signal is none, got {feedback.sign}"
    if isinstance(feedback.every, int) and feedback.every >= 1 and used not in ONLINE_SIGNALS:
        yield (
            f"feedback.signal: {used} needs the whole rollout; with feedback.every={feedback.every}"
            f" it can be {', '.join(ONLINE_SIGNALS)}"
        )
    if used != "none" and 0 < config.run.total_steps <= feedback.warmup_steps:
        yield (
            f"feedback.warmup_steps: must be below run.total_steps={config.run.total_steps}, or"
            f" there is no feedback at all, got {feedback.warmup_steps}"
        )
    if feedback.channel != "loss" and used not in ONLINE_SIGNALS:
        yield (
            f"feedback.signal: {used} needs the whole rollout, but"
            f" feedback.channel={feedback.channel} says it in the next prompt; it can be"
            f" {', '.join(ONLINE_SIGNALS)}"
        )
    if arm.agent == "student" and arm.teacher != "llm" and feedback.signal != "none":
        yield (
            f"feedback.signal: must be none where arm.teacher is {arm.teacher}: there is no LLM to"
            f" teach, got {feedback.signal}"
        )
    teacher = arm.teacher if arm.agent == "student" else "none"
    if teacher in ("random", "oracle") and vocabulary == "free":
        yield f"guidance.vocabulary: free text needs an LLM, but arm.teacher is {teacher}"
    if teacher == "oracle" and vocabulary == "subgoal":
        yield "guidance.vocabulary: must be action_hint where arm.teacher is oracle, got subgoal"
    regularised = feedback.entropy_coef or feedback.kl_coef
    if vocabulary == "free" and config.feedback_trains and regularised:
        yield (
            "guidance.vocabulary: free text has no list of candidates; feedback.entropy_coef and"
            " feedback.kl_coef must be 0"
        )
    if arm.agent not in ("student", "llm_policy") and feedback.signal != "none":
        yield (
            f"feedback.signal: must be none where arm.agent is {arm.agent}: nobody gives guidance,"
            f" got {feedback.signal}"
        )
    if arm.agent not in ("student", "own") and vocabulary != "action_hint":
        yield (
            f"guidance.vocabulary: must be action_hint where arm.agent is {arm.agent}, got"
            f" {vocabulary}"
        )
    if feedback.loss == "unlikelihood":
        weighing = [
            *(["feedback.signal=weighted"] if feedback.signal == "weighted" else []),
            *(["feedback.credit=ratio"] if feedback.credit == "ratio" else []),
            *(["feedback.baseline=true"] if feedback.baseline else []),
        ]
        if weighing:
            yield (
                "feedback.loss: unlikelihood knows signs only; "
                f"with {' and '.join(weighing)} it can be reinforce or clipped"
            )


def _impossible_rollouts(config: Config) -> Iterator[str]:
    """PPO normalises the advantages of a rollout: a single one is its own mean."""
    group = {"student": "student", "llm_policy": "ppo"}.get(config.arm.agent)
    if group is not None and config.num_steps * config.env.num_envs == 1:
        yield (
            f"{group}.num_steps: a rollout of one step of one environment (env.num_envs=1) has one"
            " advantage, which is its own mean: nothing is learnt from it; must be at least 2"
        )


def _impossible_plugs(config: Config) -> Iterator[str]:
    """Names without what they name."""
    if config.arm.agent == "own" and not config.agent:
        yield "agent._target_: must name the agent where arm.agent is own"
    if config.arm.agent != "own" and config.lamorel_args.distributed_setup_args.client_devices:
        yield (
            "lamorel_args.distributed_setup_args.client_devices: only an agent of one's own"
            f" (agent._target_) computes on a GPU; {config.arm.agent} has at most a small network,"
            " which a CPU runs as fast"
        )


def _impossible_credit(config: Config) -> Iterator[str]:
    """Credits that need a student beside the LLM, or a list of what could be said, and signs that
    need company.
    """
    feedback, arm = config.feedback, config.arm
    if feedback.signal == "none":
        return
    if feedback.credit != "chosen" and arm.agent == "llm_policy":
        yield (
            "feedback.credit: must be chosen where arm.agent is llm_policy, whose guidance is the"
            f" action itself, got {feedback.credit}"
        )
    if feedback.credit in CREDITS_OF_CANDIDATES and config.guidance.vocabulary == "free":
        yield (
            f"feedback.credit: {feedback.credit} needs a list of candidates, and"
            " guidance.vocabulary=free has none; it can be chosen or followed"
        )
    if feedback.credit != "chosen" and feedback.channel == "prompt":
        yield (
            "feedback.credit: must be chosen where feedback.channel is prompt, which changes no"
            f" weights, got {feedback.credit}"
        )
    if (
        feedback.baseline
        and isinstance(feedback.every, int)
        and feedback.every * config.env.num_envs == 1
    ):
        yield (
            "feedback.baseline: an update after every step of one environment has one f, which is"
            " its own mean"
        )
    if feedback.sign == "shuffled" and config.env.num_envs == 1:
        if isinstance(feedback.every, int) or feedback.channel != "loss":
            needs = (
                f"feedback.every={feedback.every}"
                if feedback.channel == "loss"
                else f"feedback.channel={feedback.channel}"
            )
            yield (
                f"feedback.sign: shuffled permutes the signs of a step with {needs}, and"
                " env.num_envs=1 has one: nothing to permute"
            )


def _impossible_llm(config: Config) -> Iterator[str]:
    """What no server can do, and weights and heads for an arm that has no use for them."""
    feedback, arm, llm = config.feedback, config.arm, config.lamorel_args.llm_args
    if llm.load_in_4bit:
        yield (
            "lamorel_args.llm_args.load_in_4bit: not supported, must be false; dtype=bfloat16"
            " halves the memory"
        )
    yield from _impossible_files(llm)
    if llm.quantize is not None:
        yield from _impossible_quantize(llm)
    if llm.parallelism.fsdp:
        yield from _impossible_fsdp(llm)
    if arm.action_heads and arm.agent != "llm_policy":
        yield (
            f"arm.action_heads: only an LLM as policy acts with them, but arm.agent is {arm.agent}"
        )
    if arm.action_heads and feedback.signal != "none":
        yield (
            "feedback.signal: must be none where arm.action_heads is true: it teaches texts, got"
            f" {feedback.signal}"
        )
    if arm.weights != "pretrained" and not config.asks_llm:
        yield f"arm.weights: must be pretrained where no LLM takes part, got {arm.weights}"
    if arm.weights == "embeddings" and not llm.pretrained:
        yield (
            "arm.weights: there are no embeddings to keep where lamorel_args.llm_args.pretrained is"
            " false, got embeddings"
        )
    if arm.weights != "pretrained" and llm.lora.r:
        yield (
            "arm.weights: must be pretrained where lamorel_args.llm_args.lora.r is above 0:"
            f" adapters alone are trained, got {arm.weights}"
        )


def _impossible_files(llm: LlmArgs) -> Iterator[str]:
    """What is said of a file or of adapters that there are not."""
    where, path = "lamorel_args.llm_args", llm.model_path
    if llm.gguf_file is not None and path in ("embedded", "smollm2"):
        yield (
            f"{where}.gguf_file: names a file in the folder model_path, but that is {path}, got"
            f" {llm.gguf_file}"
        )
    for name, value in (("alpha", llm.lora.alpha), ("target_modules", llm.lora.target_modules)):
        if value and not llm.lora.r:
            yield f"{where}.lora.{name}: there are no adapters without a rank: set lora.r"


def _impossible_quantize(llm: LlmArgs) -> Iterator[str]:
    where, wanted = "lamorel_args.llm_args", f"where quantize is {llm.quantize}"
    if llm.parallelism.use_gpu:
        yield f"{where}.parallelism.use_gpu: must be false {wanted}: a GPU has bfloat16"
    if llm.parallelism.fsdp:
        yield f"{where}.parallelism.fsdp: must be false {wanted}: a server needs whole weights"
    if llm.dtype != "float32":
        yield (
            f"{where}.dtype: must be float32 {wanted}: bfloat16 would gain nothing, got {llm.dtype}"
        )


def _impossible_fsdp(llm: LlmArgs) -> Iterator[str]:
    where, reason = "lamorel_args.llm_args", "where parallelism.fsdp is true"
    if llm.parallelism.model_parallelism_size > 1:
        yield (
            f"{where}.parallelism.model_parallelism_size: must be 1 {reason}: a server holds its"
            f" part of every layer on one GPU, got {llm.parallelism.model_parallelism_size}"
        )
    if llm.lora.r:
        yield (
            f"{where}.lora.r: must be 0 {reason}: adapters leave the model's own weights without"
            f" gradients and moments, model_parallelism_size has room for those, got {llm.lora.r}"
        )


def _impossible_comparison(compare: CompareArgs) -> Iterator[str]:
    for name in ("tasks", "arms", "seeds", "controls"):
        values = getattr(compare, name)
        if not values and name in ("arms", "seeds"):
            yield f"compare.{name}: must not be empty"
        if len(set(values)) < len(values):
            yield f"compare.{name}: names one twice: {list(values)}"


def _impossible_portability(config: Config) -> Iterator[str]:
    """What cannot be held to the same arithmetic on every machine."""
    if not config.run.portable:
        return
    llm, wanted = config.lamorel_args.llm_args, "where run.portable is true"
    threads = {"run.num_threads": config.run.num_threads}
    threads["lamorel_args.llm_args.num_threads"] = llm.num_threads
    for key, number in threads.items():
        if number > 1:
            yield f"{key}: must be 1 {wanted}: sums depend on the number of threads, got {number}"
    if llm.parallelism.use_gpu:
        yield f"lamorel_args.llm_args.parallelism.use_gpu: must be false {wanted}: GPUs differ"
    if config.lamorel_args.distributed_setup_args.client_devices:
        yield (
            "lamorel_args.distributed_setup_args.client_devices: must be empty"
            f" {wanted}: GPUs differ"
        )
    if llm.dtype in ("bfloat16", "auto"):
        yield (
            f"lamorel_args.llm_args.dtype: must be float32 or float64 {wanted}: the kernels of"
            " bfloat16 go by the processor"
        )
