"""The typed configuration: one schema, read from YAML, checked as a whole. The only file that knows OmegaConf and Hydra.

A configuration is made of ``configs/default.yaml``, one file per chosen group (``model=flan_t5_small``, ``task=go_to_local``), and single values
(``feedback.loss=clipped``), in Hydra's syntax. Whatever is wrong with it is reported at once, every problem in a line of its own.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lamorel_ext.errors import ConfigError

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"

Signal = Literal["previous", "td", "gae", "state", "weighted", "random", "shuffled", "positive", "inverted", "none"]
ONLINE_SIGNALS = ("previous", "td", "state", "random", "positive", "none")
"""Signals that need nothing later than the step itself: the ones that ``feedback.every: 1`` can have."""


# --- Lamorel's keys ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DistributedSetupArgs:
    """How many processes play which role; the first ``n_rl_processes`` ranks are the clients."""

    n_rl_processes: int = 1
    n_llm_processes: int = 1


@dataclass(frozen=True)
class AccelerateArgs:
    """What the launchers write into the ``accelerate launch`` line. Port 0 means a free one."""

    config_file: str | None = None
    machine_rank: int = 0
    num_machines: int = 1
    main_process_ip: str = "127.0.0.1"
    main_process_port: int = 0


@dataclass(frozen=True)
class ParallelismArgs:
    """Devices of one LLM server."""

    use_gpu: bool = False
    model_parallelism_size: int = 1
    synchronize_gpus_after_scoring: bool = False
    empty_cuda_cache_after_scoring: bool = False


@dataclass(frozen=True)
class LlmArgs:
    """The language model.

    Attributes:
        model_type: ``auto`` reads it from the model's own configuration.
        model_path: ``embedded``, a name on the hub, a folder, or a GGUF file's folder (with ``gguf_file``); ``smollm2`` takes the file that
            the extra ``smollm2`` installs.
        pretrained: False draws fresh weights of the model's shape from ``seed``.
        minibatch_size: Sequences scored at a time at most; bounds the memory of a scoring call without gradients. Candidates that share prefixes
            are merged into trees, and then count by the decoder positions that they take together: at most as many as this number of
            sequences of their own would have.
        max_prompt_tokens: A longer prompt is refused; null takes the model's own limit where it has one.
        cache_size: Answers remembered between two updates; 0 switches the memory off.
        num_threads: Threads of one server for PyTorch; 0 leaves PyTorch's choice.
        value_head_hidden: Width of the two hidden layers of the value head, and of the action heads.
    """

    model_type: Literal["auto", "seq2seq", "causal"] = "auto"
    model_path: str = "embedded"
    gguf_file: str | None = None
    pretrained: bool = True
    trust_remote_code: bool = False
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    minibatch_size: int = 192
    pre_encode_inputs: bool = True
    load_in_4bit: bool = False
    max_prompt_tokens: int | None = None
    cache_size: int = 100_000
    num_threads: int = 0
    value_head_hidden: int = 1024
    seed: int = 0
    parallelism: ParallelismArgs = field(default_factory=ParallelismArgs)


@dataclass(frozen=True)
class LamorelArgs:
    """Lamorel's own keys, with Lamorel's names.

    Attributes:
        gloo_timeout: Seconds after which a request without an answer is given up. A peer that died is noticed within seconds whatever this says.
        allow_subgraph_use_whith_gradient: Lamorel's key, spelt as there; accepted, and not needed here: parameters without a gradient are
            counted as zero.
    """

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    gloo_timeout: int = 1800
    allow_subgraph_use_whith_gradient: bool = False
    distributed_setup_args: DistributedSetupArgs = field(default_factory=DistributedSetupArgs)
    accelerate_args: AccelerateArgs = field(default_factory=AccelerateArgs)
    llm_args: LlmArgs = field(default_factory=LlmArgs)


# --- ours ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageArgs:
    """A stage of a curriculum; it ends with the rollout that fulfils one of its conditions.

    Attributes:
        level: Id of a BabyAI level.
        num_distractors: As in ``env``.
        steps: Environment steps of the stage, over all environments, rounded up to whole steps of all of them; null sets no limit.
        success: Share of the stage's last 100 episodes that must have succeeded; null sets no such condition. Arms then change level at
            different times.
    """

    level: str = ""
    num_distractors: int | None = None
    steps: int | None = None
    success: float | None = None


@dataclass(frozen=True)
class EnvArgs:
    """The task.

    Attributes:
        name: Of the task in reports; empty takes the level's. Set by the files in ``configs/task``.
        level: Id of a BabyAI level, such as ``BabyAI-GoToRedBallNoDists-v0``.
        num_envs: Copies stepped together.
        num_distractors: Objects, in the level's own way of counting (see ``envs.levels.make_level``); null keeps the level's own number.
        curriculum: Stages of training before that on ``level``, each with a level of its own. Evaluations are always on ``level``.
        language: Language of the observation's sentences; missions stay English.
        prompt: Template of the prompt: ``lamorel`` (the last observation) or ``glam`` (action list and history).
        history: Observations in a ``glam`` prompt; 1 makes the policy memoryless.
        backend: How the copies are stepped; all ways give the same steps. ``auto`` takes the fastest that knows the level: ``table``, ``vector``
            (arrays over all copies), or minigrid itself, in this process (``minigrid``) or in others (``processes``).
        num_workers: Processes that step levels that only minigrid knows; 0 means none.
    """

    name: str = ""
    level: str = "BabyAI-GoToRedBallNoDists-v0"
    num_envs: int = 16
    num_distractors: int | None = None
    curriculum: tuple[StageArgs, ...] = ()
    language: Literal["en", "fr"] = "en"
    prompt: Literal["lamorel", "glam"] = "lamorel"
    history: int = 3
    backend: Literal["auto", "minigrid", "vector", "table", "processes"] = "auto"
    num_workers: int = 0


@dataclass(frozen=True)
class ArmArgs:
    """Who acts, and who gives guidance.

    Attributes:
        name: Name in reports and folders.
        agent: ``llm_policy`` (the LLM scores the actions, PPO trains it), ``student`` (a network acts, a teacher guides), or one to compare with:
            ``drrn`` (Q-learning over texts), ``cloning`` (the LLM learns the actions of the BabyAI bot, which acts meanwhile), ``random``
            (every action alike) and ``bot``, which learn nothing.
        teacher: Of a student: the LLM, nobody, uniformly random guidance, or the BabyAI bot.
        action_heads: Of an LLM as policy: whether the actions' logits come from a head of their own on the state that predicts the first token,
            in place of the scores of the actions' texts.
        weights: What the LLM starts from: ``pretrained`` (what was loaded), ``fresh`` (drawn from ``run.seed``) or ``embeddings`` (the same, but
            with the loaded token embeddings).
    """

    name: str = "teacher_feedback"
    agent: Literal["llm_policy", "student", "drrn", "cloning", "random", "bot"] = "student"
    teacher: Literal["llm", "none", "random", "oracle"] = "llm"
    action_heads: bool = False
    weights: Literal["pretrained", "embeddings", "fresh"] = "pretrained"


@dataclass(frozen=True)
class GuidanceArgs:
    """What the teacher may say.

    Attributes:
        vocabulary: ``action_hint`` the six action texts, ``subgoal`` short sentences, ``free`` generated text.
        max_new_tokens: Length of ``free`` guidance in tokens.
    """

    vocabulary: Literal["action_hint", "subgoal", "free"] = "action_hint"
    max_new_tokens: int = 12


@dataclass(frozen=True)
class StudentArgs:
    """The RL student, trained by PPO on unscaled rewards (METHOD.md, section 2).

    Attributes:
        kappa: Initial bias of the logits towards the hinted action; 0 means none.
        num_steps: Steps of each environment between two updates.
        num_minibatches: Minibatches per epoch.
    """

    hidden_size: int = 64
    guidance_size: int = 16
    kappa: float = 2.0
    num_steps: int = 32
    epochs: int = 4
    num_minibatches: int = 4
    lr: float = 2e-3
    gamma: float = 0.99
    lam: float = 0.95
    clip_eps: float = 0.2
    entropy_coef: float = 0.01
    value_loss_coef: float = 0.5
    max_grad_norm: float = 0.5


@dataclass(frozen=True)
class PpoArgs:
    """PPO of the LLM policy; the defaults are GLAM's (Carta et al. 2023, appendix), rewards times 20.

    Attributes:
        num_steps: Steps of each environment between two updates.
        gradient_minibatch_size: Distinct prompts whose activations are held at a time; 0 means the whole minibatch.
    """

    num_steps: int = 40
    epochs: int = 4
    minibatch_size: int = 64
    gradient_minibatch_size: int = 0
    lr: float = 1e-6
    adam_eps: float = 1e-5
    gamma: float = 0.99
    lam: float = 0.99
    clip_eps: float = 0.2
    entropy_coef: float = 0.01
    value_loss_coef: float = 0.5
    max_grad_norm: float = 0.5
    reward_scale: float = 20.0


@dataclass(frozen=True)
class DrrnArgs:
    """Q-learning over texts: the Deep Reinforcement Relevance Network (He et al. 2016), as GLAM uses it (Carta et al. 2023).

    Attributes:
        embedding_size: Of a word.
        hidden_size: Of the two recurrent encoders, and of the layer that joins them.
        num_steps: Steps of each environment between two rounds of updates.
        update_every: Environment steps, over all environments, for each gradient step. GLAM has 64.
        batch_size: Transitions of a gradient step; there is none before so many have been seen.
        replay_size: Transitions remembered.
        target_every: Gradient steps between two copies of the network that the targets come from; 0 takes the network itself, as GLAM does.
        exploration: ``softmax`` samples from the softmax of Q / ``temperature``, ``epsilon`` takes the best action but for a share of
            ``epsilon``. Evaluations act alike.
    """

    embedding_size: int = 128
    hidden_size: int = 128
    num_steps: int = 4
    update_every: int = 8
    batch_size: int = 64
    replay_size: int = 100_000
    target_every: int = 0
    exploration: Literal["softmax", "epsilon"] = "softmax"
    temperature: float = 1.0
    epsilon: float = 0.1
    gamma: float = 0.9
    lr: float = 1e-4
    max_grad_norm: float = 5.0
    reward_scale: float = 20.0


@dataclass(frozen=True)
class CloningArgs:
    """Behavioural cloning of the BabyAI bot by the LLM: cross-entropy over the actions' texts.

    Attributes:
        num_steps: Steps of each environment between two updates.
        epochs: Passes over them.
        minibatch_size: Transitions of a step of Adam, over all servers.
        gradient_minibatch_size: As in ``ppo``.
    """

    num_steps: int = 32
    epochs: int = 1
    minibatch_size: int = 64
    gradient_minibatch_size: int = 0
    lr: float = 5e-4
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class FeedbackArgs:
    """The feedback edge (METHOD.md, section 2).

    Attributes:
        signal: What f_t is; ``none`` cuts the edge.
        inverts: The signal that ``inverted`` turns around.
        shuffles: The signal that ``shuffled`` permutes.
        ties: What the sign of an exact tie is, for ``previous``.
        warmup_steps: Environment steps, over all environments, before the first feedback: the student's critic learns meanwhile.
        every: Steps of the environments between two teacher updates, or ``rollout``. 1 is Algorithm 1 as written.
        lr: Step size of Adam for one update per rollout.
        lr_online: The same where ``every`` is a number of steps: many small, noisy updates want a smaller one.
        kl_coef: Weight of the KL divergence to the initial teacher.
        gradient_minibatch_size: As in ``ppo``.
    """

    signal: Signal = "gae"
    inverts: Signal = "gae"
    shuffles: Signal = "gae"
    loss: Literal["reinforce", "unlikelihood", "clipped"] = "reinforce"
    channel: Literal["loss", "prompt", "both"] = "loss"
    every: int | Literal["rollout"] = "rollout"
    ties: Literal["positive", "zero"] = "positive"
    warmup_steps: int = 0
    lr: float = 1e-4
    lr_online: float = 1e-5
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    clip_eps: float = 0.2
    max_grad_norm: float = 1.0
    gradient_minibatch_size: int = 0


@dataclass(frozen=True)
class RunArgs:
    """One training run.

    Attributes:
        total_steps: Environment steps, over all environments.
        eval_every: Environment steps between two evaluations (rounded up to whole rollouts); the first comes before any training.
        evaluation: ``exact`` enumerates (GoToRedBallNoDists, memoryless policies), ``episodes`` simulates, ``auto`` takes the exact one where it
            can.
        eval_episodes: Episodes of a simulated evaluation.
        eval_seed: Seed of the first held-out episode; training never uses it or the ones after it.
        checkpoint_every: Rollouts between two checkpoints; 0 writes only the last.
        trace_every: Rollouts from one whose steps are recorded for the viewer to the next, from the first on; the last full one and what
            remains after it are recorded too. 0 records none. Changes no number of the run.
        num_threads: Threads of the client for PyTorch; 0 leaves PyTorch's choice.
        pipeline: Whether the environments are stepped in two halves, one while the LLM servers score the prompts of the other: ``true`` wherever
            the arm allows it (an LLM is asked for scores at every step and not taught in between), ``auto`` where that was measured to be faster
            too (at least 32 environments that minigrid steps in the client, servers in processes of their own, and more cores than processes),
            ``false`` never. Each half is a call of its own, and the last bits of an answer depend on what it was computed with.
        tracker: Takes the learning curve besides ``metrics.csv`` and TensorBoard.
    """

    seed: int = 0
    total_steps: int = 2100
    eval_every: int = 512
    evaluation: Literal["auto", "exact", "episodes"] = "auto"
    eval_episodes: int = 200
    eval_seed: int = 1_000_000_000
    checkpoint_every: int = 1
    trace_every: int = 100
    num_threads: int = 1
    pipeline: bool | Literal["auto"] = "auto"
    tracker: Literal["none", "wandb"] = "none"
    output_dir: str = "runs/run"


@dataclass(frozen=True)
class CompareArgs:
    """A comparison: every arm with every seed, on every task.

    Attributes:
        name: Title of the report.
        tasks: Names of files in ``configs/task``; none means the one task that ``env`` describes. Where tasks are named, runs lie in
            ``output_dir/task/arm/seed_k`` instead of ``output_dir/arm/seed_k``.
        arms: Names of files in ``configs/arm``.
        seeds: One run per arm and seed; seed ``s`` means the same episodes in every arm.
        bootstrap_samples: Resamples over seeds behind each interval.
    """

    name: str = "comparison"
    tasks: tuple[str, ...] = ()
    arms: tuple[str, ...] = ("llm_policy", "teacher_feedback_gae")
    seeds: tuple[int, ...] = (0, 1, 2)
    output_dir: str = "runs/comparison"
    bootstrap_samples: int = 2000


@dataclass(frozen=True)
class Config:
    """Everything a run needs."""

    lamorel_args: LamorelArgs = field(default_factory=LamorelArgs)
    env: EnvArgs = field(default_factory=EnvArgs)
    arm: ArmArgs = field(default_factory=ArmArgs)
    guidance: GuidanceArgs = field(default_factory=GuidanceArgs)
    student: StudentArgs = field(default_factory=StudentArgs)
    ppo: PpoArgs = field(default_factory=PpoArgs)
    drrn: DrrnArgs = field(default_factory=DrrnArgs)
    cloning: CloningArgs = field(default_factory=CloningArgs)
    feedback: FeedbackArgs = field(default_factory=FeedbackArgs)
    run: RunArgs = field(default_factory=RunArgs)
    compare: CompareArgs = field(default_factory=CompareArgs)

    @property
    def num_steps(self) -> int:
        """Steps of each environment between two policy updates."""
        own = {"llm_policy": self.ppo.num_steps, "drrn": self.drrn.num_steps, "cloning": self.cloning.num_steps}
        return own.get(self.arm.agent, self.student.num_steps)

    @property
    def asks_llm(self) -> bool:
        """True where the arm asks a language model anything."""
        return self.arm.agent in ("llm_policy", "cloning") or (self.arm.agent == "student" and self.arm.teacher == "llm")

    @property
    def feedback_trains(self) -> bool:
        """True where the feedback edge changes the LLM's weights."""
        return self.feedback.signal != "none" and self.feedback.channel != "prompt"


