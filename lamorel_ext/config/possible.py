"""Values and combinations of values that mean nothing, each named by its key."""

from __future__ import annotations

from collections.abc import Sequence

from lamorel_ext.config.schema import ONLINE_SIGNALS, CompareArgs, Config, EnvArgs, StageArgs


def impossible_values(config: Config) -> list[str]:
    """Problems that only show once every value has its type."""
    roles, llm, run, student, ppo = (
        config.lamorel_args.distributed_setup_args, config.lamorel_args.llm_args, config.run, config.student, config.ppo,
    )  # fmt: skip
    drrn, cloning = config.drrn, config.cloning
    at_least_one = {
        "lamorel_args.distributed_setup_args.n_rl_processes": roles.n_rl_processes,
        "lamorel_args.distributed_setup_args.n_llm_processes": roles.n_llm_processes,
        "lamorel_args.accelerate_args.num_machines": config.lamorel_args.accelerate_args.num_machines,
        "lamorel_args.gloo_timeout": config.lamorel_args.gloo_timeout,
        "lamorel_args.llm_args.minibatch_size": llm.minibatch_size,
        "lamorel_args.llm_args.value_head_hidden": llm.value_head_hidden,
        "lamorel_args.llm_args.parallelism.model_parallelism_size": llm.parallelism.model_parallelism_size,
        "env.num_envs": config.env.num_envs, "env.history": config.env.history,
        "guidance.max_new_tokens": config.guidance.max_new_tokens,
        "student.num_steps": student.num_steps, "student.epochs": student.epochs, "student.num_minibatches": student.num_minibatches,
        "student.hidden_size": student.hidden_size, "student.guidance_size": student.guidance_size,
        "ppo.num_steps": ppo.num_steps, "ppo.epochs": ppo.epochs, "ppo.minibatch_size": ppo.minibatch_size,
        "feedback.epochs": config.feedback.epochs, "drrn.embedding_size": drrn.embedding_size, "drrn.hidden_size": drrn.hidden_size, "drrn.num_steps": drrn.num_steps,
        "drrn.update_every": drrn.update_every, "drrn.batch_size": drrn.batch_size, "drrn.replay_size": drrn.replay_size,
        "cloning.num_steps": cloning.num_steps, "cloning.epochs": cloning.epochs, "cloning.minibatch_size": cloning.minibatch_size,
        "run.total_steps": run.total_steps, "run.eval_every": run.eval_every, "run.eval_episodes": run.eval_episodes,
        "compare.bootstrap_samples": config.compare.bootstrap_samples,
    }  # fmt: skip
    not_negative = {
        "lamorel_args.llm_args.cache_size": llm.cache_size, "lamorel_args.llm_args.num_threads": llm.num_threads,
        "env.num_workers": config.env.num_workers,
        "ppo.gradient_minibatch_size": ppo.gradient_minibatch_size, "feedback.gradient_minibatch_size": config.feedback.gradient_minibatch_size,
        "feedback.warmup_steps": config.feedback.warmup_steps, "drrn.target_every": drrn.target_every, "drrn.lr": drrn.lr,
        "cloning.lr": cloning.lr, "cloning.gradient_minibatch_size": cloning.gradient_minibatch_size,
        "run.seed": run.seed, "run.eval_seed": run.eval_seed, "run.checkpoint_every": run.checkpoint_every, "run.num_threads": run.num_threads,
        "run.trace_every": run.trace_every,
        "student.lr": student.lr, "ppo.lr": ppo.lr, "feedback.lr": config.feedback.lr, "feedback.lr_online": config.feedback.lr_online,
        "student.kappa": student.kappa, "student.entropy_coef": student.entropy_coef, "ppo.entropy_coef": ppo.entropy_coef,
    }  # fmt: skip
    positive = {
        "student.max_grad_norm": student.max_grad_norm, "ppo.max_grad_norm": ppo.max_grad_norm, "feedback.max_grad_norm": config.feedback.max_grad_norm,
        "student.clip_eps": student.clip_eps, "ppo.clip_eps": ppo.clip_eps, "feedback.clip_eps": config.feedback.clip_eps,
        "drrn.temperature": drrn.temperature, "drrn.max_grad_norm": drrn.max_grad_norm, "drrn.reward_scale": drrn.reward_scale,
        "cloning.max_grad_norm": cloning.max_grad_norm,
    }  # fmt: skip
    unit = {"student.gamma": student.gamma, "student.lam": student.lam, "ppo.gamma": ppo.gamma, "ppo.lam": ppo.lam}
    unit |= {"drrn.gamma": drrn.gamma, "drrn.epsilon": drrn.epsilon}
    problems = [f"{key}: must be at least 1, got {value}" for key, value in at_least_one.items() if value < 1]
    if config.env.num_distractors is not None:
        not_negative["env.num_distractors"] = config.env.num_distractors
    problems += [f"{key}: must not be negative, got {value}" for key, value in not_negative.items() if value < 0]
    problems += [f"{key}: must be above 0, got {value}" for key, value in positive.items() if value <= 0]
    problems += [f"{key}: must be between 0 and 1, got {value}" for key, value in unit.items() if not 0 <= value <= 1]
    if drrn.replay_size < drrn.batch_size:
        problems.append(f"drrn.replay_size: must be at least drrn.batch_size={drrn.batch_size}, got {drrn.replay_size}")
    return [
        *problems, *_impossible_workers(config.env), *_impossible_curriculum(config.env.curriculum), *_impossible_method(config),
        *_impossible_llm(config), *_impossible_comparison(config.compare),
    ]  # fmt: skip


