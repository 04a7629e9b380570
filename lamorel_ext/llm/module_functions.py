"""Module functions: small networks of the user's on top of the language model, with Lamorel's names
and life cycle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn


class BaseModuleFunction(nn.Module):
    """A function of the language model's forward pass, trained with it. Subclass it and write
    ``initialize`` and ``forward``.

    The host sets ``device`` and ``llm_config`` (the model's transformers configuration) before it
    calls ``initialize``, under a random state that depends on the seed alone.

    Attributes:
        needs: ``"full"`` gets whole padded forward passes, one row per pair of prompt and candidate
            (a prompt without candidates counts as one with an empty candidate), and its results are
            one row per pair. ``"state"`` gets the last hidden state at which the first token after
            each prompt is predicted, which costs nothing beside scoring, and its results are one
            row per prompt.
    """

    needs: ClassVar[Literal["full", "state"]] = "full"
    device: torch.device = torch.device("cpu")
    llm_config: Any = None

    def initialize(self) -> None:
        """Build the layers."""
        raise NotImplementedError(f"{type(self).__name__} must write initialize()")

    def forward(
        self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
    ) -> Tensor:
        """Evaluate the function.

        Args:
            forward_outputs: ``["logits"]`` (``"full"`` only) and hidden states:
                ``["decoder_hidden_states"][-1]`` ``(n, length, d)`` of an encoder-decoder,
                ``["hidden_states"][-1]`` of a decoder-only model; with ``"state"`` the length is 1.
            minibatch: With ``"full"``, what the model was given: ``decoder_input_ids`` and
                ``input_ids`` ``(n, length)``; else empty.
            tokenized_contexts: List of ``{"input_ids", "attention_mask"}``, of each row's prompt.
            **kwargs: Nothing here; in Lamorel's interface what the call was given besides.

        Returns:
            ``(n, ...)``.
        """
        raise NotImplementedError(f"{type(self).__name__} must write forward()")


class LogScores(BaseModuleFunction):
    """The sum of a candidate's token log-probabilities in nats, padding left out by its mask."""

    def initialize(self) -> None:
        """Nothing to build."""

    def forward(
        self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
    ) -> Tensor:
        """``(n,)``."""
        if "decoder_input_ids" in minibatch:
            tokens, real = minibatch["decoder_input_ids"], minibatch["decoder_attention_mask"]
        else:
            tokens = minibatch["input_ids"]
            real = minibatch["attention_mask"][:, -tokens.shape[1] :].clone()
            for row, place in enumerate(_last_places(minibatch, tokenized_contexts)):
                real[row, : place + 1] = 0  # no candidate's
        logits, tokens = forward_outputs["logits"][:, :-1], tokens[:, 1:]
        chosen = torch.gather(logits.float().log_softmax(-1), 2, tokens[:, :, None]).squeeze(-1)
        return torch.where(real[:, 1:].bool(), chosen, 0.0).sum(-1).cpu()


class StateHead(BaseModuleFunction):
    """A head in the form of GLAM's (Carta et al. 2023, arXiv 2302.02662): two hidden layers with
    sigmoids on the state that predicts the first token.

    That state is the first of the decoder, or the last of the prompt in a decoder-only model.
    Computed in float32 at least.

    Args:
        hidden_size: Width of the two hidden layers.
        outputs: Numbers that it gives.
    """

    needs = "state"

    def __init__(self, hidden_size: int, outputs: int) -> None:
        super().__init__()
        self.hidden_size, self.outputs = hidden_size, outputs
        self.layers = nn.Sequential()

    def initialize(self) -> None:
        """Build the layers for the model's hidden size; float64 for a float64 model."""
        # Under Lamorel 0.3's interface llm_config is the user's.
        config = getattr(self, "model_config", None) or self.llm_config
        doubled = getattr(config, "dtype", None) == torch.float64
        dtype = torch.float64 if doubled else torch.float32
        wide = self.hidden_size
        self.layers = nn.Sequential(
            nn.Linear(state_size(config), wide),
            nn.Sigmoid(),
            nn.Linear(wide, wide),
            nn.Sigmoid(),
            nn.Linear(wide, self.outputs),
        ).to(self.device, dtype)

    def forward(
        self, forward_outputs: Any, minibatch: Any, tokenized_contexts: Any, **kwargs: Any
    ) -> Tensor:
        """``(n, outputs)``."""
        key = (
            "decoder_hidden_states"
            if "decoder_hidden_states" in forward_outputs
            else "hidden_states"
        )
        state: Tensor = forward_outputs[key][-1][:, 0]
        values: Tensor = self.layers(state.to(next(self.layers.parameters()).dtype))
        return values


class ValueHead(StateHead):
    """The critic: one value per prompt. See ``StateHead``."""

    def __init__(self, hidden_size: int = 1024) -> None:
        super().__init__(hidden_size, 1)


class ActionHeads(StateHead):
    """A policy without texts: a logit for each action, in the order of the action texts. See
    ``StateHead``.
    """

    def __init__(self, hidden_size: int = 1024, num_actions: int = 6) -> None:
        super().__init__(hidden_size, num_actions)


def first_states(
    forward_outputs: Any, minibatch: Any, tokenized_contexts: Sequence[Any]
) -> dict[str, tuple[Tensor]]:
    """What a function that ``needs`` a state gets, of whole passes laid out as Lamorel does.

    Args:
        forward_outputs: Of ``n`` rows.
        minibatch: What the model was given.
        tokenized_contexts: ``n`` contexts; of a decoder-only model without their last token, which
            begins what comes behind them.

    Returns:
        The last hidden states ``(n, 1, d)`` that predict the first token after each context.
    """
    if "decoder_input_ids" in minibatch:
        return {"decoder_hidden_states": (forward_outputs["decoder_hidden_states"][-1][:, :1],)}
    states = forward_outputs["hidden_states"][-1]
    places = torch.tensor(_last_places(minibatch, tokenized_contexts), device=states.device)
    rows = torch.arange(len(places), device=states.device)
    return {"hidden_states": (states[rows, places][:, None],)}


def _last_places(minibatch: Any, tokenized_contexts: Sequence[Any]) -> list[int]:
    """Where in a decoder-only pass the last token of each context stands."""
    # The rest of a context is not in the pass where the model had read it before.
    before = minibatch["attention_mask"].shape[1] - minibatch["input_ids"].shape[1]
    return [len(context["input_ids"]) - before for context in tokenized_contexts]


def state_size(config: Any) -> int:
    """Width of a model's last hidden states."""
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)