# --- reading ---------------------------------------------------------------------------------------------------------------


def load_config(overrides: Sequence[str] = (), config_name: str = "default", config_dir: Path | str = CONFIG_DIR) -> Config:
    """Compose the configuration and check it as a whole.

    Args:
        overrides: Hydra's syntax: ``model=flan_t5_small`` chooses a file of a group, ``feedback.lr=1e-5`` sets a value.
        config_name: File in ``config_dir`` to start from, without ``.yaml``.
        config_dir: Folder of the files.

    Raises:
        ConfigError: With every problem found.
    """
    return from_mapping(compose_mapping(overrides, config_name, config_dir))


def load_matrix(
    overrides: Sequence[str] = (), config_name: str = "default", config_dir: Path | str = CONFIG_DIR
) -> dict[tuple[str, str], Config]:
    """The configuration of each arm on each task of a comparison, composed anew, so that the experiment's own values win over theirs.

    Returns:
        By task and arm, task after task. The task is empty where ``compare.tasks`` names none.

    Raises:
        ConfigError: With the problems of every task and arm; what all have in common is said once. Or two tasks are the same.
    """
    mapping = compose_mapping(overrides, config_name, config_dir)
    compare = from_mapping({"compare": mapping["compare"]} if "compare" in mapping else {}).compare
    configs: dict[tuple[str, str], Config] = {}
    problems: dict[str, list[tuple[str, str]]] = {}
    for task, arm in itertools.product(compare.tasks or ("",), compare.arms):
        groups = [*([f"task={task}"] if task else []), f"arm={arm}"]
        try:
            configs[task, arm] = load_config([*overrides, *groups], config_name, config_dir)
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append((task, arm))
    if problems:
        raise ConfigError([_concerning(problem, concerned, compare) for problem, concerned in problems.items()])
    _check_tasks_differ(configs, compare)
    return configs


