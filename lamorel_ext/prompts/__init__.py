"""Observation history and prompt templates: pure text."""

from lamorel_ext.prompts.history import PromptHistory, PromptStep
from lamorel_ext.prompts.templates import ACTION_NAMES, feedback_sentence, glam_prompt, glam_prompt_french, lamorel_prompt, with_feedback

__all__ = [
    "ACTION_NAMES",
    "PromptHistory",
    "PromptStep",
    "feedback_sentence",
    "glam_prompt",
    "glam_prompt_french",
    "lamorel_prompt",
    "with_feedback",
]