def _impossible_workers(env: EnvArgs) -> list[str]:
    if env.backend == "processes" and env.num_workers == 0:
        return ["env.num_workers: must be at least 1 where env.backend is processes, got 0"]
    if env.backend in ("minigrid", "vector", "table") and env.num_workers > 0:
        return [f"env.num_workers: must be 0 where env.backend is {env.backend}, got {env.num_workers}"]
    return []


def _impossible_curriculum(stages: Sequence[StageArgs]) -> list[str]:
    problems = []
    for place, stage in enumerate(stages):
        key = f"env.curriculum[{place}]"
        if not stage.level:
            problems.append(f"{key}.level: must be named")
        if stage.steps is None and stage.success is None:
            problems.append(f"{key}: needs steps or success, or it would never end")
        if stage.steps is not None and stage.steps < 1:
            problems.append(f"{key}.steps: must be at least 1, got {stage.steps}")
        if stage.success is not None and not 0 < stage.success <= 1:
            problems.append(f"{key}.success: must be above 0 and at most 1, got {stage.success}")
        if stage.num_distractors is not None and stage.num_distractors < 0:
            problems.append(f"{key}.num_distractors: must not be negative, got {stage.num_distractors}")
    return problems


def _impossible_method(config: Config) -> list[str]:
    """Combinations of arm and feedback that mean nothing."""
    problems = []
    feedback, arm = config.feedback, config.arm
    if feedback.signal == "inverted" and feedback.inverts in ("inverted", "shuffled", "none"):
        problems.append(f"feedback.inverts: must name a signal of its own, got {feedback.inverts}")
    if feedback.signal == "shuffled" and feedback.shuffles in ("inverted", "shuffled", "none"):
        problems.append(f"feedback.shuffles: must name a signal of its own, got {feedback.shuffles}")
    used = feedback.inverts if feedback.signal == "inverted" else feedback.signal
    if isinstance(feedback.every, int):
        if feedback.every < 1:
            problems.append(f"feedback.every: must be at least 1 or 'rollout', got {feedback.every}")
        elif used not in ONLINE_SIGNALS:
            problems.append(
                f"feedback.signal: {used} needs the whole rollout; with feedback.every={feedback.every} it can be {', '.join(ONLINE_SIGNALS)}"
            )
    if feedback.channel != "loss" and used not in ONLINE_SIGNALS:
        problems.append(
            f"feedback.signal: {used} needs the whole rollout, but feedback.channel={feedback.channel} says it in the next prompt; "
            f"it can be {', '.join(ONLINE_SIGNALS)}"
        )
    if arm.agent == "student" and arm.teacher != "llm" and feedback.signal != "none":
        problems.append(
            f"feedback.signal: must be none where arm.teacher is {arm.teacher}: there is no LLM to teach, got {feedback.signal}"
        )
    if arm.agent == "student" and arm.teacher in ("random", "oracle") and config.guidance.vocabulary == "free":
        problems.append(f"guidance.vocabulary: free text needs an LLM, but arm.teacher is {arm.teacher}")
    if arm.agent == "student" and arm.teacher == "oracle" and config.guidance.vocabulary == "subgoal":
        problems.append("guidance.vocabulary: must be action_hint where arm.teacher is oracle, got subgoal")
    if config.guidance.vocabulary == "free" and config.feedback_trains and (feedback.entropy_coef or feedback.kl_coef):
        problems.append("guidance.vocabulary: free text has no list of candidates; feedback.entropy_coef and feedback.kl_coef must be 0")
    if arm.agent not in ("student", "llm_policy") and feedback.signal != "none":
        problems.append(f"feedback.signal: must be none where arm.agent is {arm.agent}: nobody gives guidance, got {feedback.signal}")
    if arm.agent != "student" and config.guidance.vocabulary != "action_hint":
        problems.append(f"guidance.vocabulary: must be action_hint where arm.agent is {arm.agent}, got {config.guidance.vocabulary}")
    if feedback.signal == "weighted" and feedback.loss == "unlikelihood":
        problems.append("feedback.loss: unlikelihood knows signs only; with feedback.signal=weighted it can be reinforce or clipped")
    return problems


