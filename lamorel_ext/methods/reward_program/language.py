"""Reward programs: expressions over named features of one step, in a small grammar. A program is
evaluated once for every combination of its features' values, when it is proposed: what is wrong
with it shows before it pays anything, and no step of a rollout evaluates anything.
"""

from __future__ import annotations

import ast
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from simpleeval import InvalidExpression, SimpleEval

from lamorel_ext.errors import ConfigError

FAR = 10
"""Distance of a goal that is not in view; the farthest cell of a view is 9 steps away."""
MAX_LENGTH, MAX_CASES = 200, 2048
"""Of a program: characters, and combinations of its features' values."""

STATES = {
    "seen": "1 where the goal's object is in view",
    "distance": f"steps to it, 0 (carried) to 9; {FAR} where it is not in view",
    "ahead": "1 where it is straight ahead",
    "near": "1 where it is one step ahead",
    "carrying": "1 where something is carried",
    "wall": "1 where a wall is one step ahead",
}
"""Features of the state reached; with ``_before``, of the state acted in."""
ACTS = {"turned": (0, 1), "moved": (2,), "used": (3, 4, 5)}
"""Features of the action: 1 where it is one of these."""
NAMES = (*STATES, *(f"{name}_before" for name in STATES), *ACTS)

TASK = (
    "Write a reward for each step as one expression of numbers, + - * /, abs, min, max, exp and"
    " these features:\n"
    + "".join(f"{name}: {meaning}\n" for name, meaning in STATES.items())
    + f"{', '.join(ACTS)}: 1 where the action was of this kind\n"
    "With _before behind a name: the same before the step\n"
)
"""What an LLM that writes is asked."""

EVENTS = {
    "coming closer to the goal": "(distance_before - distance)",
    "seeing the goal": "(seen - seen_before)",
    "facing the goal": "(ahead - ahead_before)",
    "reaching the goal": "(near - near_before)",
    "picking something up": "(carrying - carrying_before)",
    "going forward": "moved",
    "turning": "turned",
    "using things": "used",
    "standing before a wall": "wall",
}
WEIGHTS = {"very good": "1", "good": "0.3", "bad": "-0.3", "very bad": "-1"}
STOP = "nothing else"
"""The grammar of an LLM that scores, ``rule := event "is" weight ["and" (rule | STOP)]``: words and
what they stand for.
"""
WALL = OBJECT_TO_IDX["wall"]

_FUNCTIONS = {"abs": abs, "min": min, "max": max, "exp": math.exp}
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    # Whole numbers would grow for hours.
    ast.Pow: lambda base, exponent: float(base) ** float(exponent),
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FORMS = (ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.And, ast.Or, ast.Compare, ast.IfExp, ast.Call)
_NODES = (*_OPERATORS, *_FORMS, ast.Name, ast.Load, ast.Constant)


@dataclass(frozen=True)
class Program:
    """A reward program.

    Attributes:
        text: The expression.
        words: As the LLM reads it.
        names: Features that it depends on.
        table: Its value by theirs, an axis for each.
    """

    text: str
    words: str
    names: tuple[str, ...]
    table: np.ndarray

    def pays(self, features: dict[str, np.ndarray]) -> np.ndarray:
        """``(n,)`` float64, from the features of ``n`` steps, each ``(n,)`` int64."""
        n = len(features["seen"])
        places = tuple(features[name] for name in self.names)
        paid: np.ndarray = np.broadcast_to(self.table[places], (n,))
        return paid


def read_program(text: str, words: str = "") -> Program:
    """Check a program, and evaluate it wherever it can come to be evaluated.

    Raises:
        ConfigError: Saying what is wrong with it.
    """
    try:
        if len(text) > MAX_LENGTH:
            raise ValueError(f"{len(text)} characters are more than {MAX_LENGTH}")
        tree = ast.parse(text.strip(), mode="eval").body
        names = _features_in(tree)
        table = _evaluated(text, tree, names)
    except (ValueError, TypeError, SyntaxError, ArithmeticError, InvalidExpression) as error:
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ConfigError(f"reward program {text[:80]!r}: {why}") from error
    except (RecursionError, MemoryError) as error:
        raise ConfigError(f"reward program {text[:80]!r}: too deeply nested") from error
    return Program(text.strip(), words or text.strip(), names, table)


