"""The sections of a report's page: tables rounded for people, beside the figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments.report import page
from experiments.report.figures import Picture
from experiments.report.headline import advice, p_value, unlike
from experiments.report.plots import CONTROL_TITLES
from experiments.report.results import CALLS, SECONDS, STEPS, TOKENS, Arm, Run
from experiments.report.roles import is_feedback, step_size, unknown_controls
from experiments.report.statistics import Interval
from experiments.report.summary import (
    COSTS,
    REWARD_SCALE,
    SEEDS_FOR_A_CLAIM,
    ArmSummary,
    Difference,
    EdgeCheck,
    Summary,
    bracket,
    is_exact,
    mean_total,
    plain,
    signed,
)
from experiments.runs.identity import differing_keys, method

Pictures = Mapping[str, Sequence[Picture]]
COST_NAMES = {CALLS: "calls", TOKENS: "tokens", SECONDS: "seconds"}
AMOUNTS = {CALLS: ",.0f", TOKENS: ",.0f", SECONDS: ",.1f"}
STEP_SIZE = "step size of the feedback, lr or lr_online"
TELEMETRY = (
    ("feedback_f_positive", "share of f > 0"),
    ("feedback_f_zero", "share of f = 0"),
    ("feedback_entropy", "teacher's entropy, nats"),
    ("feedback_kl", "KL from the start, nats"),
    ("feedback_grad_norm", "gradient norm before clipping"),
)


# --- over all tasks -------------------------------------------------------------------------------


def overall_sections(overall: Summary, pictures: Pictures) -> list[str]:
    """What there is to say over all tasks together."""
    header = ["arm", "runs", "area, IQM", "area, mean", "success at the end", "mean rank"]
    rows = [
        [
            row.label,
            str(len(row.runs)),
            with_interval(row.area_iqm),
            with_interval(row.area),
            with_interval(row.success),
            with_interval(row.rank, "{:.2f}".format),
        ]
        for row in overall.arms
    ]
    names = ", ".join(task.label for task in overall.tasks)
    note = (
        f"Tasks: {names}. Each counts the same. The area is the mean success over the task's"
        " budget, between 0 and 1 on every task, so it needs no normalisation; IQM is the"
        " interquartile mean over all runs. Intervals are over seeds and take the tasks as given:"
        " Student's t with Satterthwaite's degrees of freedom for means, a percentile bootstrap"
        f" within each task (rliable) for the IQM. The rank, 1 the best of {len(overall.arms)}, is"
        " that of the area, seed by seed."
    )
    shown = [
        page.picture(drawn)
        for group in ("aggregates", "profiles")
        for drawn in pictures.get(group, ())
    ]
    table = page.table(header, rows, "overall")
    return [
        page.section("Over all tasks", table, page.note(note), *shown),
        *_comparisons(overall, pictures, "Over all tasks: "),
    ]


# --- one task -------------------------------------------------------------------------------------


def task_sections(task: Summary, pictures: Pictures, prefix: str = "") -> list[str]:
    """Tables and figures of one task; every heading starts with ``prefix``."""
    sections = [page.section(f"{prefix}Arms", _arms_table(task), page.note(_how_to_read(task)))]
    sections.append(
        page.section(f"{prefix}Curves", *(page.picture(drawn) for drawn in pictures["curves"]))
    )
    sections += _comparisons(task, pictures, prefix)
    costs = [
        _costs_table(task),
        page.note(_how_to_read_costs()),
        page.subheading("What each side learnt from"),
        _updates_table(task),
    ]
    if task.against_baseline:
        even = (
            "Mean success while a cost was spent, up to what the cheapest run of the two arms has"
            " spent, with t intervals as above, not corrected for the number of arms; a dash where"
            " one of them spends nothing, or has spent more before its first evaluation."
        )
        costs += [
            page.subheading(f"At equal cost, minus {task.baseline}"),
            _equal_costs_table(task),
            page.note(even),
        ]
    sections.append(page.section(f"{prefix}Costs", *costs, *map(page.picture, pictures["costs"])))
    return [*sections, page.section(f"{prefix}What the edge did", _telemetry(task))]


def _comparisons(summary: Summary, pictures: Pictures, prefix: str) -> list[str]:
    sections = []
    csv_name = "differences" if len(summary.tasks) == 1 else "overall_differences"
    figures = {
        drawn.name.rsplit("difference_to_")[-1]: page.picture(drawn)
        for drawn in pictures["differences"]
    }
    if summary.against_baseline:
        parts = [*_differences(summary.against_baseline, csv_name), figures.get("baseline", "")]
        sections.append(page.section(f"{prefix}Against the baseline, {summary.baseline}", *parts))
    if summary.frozen and summary.frozen != summary.baseline:
        parts = [*_differences(summary.against_frozen, csv_name), figures.get("frozen_teacher", "")]
        sections.append(
            page.section(f"{prefix}Against the frozen teacher, {summary.frozen}", *parts)
        )
    unknown = [page.note(line) for line in unknown_controls(row.arm for row in summary.arms)]
    if summary.against_own or unknown:
        known = summary.against_own
        parts = _differences(known, csv_name, name_theirs=True) if known else []
        sections.append(
            page.section(f"{prefix}Methods against their own controls", *parts, *unknown)
        )
    return sections + _controls_section(summary, pictures, prefix)


def _controls_section(summary: Summary, pictures: Pictures, prefix: str) -> list[str]:
    """Each feedback arm against its controls, or what is missing; nothing where no arm gets
    feedback.
    """
    if not any(is_feedback(row.arm.config) for row in summary.arms):
        return []
    parts = []
    lines = [
        f"{edge.label}: no {', no '.join(edge.not_run)} sign. {advice(edge.not_run)}"
        for edge in summary.edges
        if edge.not_run
    ]
    if lines:
        parts.append(page.warning(["Controls without a complete run.", *lines]))
    header = ["feedback arm", *(f"minus {title}" for title in CONTROL_TITLES.values())]
    parts.append(
        page.table(
            header,
            [
                [edge.label, *(_control_cell(edge, kind) for kind in CONTROL_TITLES)]
                for edge in summary.edges
            ],
        )
    )
    lines = [*_partners(summary.edges), *_reasons(summary.edges)]
    parts.append(
        page.note(
            "Differences of areas with 95 % t intervals, as in the tables above, and p values"
            " corrected by Holm for the feedback arms of a column; a feedback arm has to be ahead"
            " in all four for its signs to be what helps. A control is the arm with another"
            " feedback.sign. " + _sentences(lines)
        )
    )
    other_signs = _magnitudes(summary)
    parts += [page.note(_sentences(other_signs))] if other_signs else []
    parts += [
        page.note(line)
        for line in unlike(
            [difference for edge in summary.edges for difference in edge.differences.values()]
        )
    ]
    return [page.section(f"{prefix}Controls", *parts, *map(page.picture, pictures["controls"]))]


def _control_cell(edge: EdgeCheck, kind: str) -> str:
    if kind in edge.differences:
        difference = edge.differences[kind]
        return with_interval(difference.interval, signed) + (
            "" if math.isnan(difference.p) else f" p {p_value(difference.p_corrected)}"
        )
    return "missing" if edge.reasons[kind] == "missing" else "impossible"


def _reasons(edges: Sequence[EdgeCheck]) -> list[str]:
    """Why a control cannot be, said once for all feedback arms that it holds for."""
    shared: dict[tuple[str, str], list[str]] = {}
    for edge in edges:
        for kind, reason in edge.reasons.items():
            if reason != "missing":
                shared.setdefault((CONTROL_TITLES[kind], reason), []).append(edge.label)
    return [
        f"No {title} for {', '.join(labels)}: {reason}"
        for (title, reason), labels in shared.items()
    ]


def _partners(edges: Sequence[EdgeCheck]) -> list[str]:
    """Which arm stands for each column, said once for all feedback arms that share it."""
    shared: dict[tuple[str, ...], list[str]] = {}
    for edge in edges:
        shared.setdefault(
            tuple(difference.theirs for difference in edge.differences.values()), []
        ).append(edge.label)
    return [
        f"Beside {', '.join(labels)}: {', '.join(partners)}"
        for partners, labels in shared.items()
        if partners
    ]


def _sentences(lines: Sequence[str]) -> str:
    return " ".join(f"{line}." for line in lines)


def _magnitudes(summary: Summary) -> list[str]:
    """That coins of a constant have no magnitudes, for arms whose signal has."""
    weighted = {row.label for row in summary.arms if row.arm.config.feedback.signal == "weighted"}
    coins = {row.label for row in summary.arms if row.arm.config.feedback.signal == "constant"}
    found = []
    for edge in summary.edges:
        if (
            edge.label in weighted
            and "random" in edge.differences
            and edge.differences["random"].theirs in coins
        ):
            keeps = "shuffled" in edge.differences
            instead = f"; {edge.differences['shuffled'].theirs} keeps them" if keeps else ""
            found.append(
                f"{edge.differences['random'].theirs} says ±1, without the magnitudes of"
                f" {edge.label}{instead}"
            )
    return found


def _arms_table(task: Summary) -> str:
    header = [
        "arm",
        "seeds",
        "success at the end",
        "return at the end",
        "return × 20",
        "area under success",
        "IQM",
        "teacher followed blindly",
        "steps to 80 %",
        "steps to 95 %",
    ]
    rows = []
    for row in task.arms:
        rows.append(
            [
                row.label,
                str(len(row.runs)),
                with_interval(row.success),
                with_interval(row.returned),
                plain(REWARD_SCALE * row.returned.estimate),
                with_interval(row.area),
                plain(row.area_iqm.estimate),
                with_interval(row.followed),
                _count(row.cost_to[0.80, STEPS]),
                _count(row.cost_to[0.95, STEPS]),
            ]
        )
    return page.table(header, rows, "summary")


def with_interval(interval: Interval, show: Callable[[float], str] = plain) -> str:
    """A line may break before the bracket, not within it."""
    if math.isnan(interval.low):
        return show(interval.estimate) if not math.isnan(interval.estimate) else "–"
    return f"{show(interval.estimate)} " + bracket(interval, show).replace(
        " ", "\N{NO-BREAK SPACE}"
    )


def _how_to_read(task: Summary) -> str:
    kinds: dict[str, list[str]] = {}
    for row in task.arms:
        kinds.setdefault(_kind(row), []).append(row.label)
    evaluation = "; ".join(
        f"{kind} ({', '.join(labels)})" if len(kinds) > 1 else kind
        for kind, labels in sorted(kinds.items())
    )
    return (
        "Brackets are 95 % intervals over seeds, Student's t, those of rates cut at 0 and 1. The"
        f" area is the mean success over the first {task.tasks[0].until:,.0f} environment steps;"
        " IQM is its interquartile mean over seeds. Teacher followed blindly is the success at the"
        " end of the teacher's own choice, without a student. Steps to a level are those of the"
        f" median seed, a dash where it never gets there. Evaluation: {evaluation}."
    )


def _kind(row: ArmSummary) -> str:
    if is_exact(row.runs):
        return "exact, by enumeration of all states"
    return f"{row.arm.config.run.eval_episodes} held-out episodes each"


def _differences(
    differences: Sequence[Difference], csv_name: str, name_theirs: bool = False
) -> list[str]:
    """The table, and what stands below it; ``name_theirs`` where each has another one beside it."""
    header = [
        "arm",
        *(["minus"] if name_theirs else []),
        "area, difference",
        f"p, corrected for {_compared(differences)}",
        "r",
        "success at the end, difference",
        "pairs won",
        "P(better)",
    ]
    rows = [
        [
            difference.ours,
            *([difference.theirs] if name_theirs else []),
            with_interval(difference.interval, signed),
            p_value(difference.p_corrected).removeprefix("= "),
            (
                "–"
                if math.isnan(difference.correlation)
                else f"{difference.correlation:.2f}".replace("-", "−")
            ),
            with_interval(difference.success, signed),
            f"{difference.won} of {difference.pairs}",
            with_interval(difference.improvement, "{:.2f}".format),
        ]
        for difference in differences
    ]
    return [
        page.table(header, rows, csv_name),
        *(page.note(line) for line in [*unlike(differences), *_method(differences)]),
    ]


def _compared(differences: Sequence[Difference]) -> str:
    arms = max((difference.compared for difference in differences), default=0)
    return f"{arms} arm" if arms == 1 else f"{arms} arms"


def _method(differences: Sequence[Difference]) -> list[str]:
    """Which interval stands beside which number, and what the correction is for."""
    with_ends = [one for one in differences if not math.isnan(one.interval.low)]
    welch = [one.ours for one in with_ends if not one.paired]
    paired = [one.ours for one in with_ends if one.paired]
    alike = [one.ours for one in differences if one not in with_ends and not math.isnan(one.p)]
    kinds = [f"Student's t of the paired differences ({', '.join(paired)})"] if paired else []
    kinds += [f"Welch's t of unpaired seeds ({', '.join(welch)})"] if welch else []
    kinds += (
        [
            f"none where the episodes of every seed show the same difference ({', '.join(alike)}),"
            " as its spread is finer than they can show; p is then the least that exchanging the"
            " two arms' labels can give"
        ]
        if alike
        else []
    )
    few = any(difference.is_tendency for difference in differences)
    words = (
        f" Fewer than {SEEDS_FOR_A_CLAIM} seeds are called a tendency whatever the p value."
        if few
        else ""
    )
    return [
        f"Brackets are 95 % intervals: {'; '.join(kinds) or 'none, for want of a second seed'}."
        " Seeds are paired only where the two arms' correlation over seeds, r, is above zero in a"
        " one-sided test at 5 %. The interval is that of one comparison alone; the p value beside"
        " it is corrected by Holm for all arms of this table, and a word such as better needs it"
        " below .05. P(better) has rliable's percentile bootstrap, which covers less than 95 % at"
        " ten seeds; no word rests on it." + words
    ]


# --- costs and telemetry --------------------------------------------------------------------------


def _costs_table(task: Summary) -> str:
    """What a run costs, and what it had spent on the way to a level."""
    header = [
        "arm",
        *(f"LLM {name}" if cost != SECONDS else name for cost, name in COST_NAMES.items()),
        *(f"{name} to {level} %" for name in COST_NAMES.values() for level in (80, 95)),
    ]
    rows = []
    for row in task.arms:
        reached = [_count(row.cost_to[level, cost]) for cost in COSTS for level in (0.80, 0.95)]
        rows.append([row.label, *(_count(row.spent[cost]) for cost in COSTS), *reached])
    return page.table(header, rows, "summary")


UPDATES = (
    ("llm_updates", "updates of the LLM"),
    ("llm_update_steps", "optimiser steps of the LLM"),
    ("llm_update_samples", "samples in them"),
    (CALLS, "calls of the LLM"),
    ("student_update_steps", "optimiser steps of the student"),
    ("student_update_samples", "samples of the student"),
    (STEPS, "environment steps"),
)
"""Columns of what each side of the loop did; runs of earlier versions lack some."""


def _updates_table(task: Summary) -> str:
    """How much each side learnt from, mean over seeds of whole runs; columns that no run has are
    left out.
    """
    known = [
        (column, title)
        for column, title in UPDATES
        if any(column in run.columns for row in task.arms for run in row.runs)
    ]
    rows = [
        [row.label, *(_count(mean_total(row.runs, column)) for column, _ in known)]
        for row in task.arms
    ]
    return page.table(["arm", *(title for _, title in known)], rows)


def _equal_costs_table(task: Summary) -> str:
    """Each arm minus the baseline at equal expense, which is that of the cheaper one of the two."""
    header = ["arm", *(f"area over {name}, difference" for name in COST_NAMES.values())]
    rows = []
    for difference in task.against_baseline:
        cells = [
            (
                f"{with_interval(difference.by_cost[cost], signed)} in"
                f" {difference.cut_at[cost]:{AMOUNTS[cost]}} {COST_NAMES[cost]}"
                if cost in difference.by_cost
                else "–"
            )
            for cost in COSTS
        ]
        rows.append([difference.ours, *cells])
    return page.table(header, rows)


def _how_to_read_costs() -> str:
    return (
        "Means over seeds of whole runs; what it took to 80 % and 95 % is that of the median seed."
        " Tokens are those that the LLM processed to act and to learn, without answers that it"
        " still remembered; what evaluations ask, or a statistic alone, is not counted."
        " Seconds depend on the machine and on what else it did."
    )


def _telemetry(task: Summary) -> str:
    """Means over the curves of all seeds."""
    rows = [
        [row.label, *(plain(_telemetry_mean(row.arm, column)) for column, _ in TELEMETRY)]
        for row in task.arms
    ]
    rows = [row for row in rows if any(cell != "–" for cell in row[1:])]
    return (
        page.table(["arm", *(title for _, title in TELEMETRY)], rows)
        if rows
        else page.note("No arm has a feedback edge.")
    )


def _telemetry_mean(arm: Arm, column: str) -> float:
    values = [
        value
        for run in arm.runs.values()
        for value in run.columns.get(column, ())
        if not math.isnan(value)
    ]
    return sum(values) / len(values) if values else math.nan


# --- how it was made ------------------------------------------------------------------------------


def provenance_sections(
    tasks: Sequence[Summary], unfinished: Sequence[Run], absent: Sequence[Path]
) -> list[str]:
    """What arms and tasks differ in, what was left out, and the commands."""
    sections = [
        page.section(
            "What the arms differ in",
            _config_differences({row.label: row.arm for row in tasks[0].arms}),
        )
    ]
    if len(tasks) > 1:
        first = {task.label: task.arms[0].arm for task in tasks}
        table = _config_differences(first, "task")
        sections.append(
            page.section(
                "What the tasks differ in",
                table,
                page.note(f"Values of each task's first arm, {tasks[0].baseline}."),
            )
        )
    if unfinished:
        lines = "\n".join(unfinished_line(run) for run in unfinished)
        sections.append(page.section(f"Runs left out: {len(unfinished)}", page.preformatted(lines)))
    if absent:
        lines = "\n".join(map(str, absent))
        sections.append(page.section(f"Runs not begun: {len(absent)}", page.preformatted(lines)))
    return [*sections, page.section("How these runs were made", *_provenance(tasks))]


def _config_differences(arms: Mapping[str, Arm], what: str = "arm") -> str:
    values = [method(arm.config) for arm in arms.values()]
    keys = differing_keys(values)
    steps = {label: step_size(arm.config) for label, arm in arms.items()}
    if len({step for step in steps.values() if step is not None}) > 1:
        keys.append(STEP_SIZE)
        values = [
            {**value, STEP_SIZE: "–" if step is None else f"{step:g}"}
            for value, step in zip(values, steps.values(), strict=True)
        ]
    if not keys:
        return page.note("Nothing but their seeds.")
    rows = [
        [label, *(str(value.get(key, "–")) for key in keys)]
        for label, value in zip(arms, values, strict=True)
    ]
    return page.table([what, *keys], rows)


def _provenance(tasks: Sequence[Summary]) -> list[str]:
    runs = [run for task in tasks for row in task.arms for run in row.runs]
    commands = dict.fromkeys(str(run.versions.get("command", "unknown")) for run in runs)
    versions = dict.fromkeys(_version_line(run) for run in runs)
    models = dict.fromkeys(run.config.lamorel_args.llm_args.model_path for run in runs)
    levels = dict.fromkeys(run.level for run in runs)
    tried = len({row.label for task in tasks for row in task.arms})
    return [
        page.preformatted("\n".join(commands)),
        page.note(
            f"Model: {', '.join(models)}. Level: {', '.join(levels)}. {len(runs)} runs, {tried}"
            " arms tried."
        ),
        page.note(
            "provenance.json has the machine, commit, versions and a hash of every run's"
            " configuration; configs.json the configurations."
        ),
        page.note(
            "The numbers in full are in tables/; lamorel-ext-recompute checks them"
            " against tables/curves.csv."
        ),
        *(page.note(line) for line in versions),
    ]


def _version_line(run: Run) -> str:
    return ", ".join(
        f"{name} {value}"
        for name, value in run.versions.items()
        if name not in ("command", "started", "config_sha256")
    )


def unfinished_line(run: Run) -> str:
    """Where a run lies, how far it is, and why it stopped."""
    error = str(run.status.get("error") or "").splitlines()
    return f"{run.folder}: {run.state}" + (f": {error[0]}" if error else "")


def _count(number: float | None) -> str:
    return "–" if number is None or math.isnan(number) else f"{number:,.0f}"