def _impossible_llm(config: Config) -> list[str]:
    """What no server can do, and weights and heads for an arm that has no use for them."""
    problems = []
    feedback, arm, llm = config.feedback, config.arm, config.lamorel_args.llm_args
    if llm.load_in_4bit:
        problems.append("lamorel_args.llm_args.load_in_4bit: not supported, must be false; dtype=bfloat16 halves the memory")
    if llm.parallelism.use_gpu and llm.parallelism.model_parallelism_size > 1:
        problems.append(
            "lamorel_args.llm_args.parallelism.model_parallelism_size: must be 1, a server holds its model on one GPU; "
            f"got {llm.parallelism.model_parallelism_size}"
        )
    if arm.action_heads and arm.agent != "llm_policy":
        problems.append(f"arm.action_heads: only an LLM as policy acts with them, but arm.agent is {arm.agent}")
    if arm.action_heads and feedback.signal != "none":
        problems.append(f"feedback.signal: must be none where arm.action_heads is true: it teaches texts, got {feedback.signal}")
    if arm.weights != "pretrained" and not config.asks_llm:
        problems.append(f"arm.weights: must be pretrained where no LLM takes part, got {arm.weights}")
    if arm.weights == "embeddings" and not llm.pretrained:
        problems.append("arm.weights: there are no embeddings to keep where lamorel_args.llm_args.pretrained is false, got embeddings")
    return problems


def _impossible_comparison(compare: CompareArgs) -> list[str]:
    problems = []
    for key, values in (("compare.tasks", compare.tasks), ("compare.arms", compare.arms), ("compare.seeds", compare.seeds)):
        if not values and key != "compare.tasks":
            problems.append(f"{key}: must not be empty")
        if len(set(values)) < len(values):
            problems.append(f"{key}: names one twice: {list(values)}")
    return problems + [f"compare.seeds: must not be negative, got {seed}" for seed in compare.seeds if seed < 0]