def _features_in(tree: ast.expr) -> tuple[str, ...]:
    """The features that an expression names, if it is of the grammar."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, _NODES) or (isinstance(node, ast.Call) and node.keywords):
            raise ValueError(f"{type(node).__name__} is not in the grammar")
        if isinstance(node, ast.Constant) and type(node.value) not in (int, float):
            raise ValueError(f"{str(node.value)[:20]!r} is no number")
        if isinstance(node, ast.Name) and id(node) not in called:
            if node.id not in NAMES:
                raise ValueError(f"unknown feature {node.id!r}; there are {', '.join(NAMES)}")
            found.append(node.id)
    return tuple(dict.fromkeys(found))


def _evaluated(text: str, tree: ast.expr, names: tuple[str, ...]) -> np.ndarray:
    """The value for every combination of the features' values."""
    sizes = [FAR + 1 if name.startswith("distance") else 2 for name in names]
    if math.prod(sizes) > MAX_CASES:
        raise ValueError(f"its {len(names)} features have more than {MAX_CASES} combinations")
    evaluator = SimpleEval(_OPERATORS, _FUNCTIONS)
    table = np.zeros(sizes)
    for values in itertools.product(*map(range, sizes)):
        evaluator.names = given = dict(zip(names, values, strict=True))
        where = ", ".join(f"{name} = {value}" for name, value in given.items())
        where = f" where {where}" if where else ""
        try:
            value = evaluator.eval(text, previously_parsed=tree)
        except ArithmeticError as error:
            raise ValueError(f"{error.args[-1]}{where}") from error
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"gives {value!r}, no finite number,{where}".strip(","))
        table[values] = value
    return table


def derived(choose: Callable[[str, tuple[str, ...]], str], max_terms: int) -> Program:
    """A program of the grammar.

    Args:
        choose: From the beginning of a rule and the texts that may come next the one that does.
    """
    rule, terms = "", [""] * 0
    for _ in range(max_terms):
        left = tuple(text for text in EVENTS if text not in rule)
        event = choose(rule, (*left, STOP) if terms else left)
        if event == STOP:
            break
        rule = f"{rule} and {event} is".removeprefix(" and ")
        weight = choose(rule, tuple(WEIGHTS))
        rule += f" {weight}"
        terms.append(f"{WEIGHTS[weight]}*{EVENTS[event]}")
    return read_program(" + ".join(terms), rule)


def features_of(
    before: np.ndarray, reached: np.ndarray, actions: np.ndarray, missions: Sequence[str]
) -> dict[str, np.ndarray]:
    """The features by name, each ``(n,)`` int64.

    Args:
        before: ``(n, 7, 7, at least 2)``, views of the states acted in.
        reached: Of the states reached.
        actions: ``(n,)``, ids.
        missions: Of the episodes; the first object that a mission names is its goal.
    """
    goals = np.array([_goal(mission) for mission in missions])
    earlier = {f"{name}_before": values for name, values in _states(before, goals).items()}
    acts = {name: np.isin(actions, ids).astype(np.int64) for name, ids in ACTS.items()}
    return _states(reached, goals) | earlier | acts


def _goal(mission: str) -> tuple[int, int]:
    """Codes of the kind and the colour that a mission names first, -1 for any."""
    colour = -1
    for word in mission.replace(",", " ").split():
        colour = COLOR_TO_IDX.get(word, colour)
        if word in OBJECT_TO_IDX:
            return OBJECT_TO_IDX[word], colour
    return -1, colour


def _states(views: np.ndarray, goals: np.ndarray) -> dict[str, np.ndarray]:
    size = views.shape[1]
    middle, own = size // 2, size - 1
    kinds, colours = views[..., 0].astype(np.int64), views[..., 1].astype(np.int64)
    kind, colour = goals[:, 0, None, None], goals[:, 1, None, None]
    matches = np.where(kind < 0, kinds > WALL, kinds == kind)
    matches &= (colour < 0) | (colours == colour)
    column, row = np.indices((size, size))
    steps = np.where(matches, np.abs(column - middle) + own - row, FAR).reshape(len(views), -1)
    distance = steps.min(axis=1)
    ahead = (distance < FAR) & (steps[:, column.ravel() == middle].min(axis=1) == distance)
    found = {
        "seen": distance < FAR,
        "distance": distance,
        "ahead": ahead,
        "near": ahead & (distance == 1),
        "carrying": kinds[:, middle, own] > OBJECT_TO_IDX["empty"],
        "wall": kinds[:, middle, own - 1] == WALL,
    }
    return {name: values.astype(np.int64) for name, values in found.items()}
