"""The schema: every key of the configuration, its type and its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lamorel_ext.config.plugs import Plug, Plugs
from lamorel_ext.methods.cloning.options import CloningArgs
from lamorel_ext.methods.feedback.options import FeedbackArgs
from lamorel_ext.methods.ppo.options import PpoArgs
from lamorel_ext.options import MAX_WHOLE, number

MAX_SEED = MAX_WHOLE
"""What fits into the numbers that seeds travel in."""
MAX_WAIT_S = 10**9
"""What fits into the timestamps that timeouts end at; 32 years."""
MAX_THREADS = 2**15
"""More than any machine has cores; PyTorch takes no more than a C int."""
MAX_PROCESSES = 2**16
"""More than any launch has; what is known of each is listed before any starts."""


# --- Lamorel's keys -------------------------------------------------------------------------------


Shards = Literal["contiguous", "distinct"]


@dataclass(frozen=True)
class DistributedSetupArgs:
    """How many processes play which role; the first ``n_rl_processes`` ranks are the clients.

    Attributes:
        shards: How a batch of prompts is cut for several servers. ``contiguous``: into equal parts
            in order. ``distinct``: equal prompts go to one server, the one that has their answer
            cached; less is computed, and scores differ in their last digits.
        merge_prompts: Score requests of several clients that wait at a server are answered by one
            forward pass of at most so many prompts; 0 answers each by itself. Requests of one
            client are never merged, so no run's numbers depend on it.
        merge_wait_s: Seconds for which a server that has a score request waits for those of its
            other clients; 0 does not wait.
        devices_per_process: GPUs of each LLM server on its machine, ``()`` for the CPU; none
            divides the GPUs evenly.
        client_devices: The GPU of each RL client on its machine, which the LLM servers then leave
            to it, unless ``devices_per_process`` says otherwise; none for the CPU.
    """

    n_rl_processes: int = number(1, at_least=1, at_most=MAX_PROCESSES)
    n_llm_processes: int = number(1, at_least=1, at_most=MAX_PROCESSES)
    shards: Shards = "contiguous"
    merge_prompts: int = number(1024, at_least=0)
    merge_wait_s: float = number(0.0, at_least=0, at_most=MAX_WAIT_S)
    devices_per_process: tuple[tuple[int, ...], ...] = number((), at_least=0)
    client_devices: tuple[int, ...] = number((), at_least=0)


@dataclass(frozen=True)
class AccelerateArgs:
    """What the launchers write into the ``accelerate launch`` line. Port 0 means a free one.

    Attributes:
        processes_per_machine: Ranks on each machine, in order; none shares them out evenly.
    """

    config_file: str | None = None
    machine_rank: int = number(0, at_least=0)
    num_machines: int = number(1, at_least=1)
    processes_per_machine: tuple[int, ...] = number((), at_least=1)
    main_process_ip: str = "127.0.0.1"
    main_process_port: int = number(0, at_least=0, at_most=65535)


@dataclass(frozen=True)
class ParallelismArgs:
    """Devices of one LLM server.

    Attributes:
        model_parallelism_size: GPUs that share the layers of a server's model, as Accelerate's
            device map lays them out; 1 on the CPU, whatever it says.
        fsdp: The LLM servers hold one model together, each a part of every weight, gradient and
            moment (``fully_shard``), and compute the same: for a model too large for one device.
    """

    use_gpu: bool = False
    model_parallelism_size: int = number(1, at_least=1, at_most=MAX_PROCESSES)
    fsdp: bool = False
    synchronize_gpus_after_scoring: bool = False
    empty_cuda_cache_after_scoring: bool = False


@dataclass(frozen=True)
class LoraArgs:
    """Low-rank adapters (extra ``lora``); with them the model's own weights are not trained.

    Attributes:
        r: Rank; 0 means no adapters.
        alpha: Scale; 0 means twice the rank.
        target_modules: Names of layers, such as ``[q, v]``; an empty list leaves the choice to
            peft.
    """

    r: int = number(0, at_least=0)
    alpha: int = number(0, at_least=0)
    target_modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class LlmArgs:
    """The language model.

    Attributes:
        model_type: ``auto`` reads it from the model's own configuration.
        model_path: ``embedded``, a name on the hub, a folder, or a GGUF file's folder (with
            ``gguf_file``); ``smollm2`` takes the file that the extra ``smollm2`` installs.
        pretrained: False draws fresh weights of the model's shape from ``seed``.
        minibatch_size: Sequences scored at a time at most; bounds the memory of a scoring call
            without gradients. Candidates that share prefixes are merged into trees, and then count
            by the decoder positions that they take together: at most as many as this number of
            sequences of their own would have.
        quantize: ``int8`` answers from 8-bit copies of the weights of linear layers where no
            gradient is taken, on a CPU and in float32; the first scores' error is logged. Products
            of few rows stay in float32, so that a score depends, within that error, on how many
            prompts a server gets at once. Updates are in full precision, and take the trained
            model's own old log-probabilities.
        max_prompt_tokens: A longer prompt is refused; null takes the model's own limit where it has
            one.
        cache_size: Answers remembered between two updates; 0 switches the memory off.
        num_threads: Threads of one server for PyTorch; 0 leaves what the process starts with: one
            under the launchers, and in a single process the client's ``run.num_threads``.
        value_head_hidden: Width of the two hidden layers of the value head, and of the action
            heads.
        initializer: A ``BaseModelInitializer`` of the user's own, which changes the loaded model.
    """

    model_type: Literal["auto", "seq2seq", "causal"] = "auto"
    model_path: str = "embedded"
    gguf_file: str | None = None
    pretrained: bool = True
    trust_remote_code: bool = False
    dtype: Literal["float32", "bfloat16", "float64", "auto"] = "float32"
    minibatch_size: int = number(192, at_least=1)
    pre_encode_inputs: bool = True
    load_in_4bit: bool = False
    quantize: Literal["int8"] | None = None
    max_prompt_tokens: int | None = number(None, at_least=1)
    cache_size: int = number(100_000, at_least=0)
    num_threads: int = number(0, at_least=0, at_most=MAX_THREADS)
    value_head_hidden: int = number(1024, at_least=1)
    seed: int = number(0, at_least=0, at_most=MAX_SEED)
    parallelism: ParallelismArgs = field(default_factory=ParallelismArgs)
    lora: LoraArgs = field(default_factory=LoraArgs)
    initializer: Plug = field(default_factory=Plug)


@dataclass(frozen=True)
class LamorelArgs:
    """Lamorel's own keys, with Lamorel's names.

    Attributes:
        gloo_timeout: Seconds after which a request without an answer is given up. A peer that died
            is noticed within seconds whatever this says.
        peer_timeout: Seconds for which nothing at all may come from a peer's machine, as in an
            outage of the network, before it counts as gone. Machines wait as long for each other
            to be started, at least a minute.
        allow_subgraph_use_whith_gradient: Lamorel's key, spelt as there; accepted, and not needed
            here: parameters without a gradient are counted as zero.
    """

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    gloo_timeout: int = number(1800, at_least=1, at_most=MAX_WAIT_S)
    # TCP counts it as milliseconds in a C int.
    peer_timeout: int = number(300, at_least=1, at_most=2_000_000)
    allow_subgraph_use_whith_gradient: bool = False
    distributed_setup_args: DistributedSetupArgs = field(default_factory=DistributedSetupArgs)
    accelerate_args: AccelerateArgs = field(default_factory=AccelerateArgs)
    llm_args: LlmArgs = field(default_factory=LlmArgs)


# --- ours -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageArgs:
    """A stage of a curriculum; it ends with the rollout that fulfils one of its conditions.

    Attributes:
        level: Id of a BabyAI level.
        num_distractors: As in ``env``.
        steps: Environment steps of the stage, over all environments, rounded up to whole steps of
            all of them; null sets no limit.
        success: Share of the stage's last 100 episodes that must have succeeded; null sets no such
            condition. Arms then change level at different times.
    """

    level: str = ""
    num_distractors: int | None = number(None, at_least=0)
    steps: int | None = number(None, at_least=1)
    success: float | None = number(None, above=0, at_most=1)


@dataclass(frozen=True)
class EnvArgs:
    """The task.

    Attributes:
        name: Name of the task in reports; empty takes the level's. Set by the files in
            ``configs/task``.
        level: Id of a BabyAI level, such as ``BabyAI-GoToRedBallNoDists-v0``; an environment of the
            user's own gets it where it takes an argument of that name.
        num_envs: Copies stepped together.
        num_distractors: Objects, in the level's own way of counting (see
            ``lamorel_ext.envs.babyai.levels.make_level``); null keeps the level's own number.
        curriculum: Stages of training before that on ``level``, each with a level of its own.
            Evaluations are always on ``level``.
        language: Language of the observation's sentences. In French a ``glam`` prompt is French as
            a whole, for go-to missions alone; a ``lamorel`` one keeps English words and missions.
        prompt: Template of the prompt: ``lamorel`` (the last observation) or ``glam`` (action list
            and history).
        history: Observations in a ``glam`` prompt; 1 makes the policy memoryless.
        backend: How the copies are stepped; all ways give the same steps. ``auto`` takes the
            fastest that knows the level: ``table``, ``vector`` (arrays over all copies), or
            minigrid itself, in this process (``minigrid``) or in others (``processes``). The expert
            is the BabyAI bot, but where walking is enough a shortest path with the first two.
        num_workers: Processes of each RL client that step levels that only minigrid knows, or, as
            Gymnasium's asynchronous vector environment, an environment of the user's own; 0 means
            none.
        action_texts: Texts of the actions of an environment of the user's own; empty takes those
            that it offers (``lamorel_ext.envs.own``).
        success_above: Return above which an episode of such an environment is a success, where it
            does not report success itself.
        max_steps: Steps after which its episodes are cut off; null leaves that to the environment,
            which also gets this, ``action_texts`` and ``success_above`` where it takes arguments of
            these names.
        own: An environment of the user's own in place of the level: ``_target_`` and its arguments,
            beside the keys above.
    """

    name: str = ""
    level: str = "BabyAI-GoToRedBallNoDists-v0"
    num_envs: int = number(16, at_least=1)
    num_distractors: int | None = number(None, at_least=0)
    curriculum: tuple[StageArgs, ...] = ()
    language: Literal["en", "fr"] = "en"
    prompt: Literal["lamorel", "glam"] = "lamorel"
    history: int = number(3, at_least=1)
    backend: Literal["auto", "minigrid", "vector", "table", "processes"] = "auto"
    num_workers: int = number(0, at_least=0)
    action_texts: tuple[str, ...] = ()
    success_above: float = number(0.0)
    max_steps: int | None = number(None, at_least=1)
    own: Plug = field(default_factory=Plug, metadata={"beside": True})


@dataclass(frozen=True)
class ArmArgs:
    """Who acts, and who gives guidance.

    Attributes:
        name: Name in reports and folders.
        agent: ``llm_policy`` (the LLM scores the actions, PPO trains it), ``student`` (a network
            acts, a teacher guides), or one to compare with: ``drrn`` (Q-learning over texts),
            ``cloning`` (the LLM learns the actions of the BabyAI bot, which acts meanwhile),
            ``random`` (every action alike) and ``bot``, which learn nothing; ``own`` where
            ``agent`` names one of the user's.
        teacher: Of a student: the LLM, nobody, uniformly random guidance, or the BabyAI bot.
        action_heads: Of an LLM as policy: whether the actions' logits come from a head of their own
            on the state that predicts the first token, in place of the scores of the actions'
            texts.
        weights: What the LLM starts from: ``pretrained`` (what was loaded), ``fresh`` (drawn from
            ``run.seed``) or ``embeddings`` (the same, but with the loaded token embeddings).
    """

    name: str = "teacher_feedback"
    agent: Literal["llm_policy", "student", "drrn", "cloning", "random", "bot", "own"] = "student"
    teacher: Literal["llm", "none", "random", "oracle"] = "llm"
    action_heads: bool = False
    weights: Literal["pretrained", "embeddings", "fresh"] = "pretrained"


@dataclass(frozen=True)
class GuidanceArgs:
    """What the teacher may say.

    Attributes:
        vocabulary: ``action_hint`` the six action texts, ``subgoal`` short sentences, ``free``
            generated text.
        max_new_tokens: Length of ``free`` guidance in tokens.
    """

    vocabulary: Literal["action_hint", "subgoal", "free"] = "action_hint"
    max_new_tokens: int = number(12, at_least=1)


@dataclass(frozen=True)
class StudentArgs:
    """The RL student, trained by PPO on unscaled rewards (docs/method.md).

    Attributes:
        kappa: Initial bias of the logits towards the hinted action, in nats; 0 means none.
        kappa_mode: What becomes of it. ``initial``: each entry of the table of biases starts there
            and is learnt as every other weight. ``learnt``: one number for all hints, with the step
            size ``kappa_lr``; the table starts at 0. ``annealed``: one number that goes in a
            straight line to ``kappa_final`` over ``kappa_steps`` environment steps and is not
            learnt; the table is.
        kappa_lr: Step size of Adam for a ``learnt`` kappa, in nats: about what it can move in one
            step.
        kappa_final: Where an ``annealed`` kappa ends.
        kappa_steps: Environment steps, over all environments, until it is there.
        num_steps: Steps of each environment between two updates.
        num_minibatches: Minibatches per epoch.
    """

    hidden_size: int = number(64, at_least=1)
    guidance_size: int = number(16, at_least=1)
    kappa: float = number(5.0, at_least=0)
    kappa_mode: Literal["initial", "learnt", "annealed"] = "initial"
    kappa_lr: float = number(0.05, at_least=0)
    kappa_final: float = number(0.0, at_least=0)
    kappa_steps: int = number(4096, at_least=0)
    num_steps: int = number(32, at_least=1)
    epochs: int = number(4, at_least=1)
    num_minibatches: int = number(4, at_least=1)
    lr: float = number(2e-3, at_least=0)
    gamma: float = number(0.99, at_least=0, at_most=1)
    lam: float = number(0.95, at_least=0, at_most=1)
    clip_eps: float = number(0.2, above=0)
    entropy_coef: float = number(0.01, at_least=0)
    value_loss_coef: float = number(0.5, at_least=0)
    max_grad_norm: float = number(0.5, above=0, finite=False)


@dataclass(frozen=True)
class DrrnArgs:
    """Q-learning over texts: the Deep Reinforcement Relevance Network (He et al. 2016), as GLAM
    uses it (Carta et al. 2023).

    Attributes:
        embedding_size: Of a word.
        hidden_size: Of the two recurrent encoders, and of the layer that joins them.
        num_steps: Steps of each environment between two rounds of updates.
        update_every: Environment steps, over all environments, for each gradient step. GLAM has 64.
        batch_size: Transitions of a gradient step; there is none before so many have been seen.
        replay_size: Transitions remembered.
        target_every: Gradient steps between two copies of the network that the targets come from; 0
            takes the network itself, as GLAM does.
        exploration: ``softmax`` samples from the softmax of Q / ``temperature``, ``epsilon`` takes
            the best action but for a share of ``epsilon``. Evaluations act alike.
    """

    embedding_size: int = number(128, at_least=1)
    hidden_size: int = number(128, at_least=1)
    num_steps: int = number(4, at_least=1)
    update_every: int = number(8, at_least=1)
    batch_size: int = number(64, at_least=1)
    replay_size: int = number(100_000, at_least=1)
    target_every: int = number(0, at_least=0)
    exploration: Literal["softmax", "epsilon"] = "softmax"
    temperature: float = number(1.0, above=0)
    epsilon: float = number(0.1, at_least=0, at_most=1)
    gamma: float = number(0.9, at_least=0, at_most=1)
    lr: float = number(1e-4, at_least=0)
    max_grad_norm: float = number(5.0, above=0, finite=False)
    reward_scale: float = number(20.0, above=0)


@dataclass(frozen=True)
class RunArgs:
    """One training run.

    Attributes:
        total_steps: Environment steps, over all environments.
        eval_every: Environment steps between two evaluations (rounded up to whole rollouts); the
            first comes before any training.
        evaluation: ``exact`` enumerates (GoToRedBallNoDists, memoryless policies), ``episodes``
            simulates, ``auto`` takes the exact one where it can.
        eval_episodes: Episodes of a simulated evaluation.
        eval_seed: Seed of the first held-out episode. Training uses seeds below 1,000,000,000, so
            that with a lower one an episode of an evaluation may, rarely, have been trained on.
        checkpoint_every: Rollouts between two checkpoints; 0 writes only the last.
        trace_every: Of so many rollouts one is recorded for the viewer, step by step, beginning
            with the first; the last full one and the rest after it are recorded too. 0 records
            none. Changes no number of the run.
        num_threads: Threads of the client for PyTorch; 0 leaves PyTorch's choice.
        pipeline: Whether the environments are stepped in two halves, one while the LLM servers
            score the prompts of the other: ``true`` wherever the arm allows it (an LLM is asked for
            scores at every step and not taught in between), ``auto`` where that was measured to be
            faster too (at least 32 environments that minigrid steps in the client, servers in
            processes of their own, and more cores than processes), ``false`` never. Each half is a
            call of its own, and the last bits of an answer depend on what it was computed with.
        tracker: Takes the learning curve besides ``metrics.csv`` and TensorBoard.
        portable: Whether two x86 machines with the same versions give the same curve to the last
            digit: the CPU's kernels are held to what every x86 processor has
            (``lamorel_ext.portable``), which is slower.
    """

    seed: int = number(0, at_least=0, at_most=MAX_SEED)
    total_steps: int = number(2100, at_least=1)
    eval_every: int = number(512, at_least=1)
    evaluation: Literal["auto", "exact", "episodes"] = "auto"
    eval_episodes: int = number(200, at_least=1)
    eval_seed: int = number(1_000_000_000, at_least=0, at_most=MAX_SEED)
    checkpoint_every: int = number(1, at_least=0)
    trace_every: int = number(100, at_least=0)
    num_threads: int = number(1, at_least=0, at_most=MAX_THREADS)
    pipeline: bool | Literal["auto"] = "auto"
    tracker: Literal["none", "wandb"] = "none"
    portable: bool = False
    output_dir: str = "runs/run"


@dataclass(frozen=True)
class CompareArgs:
    """A comparison: every arm with every seed, on every task.

    Attributes:
        name: Title of the report.
        tasks: Names of files in ``configs/task``; none means the one task that ``env`` describes.
            Where tasks are named, runs lie in ``output_dir/task/arm/seed_k`` instead of
            ``output_dir/arm/seed_k``.
        arms: Names of files in ``configs/arm``, or cells of them:
            ``teacher_feedback+signal=td+sign=random`` is that file with values of its own (see
            ``config.cells``).
        controls: Kinds of ``feedback.sign`` that every feedback arm is run with besides its own.
        seeds: One run per arm and seed; seed ``s`` means the same episodes in every arm.
        bootstrap_samples: Resamples behind the intervals of interquartile means,
            performance profiles and probabilities of improvement.
    """

    name: str = "comparison"
    tasks: tuple[str, ...] = ()
    arms: tuple[str, ...] = (
        "llm_policy",
        "teacher_frozen",
        "teacher_feedback",
    )
    controls: tuple[Literal["random", "shuffled", "inverted", "positive"], ...] = (
        "random",
        "shuffled",
        "inverted",
    )
    seeds: tuple[int, ...] = number((0, 1, 2), at_least=0, at_most=MAX_SEED)
    output_dir: str = "runs/comparison"
    bootstrap_samples: int = number(2000, at_least=1)


@dataclass(frozen=True)
class Config:
    """Everything a run needs.

    Attributes:
        agent: An agent of the user's own (``lamorel_ext.agents.making.AgentSetting``).
        method: Another way in which LLM and agent teach each other
            (``lamorel_ext.methods.base.Method``), beside the feedback edge.
        updaters: What else the servers can be asked to change, by name: ``BaseUpdater``.
        heads: What else they can be asked about a prompt, by name: ``BaseModuleFunction``.
    """

    lamorel_args: LamorelArgs = field(default_factory=LamorelArgs)
    env: EnvArgs = field(default_factory=EnvArgs)
    arm: ArmArgs = field(default_factory=ArmArgs)
    guidance: GuidanceArgs = field(default_factory=GuidanceArgs)
    student: StudentArgs = field(default_factory=StudentArgs)
    ppo: PpoArgs = field(default_factory=PpoArgs)
    drrn: DrrnArgs = field(default_factory=DrrnArgs)
    cloning: CloningArgs = field(default_factory=CloningArgs)
    feedback: FeedbackArgs = field(default_factory=FeedbackArgs)
    agent: Plug = field(default_factory=Plug)
    method: Plug = field(default_factory=Plug)
    updaters: Plugs = field(default_factory=Plugs)
    heads: Plugs = field(default_factory=Plugs)
    run: RunArgs = field(default_factory=RunArgs)
    compare: CompareArgs = field(default_factory=CompareArgs)

    @property
    def num_steps(self) -> int:
        """Steps of each environment between two policy updates."""
        own = {
            "llm_policy": self.ppo.num_steps,
            "drrn": self.drrn.num_steps,
            "cloning": self.cloning.num_steps,
        }
        return own.get(self.arm.agent, self.student.num_steps)

    @property
    def budget(self) -> int:
        """Environment steps of the whole run: the smallest multiple of ``env.num_envs`` that is not
        below ``run.total_steps``.
        """
        return -(-self.run.total_steps // self.env.num_envs) * self.env.num_envs

    @property
    def asks_llm(self) -> bool:
        """True where the arm asks a language model anything."""
        return (
            self.arm.agent in ("llm_policy", "cloning", "own")
            or (self.arm.agent == "student" and self.arm.teacher == "llm")
            or bool(self.method)
        )

    @property
    def feedback_trains(self) -> bool:
        """True where the feedback edge changes the LLM's weights."""
        return self.feedback.signal != "none" and self.feedback.channel != "prompt"