def _concerning(problem: str, concerned: Sequence[tuple[str, str]], compare: CompareArgs) -> str:
    """A problem behind the tasks and arms that have it, where not all of them do."""
    tasks, arms = (tuple(dict.fromkeys(names)) for names in zip(*concerned, strict=True))
    words = [f"task={', '.join(tasks)}"] if len(tasks) < len(compare.tasks) else []
    words += [f"arm={', '.join(arms)}"] if len(arms) < len(compare.arms) else []
    return f"with {' and '.join(words)}: {problem}" if words else problem


def _check_tasks_differ(configs: Mapping[tuple[str, str], Config], compare: CompareArgs) -> None:
    """A value of the experiment, or of the command line, may win over what sets two tasks apart."""
    seen: dict[EnvArgs, str] = {}
    for task in compare.tasks:
        env = dataclasses.replace(configs[task, compare.arms[0]].env, name="")
        if env in seen:
            raise ConfigError(f"compare.tasks: {seen[env]} and {task} have the same env values; is one of them set besides?")
        seen[env] = task


def compose_mapping(overrides: Sequence[str] = (), config_name: str = "default", config_dir: Path | str = CONFIG_DIR) -> dict[str, Any]:
    """Compose the plain values, unchecked. See ``load_config``."""
    folder = Path(config_dir).resolve()
    if not (folder / f"{config_name}.yaml").is_file():
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        raise ConfigError(f"no configuration {config_name!r} in {folder}{_did_you_mean(config_name, known)}")
    groups, values, problems = _split_overrides(overrides, folder)
    if problems:
        raise ConfigError(problems)
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(folder), version_base=None):
            composed = compose(config_name, overrides=groups)
        OmegaConf.set_struct(composed, False)
        for key, value in values:
            OmegaConf.update(composed, key, value, force_add=True)
        plain = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{config_name}.yaml with {list(overrides)}: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{config_name}.yaml is not a mapping of keys to values")
    return {str(key): value for key, value in plain.items()}


