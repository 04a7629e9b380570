"""The student: a policy pi(a | x, s) that listens to guidance, and a critic V(s) that does not."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lamorel_ext.agents.features import FEATURE_SIZE
from lamorel_ext.agents.guidance import NUM_ACTIONS


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
    ) -> None:
        super().__init__()

        def weight(rows: int, columns: int, gain: float) -> nn.Parameter:
            return nn.Parameter(
                nn.init.orthogonal_(torch.empty(rows, columns), gain, generator=generator)
            )

        def bias(size: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(size))

        hot = math.sqrt(2.0)
        self.actor_in, self.actor_in_bias = (
            weight(hidden_size, FEATURE_SIZE, hot),
            bias(hidden_size),
        )
        self.guidance = weight(guidance_size, guidance_codes, 1.0)
        self.actor_mid, self.actor_mid_bias = (
            weight(hidden_size, hidden_size + guidance_size, hot),
            bias(hidden_size),
        )
        # Small last layers: the first policy is the hint's bias alone, the first critic is near
        # zero.
        self.actor_out, self.actor_out_bias = (
            weight(NUM_ACTIONS, hidden_size, 0.01),
            bias(NUM_ACTIONS),
        )
        self._hinted = torch.cat([torch.eye(NUM_ACTIONS), torch.zeros(1, NUM_ACTIONS)])
        self.trust = nn.Parameter(torch.tensor(kappa)) if shared_kappa else None
        self.hint_bias = nn.Parameter((0.0 if shared_kappa else kappa) * self._hinted)
        self.critic_in, self.critic_in_bias = (
            weight(hidden_size, FEATURE_SIZE, hot),
            bias(hidden_size),
        )
        self.critic_mid, self.critic_mid_bias = (
            weight(hidden_size, hidden_size, hot),
            bias(hidden_size),
        )
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
        biases = self.hint_bias.detach()[:NUM_ACTIONS]
        own = biases.diagonal()
        lift = float((own - (biases.sum(1) - own) / (NUM_ACTIONS - 1)).mean())
        return lift + (0.0 if self.trust is None else float(self.trust.detach()))

    def see(self, features: Tensor) -> Tensor:
        """What the policy makes of states ``(n, FEATURE_SIZE)`` before it hears guidance: ``(n,
        hidden_size)``.
        """
        return torch.relu(F.linear(features, self.actor_in, self.actor_in_bias))

    def choose(self, seen: Tensor, codes: Tensor, hints: Tensor) -> Tensor:
        """Log-probabilities of the actions.

        Args:
            seen: ``(n, hidden_size)``, from ``see``.
            codes: ``(n, guidance_codes)``, codes of the guidance; zeros where there is none.
            hints: ``(n,)`` int64, hinted actions or ``NO_HINT``.

        Returns:
            ``(n, NUM_ACTIONS)`` in nats, normalised.
        """
        heard = F.linear(codes, self.guidance)
        both = torch.relu(
            F.linear(torch.cat([seen, heard], dim=1), self.actor_mid, self.actor_mid_bias)
        )
        biases = (
            self.hint_bias if self.trust is None else self.hint_bias + self.trust * self._hinted
        )
        logits = F.linear(both, self.actor_out, self.actor_out_bias) + F.embedding(hints, biases)
        return torch.log_softmax(logits, dim=1)

    def policy(self, features: Tensor, codes: Tensor, hints: Tensor) -> Tensor:
        """Log-probabilities of the actions in states ``(n, FEATURE_SIZE)``; see ``choose``."""
        return self.choose(self.see(features), codes, hints)

    def value(self, features: Tensor) -> Tensor:
        """V(s) of states ``(n, FEATURE_SIZE)``; gives ``(n,)``."""
        hidden = torch.relu(F.linear(features, self.critic_in, self.critic_in_bias))
        hidden = torch.relu(F.linear(hidden, self.critic_mid, self.critic_mid_bias))
        return F.linear(hidden, self.critic_out, self.critic_out_bias).squeeze(1)
