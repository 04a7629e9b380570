"""Stand-ins for the student's tests: a corridor to walk along, an LLM that is a table, and a
recorder that needs no folder.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import zlib
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from lamorel_ext.config import (
    ArmArgs,
    Config,
    EnvArgs,
    FeedbackArgs,
    GuidanceArgs,
    PpoArgs,
    RunArgs,
    StudentArgs,
)
from lamorel_ext.prompts import ACTION_NAMES
from lamorel_ext.training.recorder import Checkpoint, SaveLlm
from lamorel_ext.training.trace import Trace
from lamorel_ext.types import (
    GenerateRequest,
    GenerateResult,
    ObservationBatch,
    Scalar,
    ScoreRequest,
    ScoreResult,
    StepBatch,
    UpdateRequest,
    UpdateResult,
)

LENGTH = 6
MAX_STEPS = 12


def observe(positions: np.ndarray, facings: np.ndarray) -> ObservationBatch:
    """States of the corridor: where (0 to LENGTH - 1), and facing the ball (1) or not (0)."""
    images = np.zeros((len(positions), 7, 7, 3), dtype=np.uint8)
    images[np.arange(len(positions)), positions, 0, 0] = 6
    said = tuple(
        (f"You see a red ball {LENGTH - p} steps {'forward' if f else 'behind'}",)
        for p, f in zip(positions, facings, strict=True)
    )
    return ObservationBatch(
        ("go to the red ball",) * len(positions),
        said,
        images,
        np.where(facings, 0, 2).astype(np.int64),
    )


def successor(
    positions: np.ndarray, facings: np.ndarray, actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both turns turn around, going forward walks, everything else does nothing.

    The ball lies at LENGTH.
    """
    facings = np.where(actions <= 1, 1 - facings, facings)
    walked = np.clip(positions + np.where(facings, 1, -1), 0, LENGTH)
    return np.where(actions == 2, walked, positions), facings


class CorridorEnv:
    """A BatchedEnv. Episode k of copy i starts where (seed, first + i, k) says."""

    def __init__(self, num_envs: int, seed: int, first: int = 0) -> None:
        self.num_envs = num_envs
        self._seed, self._first = seed, first
        self.closed = False

    def reset(self) -> ObservationBatch:
        self._episodes = np.zeros(self.num_envs, dtype=np.int64)
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        starts = [self._start(i) for i in range(self.num_envs)]
        self._positions, self._facings = (np.array(column) for column in zip(*starts, strict=True))
        return observe(self._positions, self._facings)

    def step(self, actions: np.ndarray) -> StepBatch:
        self._positions, self._facings = successor(self._positions, self._facings, actions)
        self._steps += 1
        terminated = self._positions == LENGTH
        truncated = self._steps == MAX_STEPS
        rewards = np.where(terminated, 1.0 - 0.9 * self._steps / MAX_STEPS, 0.0)
        reached = current = observe(np.minimum(self._positions, LENGTH - 1), self._facings)
        ended = np.flatnonzero(terminated | truncated)
        for i in ended:
            self._episodes[i] += 1
            self._steps[i] = 0
            self._positions[i], self._facings[i] = self._start(int(i))
        if len(ended):
            current = observe(self._positions, self._facings)
        return StepBatch(reached, current, rewards, terminated, truncated)

    def expert_actions(self) -> np.ndarray:
        return np.where(self._facings == 1, 2, 0)

    def state(self) -> dict[str, list[int]]:
        return {
            "episodes": self._episodes.tolist(),
            "steps": self._steps.tolist(),
            "positions": self._positions.tolist(),
            "facings": self._facings.tolist(),
        }

    def restore(self, state: dict[str, list[int]]) -> ObservationBatch:
        self._episodes, self._steps = np.array(state["episodes"]), np.array(state["steps"])
        self._positions, self._facings = np.array(state["positions"]), np.array(state["facings"])
        return observe(self._positions, self._facings)

    def close(self) -> None:
        self.closed = True

    def _start(self, i: int) -> tuple[int, int]:
        rng = np.random.default_rng([self._seed, self._first + i, int(self._episodes[i])])
        return int(rng.integers(LENGTH - 1)), int(rng.integers(2))


def make_corridor(config: Config, held_out: bool, copies: range | None = None) -> CorridorEnv:
    """An env_factory."""
    copies = copies or range(config.run.eval_episodes if held_out else config.env.num_envs)
    return CorridorEnv(
        len(copies), config.run.eval_seed if held_out else config.run.seed, copies.start
    )