def from_mapping(mapping: Mapping[str, Any]) -> Config:
    """Build the typed configuration from plain values.

    Raises:
        ConfigError: With every unknown key, wrong type and impossible value.
    """
    problems: list[str] = []
    config = _build(Config, mapping, "", problems)
    problems += _impossible_values(config)
    if problems:
        raise ConfigError(problems)
    return config


def to_mapping(config: Config) -> dict[str, Any]:
    """Plain dictionaries and lists, as ``from_mapping`` takes them."""
    plain: dict[str, Any] = dataclasses.asdict(config)
    return plain


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(_lists(to_mapping(config)))), encoding="utf-8")


def read_config(path: Path) -> Config:
    """Read what ``save_config`` wrote.

    Raises:
        ConfigError: The file is missing, no YAML, or does not fit the schema.
    """
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{path} is not a mapping of keys to values")
    return from_mapping({str(key): value for key, value in plain.items()})


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _split_overrides(overrides: Sequence[str], folder: Path) -> tuple[list[str], list[tuple[str, Any]], list[str]]:
    """Hydra composes the groups; single values are set afterwards, so that all of them can be checked together."""
    groups: list[str] = []
    values: list[tuple[str, Any]] = []
    problems: list[str] = []
    for text in overrides:
        try:
            (parsed,) = OverridesParser.create().parse_overrides([text])
        except HydraException:
            problems.append(f"{text!r} is not of the form key=value")
            continue
        if parsed.is_sweep_override() or parsed.is_delete():
            problems.append(f"{text!r}: exactly one value is needed here")
            continue
        key = parsed.key_or_group
        if (folder / key).is_dir():
            choices = sorted(path.stem for path in (folder / key).glob("*.yaml"))
            if str(parsed.value()) in choices:
                groups.append(text)
            else:
                problems.append(f"{key}={parsed.value()}: no such file in {folder / key}; there are: {', '.join(choices)}")
        else:
            values.append((key, _plain(parsed.value())))
    return groups, values, problems


