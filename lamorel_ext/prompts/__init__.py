"""Observation history and prompt templates: pure text."""

from lamorel_ext.prompts.history import PromptHistory, PromptStep
from lamorel_ext.prompts.templates import (
    ACTION_NAMES,
    feedback_sentence,
    glam_prompt,
    glam_prompt_french,
    lamorel_prompt,
    present_of,
    state_of,
    with_feedback,
    with_line,
)
from lamorel_ext.prompts.wordings import PLAIN, WORDINGS, Wording

__all__ = [
    "ACTION_NAMES",
    "PLAIN",
    "WORDINGS",
    "PromptHistory",
    "PromptStep",
    "Wording",
    "feedback_sentence",
    "glam_prompt",
    "glam_prompt_french",
    "lamorel_prompt",
    "present_of",
    "state_of",
    "with_feedback",
    "with_line",
]