class TableLlm:
    """An LlmClient whose language model is a table of scores, trained by plain gradient steps.

    It notes every request.
    """

    def __init__(self, favourite: str = "", strength: float = 0.0, remote: bool = False) -> None:
        self.remote = remote
        self._favourite, self._strength = favourite, strength
        self.requests: list[ScoreRequest | GenerateRequest | UpdateRequest] = []
        self.reset_seeds: list[int] = []
        self.scores: dict[str, float] = {}
        self.values: dict[str, float] = {}

    def submit_score(self, request: ScoreRequest) -> Future[ScoreResult]:
        pending: Future[ScoreResult] = Future()
        pending.set_result(self.score_batch(request))
        return pending

    def score_batch(self, request: ScoreRequest) -> ScoreResult:
        self.requests.append(request)
        n = len(request.prompts)
        asked = list(zip(request.prompts, request.candidates, strict=True)) if request.score else []
        known = {
            (prompt, texts): [self._score(prompt, text) for text in texts]
            for prompt, texts in set(asked)
        }
        log_probs = [score for pair in asked for score in known[pair]]
        modules = {
            name: torch.tensor([self._head(name, p) for p in request.prompts], dtype=torch.float32)
            for name in request.modules
        }
        counts = tuple(len(texts) for texts in request.candidates) if request.score else (0,) * n
        stats = {"tokens": float(sum(len(p.split()) for p in request.prompts))}
        return ScoreResult(torch.tensor(log_probs, dtype=torch.float32), counts, modules, stats)

    def generate_batch(self, request: GenerateRequest) -> GenerateResult:
        self.requests.append(request)
        rng = np.random.default_rng(int(request.options["seed"]))
        said = rng.choice(["turn left", "go forward now", ""], size=len(request.prompts)).tolist()
        lengths = tuple(len(text.split()) + 1 for text in said)
        total = sum(lengths)
        return GenerateResult(
            tuple((t,) for t in said),
            torch.zeros(total, dtype=torch.int64),
            torch.full((total,), -0.5),
            lengths,
            {},
        )

    def update_batch(self, request: UpdateRequest) -> UpdateResult:
        self.requests.append(request)
        chosen_key, weight_key = {
            "feedback": ("chosen", "signals"),
            "ppo": ("actions", "advantages"),
            "supervised": ("targets", ""),
        }[request.updater]
        chosen = request.data[chosen_key].tolist()
        weights = request.data[weight_key].tolist() if weight_key else [1.0] * len(chosen)
        lr = float(request.options["lr"])
        for i, (prompt, texts) in enumerate(zip(request.prompts, request.candidates, strict=True)):
            probs = np.exp([self._score(prompt, text) for text in texts])
            probs /= probs.sum()
            for j, text in enumerate(texts):
                self.scores[f"{prompt}|{text}"] = self._score(prompt, text) + lr * weights[i] * (
                    (j == chosen[i]) - probs[j]
                )
            if request.updater == "ppo":
                self.values[prompt] = self.values.get(prompt, 0.0) + 0.1 * (
                    float(request.data["returns"][i]) - self.values.get(prompt, 0.0)
                )
        return UpdateResult(
            {
                "loss": 0.5,
                "grad_norm": 1.0,
                "kl": 0.25,
                "entropy": 1.0,
                "log_prob": -1.0,
                "scored_tokens": 7.0,
            }
        )

    def reset(self, seed: int, weights: str = "pretrained", unused: tuple[str, ...] = ()) -> None:
        self.reset_seeds.append(seed)
        self.started_from = (weights, unused)
        self.scores.clear()
        self.values.clear()

    def save(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "table.json").write_text(json.dumps([self.scores, self.values]))

    def load(self, folder: str) -> None:
        self.scores, self.values = json.loads(Path(folder, "table.json").read_text())

    def forget(self, reference: bool = True) -> None:
        """This fake remembers nothing."""

    def info(self) -> Mapping[str, Scalar]:
        return {"model": "table", "module_functions": "value,actions"}

    def updates(self) -> list[UpdateRequest]:
        return [request for request in self.requests if isinstance(request, UpdateRequest)]

    def _head(self, name: str, prompt: str) -> list[float]:
        """The value of a prompt, or logits for its actions: the scores of their texts."""
        return (
            [self._score(prompt, text) for text in ACTION_NAMES]
            if name == "actions"
            else [self.values.get(prompt, 0.0)]
        )

    def _score(self, prompt: str, text: str) -> float:
        default = (
            zlib.crc32(f"{prompt}|{text}".encode()) % 100 / 100
            - 1.0
            + self._strength * (text == self._favourite)
        )
        return self.scores.get(f"{prompt}|{text}", default)


@dataclass
class MemoryRecorder:
    """A Recorder that keeps rows, samples and the last checkpoint in memory; only the LLM goes to
    disk.

    Args:
        folder: Where the LLM's checkpoints go; only needed in a run with an LLM.
    """

    folder: Path | None = None
    rows: list[dict[str, float]] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)
    traces: dict[int, Trace] = field(default_factory=dict)
    last: Checkpoint | None = None
    _rows_at_checkpoint: int = 0

    def write(self, row: Mapping[str, float]) -> None:
        self.rows.append(dict(row))

    def trace(self, trace: Trace) -> None:
        self.traces[trace.env_steps] = trace

    def checkpoint(self, checkpoint: Checkpoint, save_llm: SaveLlm | None) -> None:
        llm_folder = None
        if save_llm is not None:
            if self.folder is None:
                raise ValueError("a run with an LLM needs a folder for its checkpoints")
            target = self.folder / f"llm-{checkpoint.env_steps}"
            save_llm(str(target))
            llm_folder = str(target)
        tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
        self.last = Checkpoint(
            checkpoint.env_steps, tensors, copy.deepcopy(checkpoint.state), llm_folder
        )
        self._rows_at_checkpoint = len(self.rows)

    def resume(self) -> Checkpoint | None:
        del self.rows[self._rows_at_checkpoint :]
        done = 0 if self.last is None else self.last.env_steps
        self.traces = {steps: trace for steps, trace in self.traces.items() if steps < done}
        return self.last

    def progress(self, env_steps: int, total_steps: int, info: Mapping[str, float]) -> None:
        """Nobody is watching."""

    def system(self, sample: Mapping[str, float]) -> None:
        self.samples.append(dict(sample))


def small_config(**groups: object) -> Config:
    """Four corridors, eight steps a rollout; keys such as ``feedback={"signal": "td"}`` replace
    values.
    """
    config = Config(
        env=EnvArgs(level="Corridor", num_envs=4),
        arm=ArmArgs(),
        guidance=GuidanceArgs(),
        student=StudentArgs(num_steps=8, hidden_size=16),
        ppo=PpoArgs(num_steps=8, lr=0.1),
        feedback=FeedbackArgs(lr=0.1),
        run=RunArgs(total_steps=128, eval_every=64, eval_episodes=20, eval_seed=1000),
    )
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **values)
            for name, values in groups.items()
        },
    )
