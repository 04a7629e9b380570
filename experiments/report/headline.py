"""The first lines of a report: which arm is better, by how much, how sure that is, and what became
of the paper's rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.report.roles import (
    beyond_feedback,
    is_control,
    is_feedback,
    is_literal_rule,
    nearly_without_edge,
    uses_expert,
)
from experiments.report.statistics import Interval
from experiments.report.summary import (
    NO_EDGE,
    SEEDS_FOR_A_CLAIM,
    Difference,
    EdgeCheck,
    Summary,
    bracket,
    signed,
)

NAMES_AT_MOST = 4
"""A longer list of arms is counted; the tables have the names."""


def headline(summary: Summary, tasks: Sequence[Summary] = ()) -> list[str]:
    """The answer, in sentences, the most important first.

    Args:
        summary: Of all tasks together, or of the only one.
        tasks: The tasks one by one, where there are several.
    """
    if not summary.against_baseline:
        where = " on every task" if len(summary.tasks) > 1 else ""
        return [
            f"Only one arm, {summary.baseline}, has complete runs{where}: there is nothing to"
            " compare it with.",
            *map(_task_sentence, tasks),
        ]
    best = _best_arm(summary)
    rivals = [
        difference for difference in summary.against_frozen if _is_taught(summary, difference.ours)
    ]
    sentences = [
        _over(summary)
        + (
            _baseline_first(summary, best)
            if best.is_behind
            else verdict(best) + _says_sign(summary, best)
        )
    ]
    if rivals and (
        summary.frozen != summary.baseline or best.ours not in [rival.ours for rival in rivals]
    ):
        rival = _best(rivals)
        said = rival.ours == best.ours and best.is_ahead
        sentences.append(
            _over(summary) + verdict(rival) + ("" if said else _says_sign(summary, rival))
        )
    sentences += literal_rule(summary)
    sentences += [_task_sentence(task) for task in tasks]
    return [
        _answer(summary),
        *sentences,
        *_lists(summary),
        *unlike(summary.differences, NAMES_AT_MOST),
        _caution(summary),
    ]


def _answer(summary: Summary) -> str:
    """Did the feedback help, in plain words: a feedback arm against the arm without the edge and
    every control; of several the one that shows most, and of those the best.
    """
    judged = [edge for edge in summary.edges if NO_EDGE in edge.differences]
    question = f"Did the feedback help? {_over(summary)}"
    several = len(summary.tasks) > 1
    if not judged:
        return (
            question
            + ("n" if several else "N")
            + "ot answered here: no feedback arm stands beside the same arm without feedback"
            + f"{_nearly(summary)}."
        )
    best = max(judged, key=lambda edge: (_shown(edge), _estimate(edge.differences[NO_EDGE])))
    alone = best.differences[NO_EDGE]
    if alone.is_behind:
        word = "Tentatively, no" if alone.is_tendency else "No"
        text = f"{word}, it did harm: {best.label} against {alone.theirs}"
    elif not alone.is_ahead:
        text = f"That is not shown: the best feedback arm, {best.label}, against {alone.theirs}"
    elif best.unbeaten:
        text = (
            f"It is not shown that the signs are what helps: {best.label} is ahead of"
            f" {alone.theirs} but not of {_and([control.theirs for control in best.unbeaten])}"
        )
    elif best.not_run or not best.controls:
        text = f"Not shown yet, for want of controls: {best.label} against {alone.theirs}"
    elif any(difference.is_tendency for difference in _decisive(best)):
        text = f"Tentatively, yes: {best.label} against {alone.theirs}"
    else:
        text = f"Yes: {best.label} against {alone.theirs} and ahead of every control"
    seeds = f"{alone.seeds} seed{'' if alone.seeds == 1 else 's'}"
    behind = (
        f"{amount(alone.interval)}, corrected p {p_value(alone.p_corrected)}, {seeds},"
        f" {alone.compared} feedback arm{'' if alone.compared == 1 else 's'} compared"
    )
    return f"{question}{text[0].lower() + text[1:] if several else text}: area {behind}."


def _shown(edge: EdgeCheck) -> int:
    """How much an arm shows: 3 and, on few seeds, 2 that its signs help, 1 that it is ahead of the
    arm without the edge, 0 nothing.
    """
    if not edge.differences[NO_EDGE].is_ahead:
        return 0
    if edge.unbeaten or edge.not_run or not edge.controls:
        return 1
    return 2 if any(difference.is_tendency for difference in _decisive(edge)) else 3


def _nearly(summary: Summary) -> str:
    """Which arm comes nearest to a feedback arm without its feedback, and what else differs."""
    arms = [row.arm for row in summary.arms]
    for arm in arms:
        nearest = nearly_without_edge(arm, arms) if is_feedback(arm.config) else None
        if nearest is not None and (keys := beyond_feedback(arm, nearest)):
            others = ", ".join(keys[:NAMES_AT_MOST]) + (", ..." if keys[NAMES_AT_MOST:] else "")
            return f" ({nearest.label} differs from {arm.label} in {others} too)"
    return ""


def _estimate(difference: Difference) -> float:
    return -math.inf if math.isnan(difference.interval.estimate) else difference.interval.estimate


def warnings(summaries: Sequence[Summary]) -> list[str]:
    """What a reader must know before believing anything: baselines that the comparison did not
    name, and feedback arms without their controls.

    Args:
        summaries: Of each task.
    """
    return [*_other_baselines(summaries), *_without_controls(summaries)]


def _other_baselines(summaries: Sequence[Summary]) -> list[str]:
    """Where the first arm asked for has no complete run, so that another one stands in for it."""
    found = []
    for summary in summaries:
        arms = max((run.config.compare.arms for row in summary.arms for run in row.runs), key=len)
        if summary.against_baseline and summary.arms[0].runs[0].folder.parent.name in arms[1:]:
            found.append(
                f"{arms[0]}, the comparison's baseline, has no complete run on {summary.label};"
                f" differences are to {summary.baseline}."
            )
    return found


def _without_controls(summaries: Sequence[Summary]) -> list[str]:
    lacking = [(task, edge) for task in summaries for edge in task.edges if edge.not_run]
    if not lacking:
        return []
    arms = list(dict.fromkeys(edge.label for _, edge in lacking))
    kinds = list(dict.fromkeys(kind for _, edge in lacking for kind in edge.not_run))
    where = sorted({task.label for task, _ in lacking})
    place = f" on {', '.join(where)}" if len(summaries) > 1 and len(where) < len(summaries) else ""
    return [
        f"Controls are missing{place}: {_names(arms)} {'has' if len(arms) == 1 else 'have'} no"
        f" complete run with the {_and(kinds)} sign to be compared with, so a difference may come"
        f" from updating the LLM at all and not from what the feedback says. {advice(kinds)}"
    ]


def advice(kinds: Sequence[str]) -> str:
    """What to do about missing controls, in a sentence."""
    return f"Set compare.controls=[{','.join(kinds)}]."


def verdict(difference: Difference) -> str:
    """Which of two arms is ahead, by how much, and how sure that is."""
    interval = difference.interval
    if not difference.pairs or math.isnan(interval.estimate):
        return f"{difference.ours} and {difference.theirs} share no seed."
    if math.isnan(difference.p):
        word = "compared on one seed, which gives no interval, with"
    elif not (difference.is_ahead or difference.is_behind):
        word = "not distinguishable from"
    elif difference.is_tendency:
        word = "ahead of" if difference.is_ahead else "behind"
    else:
        word = "better than" if difference.is_ahead else "worse than"
    return (
        f"{difference.ours} is {word} {difference.theirs}{_tendency(difference)}: area under the"
        f" success curve {amount(interval)}{corrected(difference)}, ahead in {difference.won} of"
        f" {difference.pairs} {_pairs_word(difference)}, probability of improvement"
        f" {difference.improvement.estimate:.2f}."
    )


def _tendency(difference: Difference) -> str:
    """How much a lead on few seeds is worth, beside the lead itself."""
    if not (difference.is_tendency and (difference.is_ahead or difference.is_behind)):
        return ""
    each = " a task" if len({task for task, _ in difference.per_run}) > 1 else ""
    return f" on {difference.seeds} seeds{each}, which is a tendency"


def _says_sign(summary: Summary, difference: Difference) -> str:
    """Whether an arm that is ahead owes it to what the feedback says: a control does not, and
    feedback has to beat every control that there is.
    """
    if not difference.is_ahead:
        return ""
    if any(row.label == difference.ours and is_control(row.arm.config) for row in summary.arms):
        return " It is a control: its signs say nothing about the guidance."
    edge = next((edge for edge in summary.edges if edge.label == difference.ours), None)
    if edge is None or not edge.controls:
        return ""
    decisive = edge.unbeaten or edge.controls
    named = [f"{control.theirs} ({amount(control.interval)})" for control in decisive]
    if edge.unbeaten:
        return (
            f" But it is not shown to be ahead of {_and(named)}, so its signs are not shown to be"
            " what helps."
        )
    beaten = _and(named, "and")
    if edge.not_run:
        return (
            f" It is ahead of {beaten} too; without the {_and(edge.not_run)} sign that does not yet"
            " show that its signs are what helps."
        )
    if any(control.is_tendency for control in edge.controls):
        return f" It is ahead of {beaten} too, which speaks for the signs themselves."
    return f" It is ahead of {beaten} too, so the sign itself helps."


def _baseline_first(summary: Summary, next_best: Difference) -> str:
    rivals = _rivals(summary)
    behind = [difference for difference in rivals if difference.is_behind]
    if len(behind) == len(rivals):
        others, do = "every other arm", "does"
    else:
        others, do = f"{len(behind)} of {len(rivals)} other arms", "do"
    if len(rivals) < len(summary.against_baseline):
        others += f" that {do} not follow the bot"
    fewest = min(behind, key=lambda difference: difference.seeds)
    return (
        f"{summary.baseline} is ahead of {others}{_tendency(fewest)}; next comes"
        f" {next_best.ours}. {verdict(next_best)}"
    )


def _pairs_word(difference: Difference) -> str:
    several_tasks = len({task for task, _ in difference.per_run}) > 1
    return (
        "pairs of runs" if several_tasks else f"paired seed{'' if difference.pairs == 1 else 's'}"
    )


def literal_rule(summary: Summary) -> list[str]:
    """What became of the paper's rule, ``previous`` as Algorithm 1 has it, and which variant does
    better where it fails.
    """
    literal = [edge for edge in summary.edges if _is_literal(summary, edge.label)]
    if not literal:
        return []
    others = [edge for edge in summary.edges if edge not in literal]
    sentences = []
    for word, chosen in (
        (_helps(literal), [edge for edge in literal if _benefits(edge)]),
        ("shows no benefit", [edge for edge in literal if _fails(edge)]),
        (
            "cannot be judged here",
            [edge for edge in literal if not _benefits(edge) and not _fails(edge)],
        ),
    ):
        if chosen:
            sentences.append(
                f"The paper's literal rule (previous) {word}:"
                f" {'; '.join(_against_both(edge) for edge in chosen)}."
            )
    if any(_benefits(edge) for edge in literal) or not others:
        return sentences
    return [*sentences, _variant(others)]


def _helps(edges: Sequence[EdgeCheck]) -> str:
    found = [edge for edge in edges if _benefits(edge)]
    if any(difference.is_tendency for edge in found for difference in _decisive(edge)):
        return "is ahead, on so few seeds a tendency"
    if absent := dict.fromkeys(kind for edge in found for kind in edge.not_run):
        return f"is ahead, but not of the {_and(list(absent))} sign, which was not run"
    return "helps"


def _variant(others: Sequence[EdgeCheck]) -> str:
    tried = (
        f"Of the {len(others)} other feedback arms tried"
        if len(others) > 1
        else "Of one other feedback arm tried"
    )
    helping = [edge for edge in others if _benefits(edge)]
    every = "both the arm without feedback and every control that was run"
    if not helping:
        judged = [edge for edge in others if _is_judged(edge)]
        nearest = max(
            judged,
            key=lambda edge: min(difference.interval.estimate for difference in _decisive(edge)),
            default=None,
        )
        closest = (
            f" The closest is {_against_both(nearest)}."
            if nearest
            else " None could be compared with both."
        )
        return f"{tried}, none is ahead of {every}.{closest}"
    best = max(helping, key=lambda edge: _decisive(edge)[0].interval.estimate)
    few = (
        ", a tendency"
        if any(difference.is_tendency for edge in helping for difference in _decisive(edge))
        else ""
    )
    return (
        f"{tried}, {len(helping)} {'is' if len(helping) == 1 else 'are'} ahead of {every}{few}; by"
        f" most {_against_both(best)}."
    )


def _against_both(edge: EdgeCheck) -> str:
    """Against the arm without feedback and the control that is hardest to beat."""
    parts, absent = [], []
    alone = edge.differences.get(NO_EDGE)
    if alone:
        parts.append(f"{amount(alone.interval)} against {alone.theirs}")
    else:
        absent.append("no arm without feedback to compare with")
    if edge.controls:
        hardest = min(edge.controls, key=_lower_end)
        of = (
            f", the hardest of {len(edge.controls)} controls to beat"
            if len(edge.controls) > 1
            else ""
        )
        parts.append(f"{amount(hardest.interval)} against {hardest.theirs}{of}")
    if "random" not in edge.differences:
        absent.append("no random sign to compare with")
    return f"{edge.label} {' and '.join([*parts, *absent])}"


def _lower_end(difference: Difference) -> float:
    interval = difference.interval
    return interval.estimate if math.isnan(interval.low) else interval.low


def _decisive(edge: EdgeCheck) -> list[Difference]:
    """What a benefit has to show in: against the arm without the edge, first, and against every
    control that there is.
    """
    return [*([edge.differences[NO_EDGE]] if NO_EDGE in edge.differences else []), *edge.controls]


def _fails(edge: EdgeCheck) -> bool:
    """Not ahead of one of them is enough."""
    return any(
        not math.isnan(difference.p) and not difference.is_ahead for difference in _decisive(edge)
    )


def _is_judged(edge: EdgeCheck) -> bool:
    complete = NO_EDGE in edge.differences and "random" in edge.differences
    return complete and not any(math.isnan(difference.p) for difference in _decisive(edge))


def _benefits(edge: EdgeCheck) -> bool:
    return _is_judged(edge) and all(difference.is_ahead for difference in _decisive(edge))


def _is_literal(summary: Summary, label: str) -> bool:
    return any(row.label == label and is_literal_rule(row.arm.config) for row in summary.arms)


def _is_taught(summary: Summary, label: str) -> bool:
    """True for a student's teacher that gets a signal, controls left out: it differs from the
    frozen one in nothing but the edge.
    """
    return any(
        row.label == label and is_feedback(row.arm.config) and row.arm.config.arm.agent == "student"
        for row in summary.arms
    )


def _over(summary: Summary) -> str:
    return f"Over {len(summary.tasks)} tasks, " if len(summary.tasks) > 1 else ""


def _task_sentence(task: Summary) -> str:
    if not task.against_baseline:
        return f"On {task.label}: one arm only."
    best = _best_arm(task)
    return f"On {task.label}: {_baseline_first(task, best) if best.is_behind else verdict(best)}"


def _lists(summary: Summary) -> list[str]:
    ahead = [difference for difference in summary.against_baseline if difference.is_ahead]
    behind = [difference for difference in summary.against_baseline if difference.is_behind]
    sentences = []
    for found, (claim, tendency) in (
        (ahead, ("Better than", "Ahead of")),
        (behind, ("Worse than", "Behind")),
    ):
        word = tendency if any(difference.is_tendency for difference in found) else claim
        if found:
            sentences.append(
                f"{word} {summary.baseline}, after the correction:"
                f" {_names([difference.ours for difference in found])}."
            )
    return sentences


def unlike(differences: Sequence[Difference], at_most: int | None = None) -> list[str]:
    """Which arms were evaluated on episodes and are compared with arms that were evaluated exactly.

    Args:
        differences: Those that a reader sees together.
        at_most: Longer lists of arms are counted.
    """
    apart = [difference for difference in differences if not difference.alike]
    if not apart:
        return []
    sampled = list(dict.fromkeys(label for difference in apart for label in difference.sampled))
    exact = list(
        dict.fromkeys(
            label
            for difference in apart
            for label in (difference.ours, difference.theirs)
            if label not in difference.sampled
        )
    )
    return [
        f"Not evaluated alike: {_names(sampled, at_most)} on held-out episodes,"
        f" {_names(exact, at_most)} exactly. How much easier or harder those episodes are than all"
        " of them, the same for every seed, is in no interval of their differences."
    ]


def _caution(summary: Summary) -> str:
    tried = len(summary.arms)
    pairs = max((difference.seeds for difference in summary.against_baseline), default=0)
    experts = _experts(summary)
    text = (
        f"{_names(experts)} {'follows' if len(experts) == 1 else 'follow'} the bot, a bound and no"
        " rival. "
        if experts
        else ""
    )
    text += _expert_failures(summary)
    text += (
        f"{tried} arms were tried; the words rest on p values that are corrected for the number of"
        " arms compared (Holm), the intervals are those of each comparison alone."
    )
    if pairs < SEEDS_FOR_A_CLAIM:
        text += (
            f" {pairs} paired {'seed shows' if pairs == 1 else 'seeds show'} a tendency; a claim"
            f" needs {SEEDS_FOR_A_CLAIM}."
        )
    return text


def _expert_failures(summary: Summary) -> str:
    """What the bot was measured to lose on the levels of the arms that follow it; empty where it
    always won.
    """
    followers = [row.arm for row in summary.arms if uses_expert(row.arm.config)]
    if not followers:
        return ""
    from lamorel_ext.envs.babyai.expert import expert_shortfall  # minigrid takes seconds

    levels = {run.config.env.level for arm in followers for run in arm.runs.values()}
    lost = [shortfall for level in sorted(levels) if (shortfall := expert_shortfall(level))]
    return f"What it loses is no student's failure: {'; '.join(lost)}. " if lost else ""


def _best_arm(summary: Summary) -> Difference:
    return _best(_rivals(summary))


def _rivals(summary: Summary) -> Sequence[Difference]:
    """Against the baseline, those that do not follow the bot, which knows the answer; all where
    there is no other.
    """
    experts = _experts(summary)
    free = [difference for difference in summary.against_baseline if difference.ours not in experts]
    return free or summary.against_baseline


def _experts(summary: Summary) -> list[str]:
    return [row.label for row in summary.arms if uses_expert(row.arm.config)]


def _best(differences: Sequence[Difference]) -> Difference:
    return max(differences, key=_estimate)


def amount(interval: Interval) -> str:
    """An estimate with its sign and its interval."""
    return f"{signed(interval.estimate)} {bracket(interval, signed)}"


def corrected(difference: Difference) -> str:
    """The p value beside an interval, and for how many arms it was corrected."""
    if math.isnan(difference.p):
        return ""
    arms = f"{difference.compared} arms" if difference.compared != 1 else "1 arm"
    return f" (corrected p {p_value(difference.p_corrected)}, {arms} compared)"


def p_value(value: float) -> str:
    """Three digits behind a sign."""
    return "–" if math.isnan(value) else "< .001" if value < 0.001 else f"= {min(value, 1.0):.3f}"


def _names(labels: Sequence[str], at_most: int | None = NAMES_AT_MOST) -> str:
    return ", ".join(labels) if at_most is None or len(labels) <= at_most else f"{len(labels)} arms"


def _and(words: Sequence[str], last: str = "or") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