def _plain(value: Any) -> Any:
    """Values of Hydra's override grammar as plain Python."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


# --- checking --------------------------------------------------------------------------------------------------------------


def _build(kind: type, mapping: Any, prefix: str, problems: list[str]) -> Any:
    if not isinstance(mapping, Mapping):
        problems.append(f"{prefix.removesuffix('.') or 'the configuration'}: expected a group of keys, got {mapping!r}")
        return kind()
    hints = get_type_hints(kind)
    for key in mapping:
        if key not in hints:
            problems.append(f"{prefix}{key}: unknown key{_did_you_mean(str(key), list(hints))}")
    values = {}
    for name, hint in hints.items():
        if name not in mapping:
            continue
        if dataclasses.is_dataclass(hint):
            values[name] = _build(hint, mapping[name], f"{prefix}{name}.", problems)  # type: ignore[arg-type]
        else:
            known = len(problems)
            value = _convert(hint, mapping[name], f"{prefix}{name}", problems)
            if len(problems) == known:  # otherwise the default stands in, so that the rest can be checked too
                values[name] = value
    return kind(**values)


def _convert(hint: Any, value: Any, key: str, problems: list[str]) -> Any:
    """The value as the hint wants it; a problem is noted where it cannot be."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{key}.", problems)  # type: ignore[arg-type]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            problems.append(f"{key}: expected a list, got {value!r}")
            return ()
        return tuple(_convert(arguments[0], item, f"{key}[{i}]", problems) for i, item in enumerate(value))
    fitting = [option for option in _alternatives(hint) if _fits(option, value)]
    if not fitting:
        problems.append(f"{key}: expected {_describe(hint)}, got {value!r}")
        return value
    return float(value) if fitting[0] is float else value


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(hint: Any, value: Any) -> bool:
    if hint is type(None):
        return value is None
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    def one(option: Any) -> str:
        if option is type(None):
            return "null"
        return "one of " + ", ".join(get_args(option)) if get_origin(option) is Literal else option.__name__

    return " or ".join(one(option) for option in _alternatives(hint))


def _did_you_mean(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f" (did you mean {close[0]}?)" if close else f" (known: {', '.join(known)})"


def _impossible_values(config: Config) -> list[str]:
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
        "drrn.embedding_size": drrn.embedding_size, "drrn.hidden_size": drrn.hidden_size, "drrn.num_steps": drrn.num_steps,
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
