"""What may be done to a model between loading it and serving it, with Lamorel's names."""

from __future__ import annotations

from transformers import PreTrainedModel


class BaseModelInitializer:
    """Subclass it to load weights, freeze layers or put adapters in."""

    def initialize_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Change the model, or return another one in its place."""
        raise NotImplementedError(f"{type(self).__name__} must write initialize_model()")
