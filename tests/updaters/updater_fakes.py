"""A tiny host in place of a language model, and servers that are threads."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from lamorel_ext.rpc.groups import ThreadGroup, make_thread_groups
from lamorel_ext.types import ScoreResult, UpdateRequest

WIDTH = 6


def text_features(text: str, dtype: torch.dtype) -> Tensor:
    """``(WIDTH,)`` numbers that depend on the text alone."""
    return torch.randn(
        WIDTH,
        generator=torch.Generator().manual_seed(zlib.crc32(text.encode())),
        dtype=torch.float64,
    ).to(dtype)


class FakeHost(nn.Module):
    """Scores a candidate as a smooth function, below zero, of prompt and candidate.

    Attributes:
        scored: Number of distinct pairs of each scoring call with gradient.
        fail_at: The scoring call that raises; none when negative.
    """

    def __init__(
        self, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.read = nn.Linear(WIDTH, WIDTH, dtype=dtype)
        self.speak = nn.Linear(WIDTH, WIDTH, dtype=dtype)
        self.value = nn.Linear(WIDTH, 1, dtype=dtype)
        self.spare = nn.Linear(2, 2, dtype=dtype)
        self.actions = nn.Linear(WIDTH, 4, dtype=dtype)
        generator = torch.Generator().manual_seed(seed)  # threads share the global one
        for parameter in self.parameters():
            parameter.data = (
                torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 0.5
            ).to(dtype)
        self.scale, self.dtype, self.device = scale, dtype, torch.device("cpu")
        self.scored: list[int] = []
        self.fail_at = -1
        self.versions = 0
        self.rounded = False
        self._initial = copy.deepcopy([self.read, self.speak])

    def _scores(
        self,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        read: nn.Module,
        speak: nn.Module,
    ) -> Tensor:
        flat = [(p, c) for p, several in zip(prompts, candidates, strict=True) for c in several]
        states = torch.tanh(read(torch.stack([text_features(p, self.dtype) for p, _ in flat])))
        words = speak(torch.stack([text_features(c, self.dtype) for _, c in flat]))
        return nn.functional.logsigmoid(self.scale * (states * words).sum(-1)).to(
            torch.promote_types(self.dtype, torch.float32)
        )

    def score(
        self,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        modules: Sequence[str] = (),
        with_score: bool = True,
        require_grad: bool = False,
    ) -> ScoreResult:
        if require_grad:
            if len(self.scored) == self.fail_at:
                raise MemoryError("made to fail")
            self.scored.append(len(prompts))
        with torch.set_grad_enabled(require_grad):
            scores = (
                self._scores(prompts, candidates, self.read, self.speak)
                if with_score
                else torch.zeros(0)
            )
            states = torch.tanh(
                self.read(torch.stack([text_features(p, self.dtype) for p in prompts]))
            )
            outputs = {name: getattr(self, name)(states) for name in modules}
        counts = tuple(len(c) if with_score else 0 for c in candidates)
        return ScoreResult(scores, counts, outputs, {"tokens": float(len(scores))})

    @torch.no_grad()
    def score_reference(
        self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> ScoreResult:
        scores = self._scores(prompts, candidates, *self._initial)
        return ScoreResult(scores, tuple(map(len, candidates)), {}, {"tokens": float(len(scores))})

    def named_trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.named_parameters())

    def weights_changed(self) -> None:
        self.versions += 1

    def weights(self) -> Tensor:
        """All parameters in one vector."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters()]).clone()


def on_servers(size: int, work: Callable[[ThreadGroup], Any]) -> list[Any]:
    """Run ``work`` on each of ``size`` servers; what it raises comes back as its result."""

    def run(group: ThreadGroup) -> Any:
        try:
            return work(group)
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as servers:
        return list(servers.map(run, make_thread_groups(size, 20.0)))


def make_request(
    updater: str,
    n: int,
    data: dict[str, Tensor],
    prompts: int = 3,
    ragged: bool = True,
    **options: Any,
) -> UpdateRequest:
    """``n`` samples over a few distinct prompts, with 2 to 4 candidates each."""
    names = [f"prompt {(i * i) % prompts}" for i in range(n)]
    width = [2 + (len(name) + int(name[-1])) % 3 if ragged else 4 for name in names]
    candidates = tuple(tuple(f"candidate {k}" for k in range(w)) for w in width)
    return UpdateRequest(updater, tuple(names), candidates, torch.arange(n), n, data, options)


def ppo_data(n: int, seed: int = 0) -> dict[str, Tensor]:
    """Random transitions whose old policy is not far off."""
    g = torch.Generator().manual_seed(seed)
    return {
        "actions": torch.randint(0, 2, (n,), generator=g),
        "old_log_probs": -0.8 + 0.4 * torch.randn(n, generator=g),
        "advantages": torch.randn(n, generator=g),
        "returns": torch.randn(n, generator=g),
        "values": 0.3 * torch.randn(n, generator=g),
    }


def feedback_data(n: int, seed: int = 0) -> dict[str, Tensor]:
    """Random signs, zero among them."""
    g = torch.Generator().manual_seed(seed)
    return {
        "chosen": torch.randint(0, 2, (n,), generator=g),
        "signals": torch.randint(-1, 2, (n,), generator=g).float(),
        "old_log_probs": -0.8 + 0.4 * torch.randn(n, generator=g),
    }


def pair_data(n: int, seed: int = 0) -> dict[str, Tensor]:
    """Feedback, never zero, with the student's log-probabilities after each of four candidates."""
    g = torch.Generator().manual_seed(seed)
    signals, likelihoods = (
        2.0 * torch.randint(0, 2, (n,), generator=g) - 1.0,
        torch.rand((n, 4), generator=g).log(),
    )
    return feedback_data(n, seed) | {"signals": signals, "likelihoods": likelihoods.clamp(min=-5.0)}


def shard(request: UpdateRequest, rank: int, size: int) -> UpdateRequest:
    """Every ``size``-th sample."""
    rows = list(range(rank, len(request.prompts), size))
    return UpdateRequest(
        request.updater,
        tuple(request.prompts[i] for i in rows),
        tuple(request.candidates[i] for i in rows),
        request.indices[rows],
        request.total,
        {key: values[rows] for key, values in request.data.items()},
        request.options,
    )
