"""The student: a policy pi(a | x, s) that listens to guidance, and a critic V(s) that does not."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lamorel_ext.agents.features import ACTION_SIZE, FEATURE_SIZE
from lamorel_ext.agents.guidance import NUM_ACTIONS

IMPOSSIBLE = -1e9
"""Log-weight of an action that a state does not offer: finite, as 0 times infinity is no number."""


class StudentNetwork(nn.Module):
    """Two small networks without shared weights; only the policy sees the guidance.

    A hint (the action that the guidance asks for) adds a learnable row of biases to the logits. The
    row starts as ``kappa`` at the hinted action and 0 elsewhere; the row of "no hint" starts at 0.
    With ``shared_kappa`` all rows start at 0, and ``trust``, one number, is added at the hinted
    action of every hint.

    Args:
        guidance_codes: Size of a guidance's code: the number of guidances where the vocabulary is
            fixed (one-hot codes).
        hidden_size: Width of the hidden layers.
        guidance_size: Size of the embedding of a guidance.
        kappa: Initial bias towards the hinted action, in nats.
        generator: Draws the initial weights.
        shared_kappa: Whether kappa is one number of its own.
        num_actions: Actions; 0 where each state lists its own, as vectors of their texts
            (``encode_actions``). An action's logit is then a function of state, guidance and its
            text, and the hint's bias is one number for all.
        feature_size: Size of the vectors of states.

    Attributes:
        trust: That number, ``()``, in nats; None without ``shared_kappa``. Not among
            ``own_parameters``.
    """

    def __init__(
        self,
        guidance_codes: int,
        hidden_size: int,
        guidance_size: int,
        kappa: float,
        generator: torch.Generator,
        shared_kappa: bool = False,
        num_actions: int = NUM_ACTIONS,
        feature_size: int = FEATURE_SIZE,
    ) -> None:
        super().__init__()
        self.num_actions = num_actions

        def weight(rows: int, columns: int, gain: float) -> nn.Parameter:
            return nn.Parameter(
                nn.init.orthogonal_(torch.empty(rows, columns), gain, generator=generator)
            )

        def bias(size: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(size))

        hot = math.sqrt(2.0)
        self.actor_in = weight(hidden_size, feature_size, hot)
        self.actor_in_bias = bias(hidden_size)
        self.guidance = weight(guidance_size, guidance_codes, 1.0)
        self.actor_mid = weight(hidden_size, hidden_size + guidance_size, hot)
        self.actor_mid_bias = bias(hidden_size)
        # Small last layers: the first policy is the hint's bias alone, the first critic is near
        # zero.
        if num_actions:
            self.actor_out = weight(num_actions, hidden_size, 0.01)
            self.actor_out_bias = bias(num_actions)
            self._hinted = torch.cat([torch.eye(num_actions), torch.zeros(1, num_actions)])
        else:
            self.signs_in = weight(hidden_size, ACTION_SIZE, hot)
            self.actor_join = weight(hidden_size, hidden_size, hot)
            self.actor_out = weight(1, hidden_size, 0.01)
            self._hinted = torch.ones(1)
        self.trust = nn.Parameter(torch.tensor(kappa)) if shared_kappa else None
        self.hint_bias = nn.Parameter((0.0 if shared_kappa else kappa) * self._hinted)
        self.critic_in = weight(hidden_size, feature_size, hot)
        self.critic_in_bias = bias(hidden_size)
        self.critic_mid = weight(hidden_size, hidden_size, hot)
        self.critic_mid_bias = bias(hidden_size)
        self.critic_out, self.critic_out_bias = weight(1, hidden_size, 0.01), bias(1)

    @property
    def own_parameters(self) -> list[nn.Parameter]:
        """Everything but ``trust``."""
        return [parameter for name, parameter in self.named_parameters() if name != "trust"]

    @property
    def kappa(self) -> float:
        """How much a hint lifts its action above the mean of the others, in nats, the mean over all
        hints.
        """
        biases = self.hint_bias.detach()[: self.num_actions or 1]
        if self.num_actions:
            own, others = biases.diagonal(), max(1, self.num_actions - 1)
            lift = float((own - (biases.sum(1) - own) / others).mean())
        else:
            lift = float(biases)
        return lift + (0.0 if self.trust is None else float(self.trust.detach()))

    def see(self, features: Tensor) -> Tensor:
        """What the policy makes of states ``(n, feature_size)`` before it hears guidance: ``(n,
        hidden_size)``.
        """
        return torch.relu(F.linear(features, self.actor_in, self.actor_in_bias))

    def choose(
        self, seen: Tensor, codes: Tensor, hints: Tensor, offered: Tensor | None = None
    ) -> Tensor:
        """Log-probabilities of the actions.

        Args:
            seen: ``(n, hidden_size)``, from ``see``.
            codes: ``(n, guidance_codes)``, codes of the guidance; zeros where there is none.
            hints: ``(n,)`` int64, hinted actions or ``NO_HINT``.
            offered: ``(n, actions, ACTION_SIZE)``, the actions that each state lists, where it
                does.

        Returns:
            ``(n, actions)`` in nats, normalised; about ``IMPOSSIBLE`` behind the end of a list.
        """
        heard = F.linear(codes, self.guidance)
        both = torch.relu(
            F.linear(torch.cat([seen, heard], dim=1), self.actor_mid, self.actor_mid_bias)
        )
        biases = (
            self.hint_bias if self.trust is None else self.hint_bias + self.trust * self._hinted
        )
        if not self.num_actions:
            if offered is None:
                raise ValueError("this network chooses from actions that each state lists")
            return self._choose_offered(both, hints, offered, biases)
        rows = hints.remainder(self.num_actions + 1)  # the last one is that of NO_HINT
        logits = F.linear(both, self.actor_out, self.actor_out_bias) + F.embedding(rows, biases)
        return torch.log_softmax(logits, dim=1)

    def _choose_offered(self, both: Tensor, hints: Tensor, offered: Tensor, bias: Tensor) -> Tensor:
        """As in a DRRN state and action meet in a layer of rectified units."""
        state = F.linear(both, self.actor_join)[:, None]
        joined = torch.relu(state + F.linear(offered, self.signs_in))
        logits = F.linear(joined, self.actor_out).squeeze(2)
        hinted = torch.arange(offered.shape[1]) == hints[:, None]
        logits = (logits + bias * hinted).masked_fill(offered[:, :, 0] == 0, IMPOSSIBLE)
        return torch.log_softmax(logits, dim=1)

    def policy(
        self, features: Tensor, codes: Tensor, hints: Tensor, offered: Tensor | None = None
    ) -> Tensor:
        """Log-probabilities of the actions in states ``(n, feature_size)``; see ``choose``."""
        return self.choose(self.see(features), codes, hints, offered)

    def value(self, features: Tensor) -> Tensor:
        """V(s) of states ``(n, feature_size)``; gives ``(n,)``."""
        hidden = torch.relu(F.linear(features, self.critic_in, self.critic_in_bias))
        hidden = torch.relu(F.linear(hidden, self.critic_mid, self.critic_mid_bias))
        return F.linear(hidden, self.critic_out, self.critic_out_bias).squeeze(1)


class TwoLayers(nn.Module):
    """A small network with one hidden layer; its outputs start near zero.

    Args:
        outputs: Numbers that it gives.
        inputs: Size of the vectors that it reads.
        hidden_size: Of the hidden layer.
        generator: Draws the initial weights.
    """

    def __init__(
        self, outputs: int, inputs: int, hidden_size: int, generator: torch.Generator
    ) -> None:
        super().__init__()

        def weight(rows: int, columns: int, gain: float) -> nn.Parameter:
            drawn = nn.init.orthogonal_(torch.empty(rows, columns), gain, generator=generator)
            return nn.Parameter(drawn)

        self.first = weight(hidden_size, inputs, math.sqrt(2.0))
        self.first_bias = nn.Parameter(torch.zeros(hidden_size))
        self.last = weight(outputs, hidden_size, 0.01)
        self.last_bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """``(n, outputs)`` from ``(n, inputs)``."""
        hidden = torch.relu(F.linear(features, self.first, self.first_bias))
        return F.linear(hidden, self.last, self.last_bias)
