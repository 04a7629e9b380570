"""The loop viewer: what its page holds, that nothing in it can run, and, in a real browser, that it
shows the step it is asked for.
"""

from __future__ import annotations

import functools
import http.server
import io
import json
import re
import shutil
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMEDRIVER, CHROMIUM, Browser, dump, skip_without_browser
from browser import browse as drive
from made_runs import VERSIONS

from experiments.compare import show_loop
from experiments.report.page import CSS
from experiments.runs.entry import run_main
from experiments.runs.run_folder import RunFolder, trace_files
from experiments.viewer import __main__ as viewer
from experiments.viewer import content
from experiments.viewer.page import embedded_json, make_page
from experiments.viewer.reading import Episode, read_trace
from experiments.viewer.replay import replay
from lamorel_ext.config import Config, load_config
from lamorel_ext.envs.babyai.batched import make_batched_env
from lamorel_ext.errors import CheckpointError, NotThereError
from lamorel_ext.training.loop import train
from lamorel_ext.training.recorder import Checkpoint
from lamorel_ext.training.trace import Trace
from tests.training.student_fakes import TableLlm

HOSTILE = (
    "</script><script>document.title='owned'</script>"
    "<img src=x onerror=\"document.title='owned'\">\u2028 & 'go' \"to\""
)
ARMS = (
    "teacher_feedback+signal=previous+every=1",
    "llm_policy_feedback+signal=gae",
    "student_alone",
)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome on this machine")


def config_of(arm: str, folder: Path, *overrides: str) -> Config:
    small = [
        "env.num_envs=2", "student.num_steps=8", "ppo.num_steps=8", "run.total_steps=48",
        "run.eval_every=48", "run.evaluation=episodes", "run.eval_episodes=2", "run.trace_every=1",
    ]  # fmt: skip
    return load_config(
        [
            f"arm={arm}",
            *small,
            f"run.output_dir={folder}",
            f"compare.arms=[{','.join(ARMS)}]",
            *overrides,
        ]
    )


def make_traced_run(config: Config) -> Path:
    """A run of a fraction of a second, whose LLM is a table."""
    folder = Path(config.run.output_dir)
    with RunFolder(folder, config, VERSIONS) as recorder:
        train(config, TableLlm() if config.asks_llm else None, recorder)
    return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three arms, each with a trace per rollout; the mission of one was written by somebody with
    bad intentions.
    """
    root = tmp_path_factory.mktemp("compared")
    for arm in ARMS:
        make_traced_run(config_of(arm, root / arm / "seed_0"))
    first = root / ARMS[0] / "seed_0" / "traces" / "step_000000.jsonl"
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "episode":
            line["mission"] = HOSTILE
    first.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.fixture(scope="module")
def page(compared: Path) -> Path:
    return viewer.make_viewer(compared)


# --- what the page holds --------------------------------------------------------------------------


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>',
        page.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert found
    data: dict[str, Any] = json.loads(found.group(1))
    return data


def test_the_page_says_what_the_traces_say(compared: Path, page: Path) -> None:
    data = data_of(page)
    assert [run["label"] for run in data["runs"]] == [
        "teacher_feedback/previous/every=1",
        "llm_policy+feedback/gae",
        "student_alone",
    ]
    for run, arm in zip(data["runs"], ARMS, strict=True):
        files = trace_files(compared / arm / "seed_0")
        assert [rollout["env_steps"] for rollout in run["rollouts"]] == list(files) == [0, 16, 32]
        for rollout, path in zip(run["rollouts"], files.values(), strict=True):
            recorded = read_trace(path)
            assert len(rollout["updates"]) == len(recorded.updates)
            for shown, episode in zip(rollout["episodes"], recorded.episodes, strict=True):
                assert data["texts"][shown["mission"]] == episode.line["mission"]
                for step, line in zip(shown["steps"], episode.steps, strict=True):
                    assert (
                        data["texts"][step["prompt"]] == line["prompt"]
                        and data["views"][step["view"]] == line["view"]
                    )
                    assert [data["texts"][place] for place in step["sentences"]] == line[
                        "sentences"
                    ]
                    for key in (
                        "action",
                        "reward",
                        "error",
                        "previous",
                        "advantage",
                        "signal",
                        "policy",
                        "end",
                    ):
                        assert step[key] == line[key]
                    if line["llm"]:
                        assert (
                            data["texts"][step["llm"]["text"]] == line["llm"]["text"]
                            and step["llm"]["after"] == line["llm"]["after"]
                        )


def test_seeds_beyond_what_the_script_counts_are_told_apart(tmp_path: Path) -> None:
    seeds = [2**60, 2**60 + 1]
    for seed in seeds:
        folder = tmp_path / "student_alone" / f"seed_{seed}"
        make_traced_run(config_of("student_alone", folder, f"run.seed={seed}"))
    shown = [run["seed"] for run in data_of(viewer.make_viewer(tmp_path))["runs"]]
    assert shown == list(map(str, seeds))


def test_a_trace_of_another_arm_is_not_shown_as_this_ones(compared: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(compared, tmp_path / "compared"))
    traces = (folder / arm / "seed_0" / "traces" / "step_000000.jsonl" for arm in ARMS)
    first, second, _ = traces
    shutil.copy(first, second)
    with pytest.raises(CheckpointError, match=rf"{re.escape(ARMS[1])}.*is of another run .* arm"):
        viewer.make_viewer(folder)


def test_every_recorded_rollout_is_on_one_of_the_pages_ends_first(
    compared: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(content, "MAX_BYTES", 1)
    assert viewer.run([str(compared), "--output", str(tmp_path / "small.html")]) == 0
    names = ["small.html", *(f"small_{number}.html" for number in range(2, 10))]
    pages = [data_of(tmp_path / name) for name in names]
    assert all([page["file"] for page in data["pages"]] == names for data in pages)
    assert [data["page"] for data in pages] == list(range(9))
    shown = [
        (run["label"], rollout["env_steps"])
        for data in pages
        for run in data["runs"]
        for rollout in run["rollouts"]
    ]
    assert len(set(shown)) == len(shown) == 9
    printed = ["pages: 9, each with a list of all of them", f"viewer: {tmp_path / 'small.html'}"]
    assert capsys.readouterr().out.splitlines() == printed


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise OSError("Input/output error")


def test_the_pages_are_made_where_nobody_hears_how_many(
    compared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(content, "MAX_BYTES", 1)
    monkeypatch.setattr("sys.stdout", Gone())
    assert viewer.run([str(compared), "--output", str(tmp_path / "small.html")]) == 0
    assert len(list(tmp_path.iterdir())) == 9


@pytest.mark.parametrize("name", ["small.html", "a.b_2.html", "[x].html"])
def test_a_shorter_viewer_removes_the_pages_of_a_longer_one_and_nothing_else(
    name: str, compared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = tmp_path / name
    monkeypatch.setattr(content, "MAX_BYTES", 1)
    viewer.make_viewer(compared, target)
    others = {
        tmp_path / f"{target.stem}_77.html": "mine",
        tmp_path / f"{target.stem}_notes.html": "x",
    }
    for path, words in others.items():
        path.write_text(words)
    assert len(list(tmp_path.iterdir())) == 9 + len(others)
    monkeypatch.undo()
    viewer.make_viewer(compared, target)
    assert set(tmp_path.iterdir()) == {target, *others}


def test_hundreds_of_recorded_rollouts_are_all_reachable(
    compared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By what a page links to, from the first page on."""
    shutil.copytree(compared / ARMS[0], tmp_path / "runs" / ARMS[0])
    traces = tmp_path / "runs" / ARMS[0] / "seed_0" / "traces"
    header, rest = (traces / "step_000016.jsonl").read_text().split("\n", 1)
    for number in range(3, 300):
        line = json.dumps({**json.loads(header), "env_steps": 16 * number, "rollout": number})
        (traces / f"step_{16 * number:06d}.jsonl").write_text(f"{line}\n{rest}")
    monkeypatch.setattr(content, "MAX_BYTES", 100_000)
    first = data_of(viewer.make_viewer(tmp_path / "runs"))
    pages = [data_of(tmp_path / "runs" / page["file"]) for page in first["pages"]]
    assert len(pages) > 1
    shown = [one["env_steps"] for data in pages for run in data["runs"] for one in run["rollouts"]]
    assert sorted(shown) == [16 * number for number in range(300)]


def test_rollouts_of_two_pages_can_be_had_on_one(compared: Path, tmp_path: Path) -> None:
    there = sorted(trace_files(compared / ARMS[0] / "seed_0"))
    target = viewer.make_viewer(compared, tmp_path / "two.html", [ARMS[0]], steps=there[:1])
    (one,) = data_of(target)["runs"]
    assert [rollout["env_steps"] for rollout in one["rollouts"]] == there[:1]
    with pytest.raises(NotThereError, match=f"no rollout was recorded at 7 steps.* {there[0]}"):
        viewer.make_viewer(compared, tmp_path / "none.html", steps=[there[0], 7])


def test_the_script_asks_for_elements_that_the_page_has_and_each_has_a_name() -> None:
    asset = resources.files("experiments.viewer")
    markup = asset.joinpath("viewer.html").read_text(encoding="utf-8")
    script = asset.joinpath("viewer.js").read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', markup)
    assert len(ids) == len(set(ids))
    asked = set(re.findall(r'(?:\$|page|getElementById|on)\("(\w+)"', script)) - {"cursor"}
    assert asked <= set(ids) and {"arm", "beside", "together", "open"} <= asked
    for control in re.findall(r"<(?:select|button|input)\b.*?>.{0,12}", markup):
        place = markup.index(control)
        labelled = markup.rfind("<label", 0, place) > markup.rfind("</label>", 0, place)
        words = control.startswith("<button") and re.search(r">\s*[A-Z]", control)
        assert "aria-label=" in control or labelled or words, control


def test_every_part_of_a_side_lies_inside_of_it() -> None:
    """The second side is a copy of the first: what it draws into must be copied too."""
    asset = resources.files("experiments.viewer")
    markup = asset.joinpath("viewer.html").read_text(encoding="utf-8")
    script = asset.joinpath("viewer.js").read_text(encoding="utf-8")
    side = markup[markup.index('id="pane"') : markup.index("</main>")]
    drawn = set(re.findall(r'(?:\$|\bon|\bfill)\("(\w+)"', script)) - {"cursor"}
    assert len(drawn) > 20
    assert drawn <= set(re.findall(r'\bid="([^"]+)"', side))
    outside = set(re.findall(r'\bpage\("(\w+)"', script))
    assert outside and not outside & set(re.findall(r'\bid="([^"]+)"', side))


# --- contrasts ------------------------------------------------------------------------------------

AA = 4.5
"""WCAG's ratio for text of any size."""
SHEETS = {
    "report": (
        CSS,
        [
            *((ink, on) for ink in ("ink", "soft", "accent") for on in ("page", "tint")),
            ("ink", "warm"),
        ],
    ),
    "viewer": (
        resources.files("experiments.viewer").joinpath("viewer.css").read_text(encoding="utf-8"),
        [
            *((ink, on) for ink in ("ink", "soft", "up", "down") for on in ("card", "tint")),
            *(("on", badge) for badge in ("ink", "up", "down", "zero")),
        ],
    ),
}


def luminance(colour: str) -> float:
    whole = colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])
    parts = [int(whole[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("sheet", SHEETS)
def test_every_pair_of_text_and_ground_has_enough_contrast(sheet: str, theme: str) -> None:
    css, pairs = SHEETS[sheet]
    roots = [
        dict(re.findall(r"--(\w+): (#\w+)", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    ]
    assert len(roots) == 2
    colours = roots[0] if theme == "light" else {**roots[0], **roots[1]}
    for ink, ground in pairs:
        low, high = sorted((luminance(colours[ink]), luminance(colours[ground])))
        assert (high + 0.05) / (low + 0.05) >= AA, (ink, ground)


def test_arms_are_chosen_by_label_or_folder_and_an_empty_choice_is_an_error(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("student_alone", "llm_policy_feedback+signal=gae", "llm_policy+feedback/gae"):
        viewer.make_viewer(compared, tmp_path / "one.html", arms=[name], seeds=[0])
        (one,) = data_of(tmp_path / "one.html")["runs"]
        assert one["label"] == name.replace("_feedback+signal=", "+feedback/")
    for chosen in (["--arm", "nobody"], ["--arm", "student_alone", "--arm", "nobody"]):
        assert run_main(viewer.run, [str(compared), *chosen]) == 2
        assert (
            "holds no arm nobody; there are the arms teacher_feedback/previous/every=1"
            in capsys.readouterr().err
        )
    assert run_main(viewer.run, [str(compared), "--seed", "0", "--seed", "7"]) == 2
    assert "holds no seed 7; there are 0" in capsys.readouterr().err
    untraced = config_of("student_alone", tmp_path / "run", "run.trace_every=0")
    assert run_main(viewer.run, [str(make_traced_run(untraced))]) == 2
    assert "run.trace_every was 0" in capsys.readouterr().err


def test_a_comparison_shows_its_loop_behind_links_and_is_reported_without_what_is_damaged(
    compared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(compared / "student_alone", tmp_path / "elsewhere/student_alone")
    folder = tmp_path / "comparison"
    folder.mkdir()
    (folder / "student_alone").symlink_to(tmp_path / "elsewhere/student_alone")
    show_loop(folder)
    assert capsys.readouterr().out == f"viewer: {folder / 'viewer.html'}\n"
    trace_files(folder / "student_alone/seed_0")[0].write_text("{")
    with caplog.at_level("WARNING"):
        show_loop(folder)  # the report comes behind it
    assert capsys.readouterr().out == "" and "step_000000.jsonl cannot be read" in caplog.text


@pytest.mark.parametrize(
    "broken", ["", "{", '{"kind":"step"}\n', '[1]\n{"kind":"trace"}\n', '{"kind":"else"}\n']
)
def test_a_file_that_is_no_trace_is_refused_by_name(broken: str, tmp_path: Path) -> None:
    path = tmp_path / "step_000000.jsonl"
    path.write_text(broken)
    with pytest.raises(CheckpointError, match=r"step_000000\.jsonl"):
        read_trace(path)


def test_another_version_is_refused(compared: Path, tmp_path: Path) -> None:
    text = next(iter(trace_files(compared / "student_alone" / "seed_0").values())).read_text()
    path = tmp_path / "step_000000.jsonl"
    path.write_text(text.replace('"version":1', '"version":2', 1))
    with pytest.raises(CheckpointError, match="expected a trace of version 1, got 2"):
        read_trace(path)


# --- the grid -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "backend"),
    [
        ("BabyAI-GoToRedBallNoDists-v0", "table"),
        ("BabyAI-GoToLocal-v0", "vector"),
        ("BabyAI-UnlockLocal-v0", "minigrid"),
        ("BabyAI-MixedTrainLocal-v0", "minigrid"),
    ],
)
def test_an_episode_is_played_again_from_its_seed_and_actions(level: str, backend: Any) -> None:
    """Whatever the agent saw lies in the replayed grid where the view says; the agent stands where
    its actions have led it.
    """
    env = make_batched_env(level, 1, seed=7, backend=backend)
    seen, actions = (
        env.reset(),
        np.random.default_rng(0).choice(6, size=60, p=[0.15, 0.15, 0.4, 0.1, 0.1, 0.1]).tolist(),
    )
    steps: list[dict[str, Any]] = []
    for action in actions:
        steps.append(
            {
                "view": seen.images[0].tobytes().hex(),
                "direction": int(seen.directions[0]),
                "action": action,
            }
        )
        step = env.step(np.array([action]))
        seen = step.current
        if step.done[0]:
            break
    env.close()
    skipped = len(steps) // 3
    line = {"number": 0, "actions": [step["action"] for step in steps[:skipped]]}
    header = {"level": level, "num_distractors": None, "seed": 7, "env": 0}
    poses = replay(header, Episode(line, steps[skipped:]))
    assert poses is not None and len(poses) == len(steps) - skipped + 1
    for pose, recorded in zip(poses, steps[skipped:], strict=False):
        view = np.frombuffer(bytes.fromhex(recorded["view"]), dtype=np.uint8).reshape(7, 7, 3)
        grid = np.frombuffer(bytes.fromhex(pose.grid), dtype=np.uint8).reshape(pose.width, -1, 3)
        fx, fy = [(1, 0), (0, 1), (-1, 0), (0, -1)][pose.direction]
        for column, row in np.argwhere(view[:, :, 0] > 0):
            x, y = (
                pose.x + fx * (6 - row) - fy * (column - 3),
                pose.y + fy * (6 - row) + fx * (column - 3),
            )
            inside = 0 <= x < grid.shape[0] and 0 <= y < grid.shape[1]
            if inside and (column, row) != (3, 6):
                assert (grid[x, y] == view[column, row]).all()


def test_an_episode_that_looks_different_today_is_not_shown_as_if_it_did_not(
    compared: Path,
) -> None:
    recorded = read_trace(trace_files(compared / "student_alone" / "seed_0")[0])
    header, first = recorded.header, recorded.episodes[0]
    assert replay(header, first) is not None
    turned = [{**step, "direction": (step["direction"] + 1) % 4} for step in first.steps]
    assert replay(header, Episode(first.line, turned)) is None
    assert replay({**header, "seed": 99}, first) is None
    assert replay({**header, "level": "Corridor"}, first) is None
    assert replay(header, Episode({**first.line, "actions": [99]}, first.steps)) is None
    assert replay(header, Episode({**first.line, "actions": None}, first.steps)) is None


def test_each_level_of_a_curriculum_is_recorded_and_played_again(tmp_path: Path) -> None:
    stage = "env.curriculum=[{level: BabyAI-GoToObj-v0, steps: 32}]"
    folder = make_traced_run(
        config_of(
            "student_alone", tmp_path / "run", stage, "run.total_steps=96", "run.trace_every=100"
        )
    )
    recorded = [read_trace(path) for path in trace_files(folder).values()]
    assert [(one.header["env_steps"], one.header["level"]) for one in recorded] == [
        (0, "BabyAI-GoToObj-v0"),
        (32, "BabyAI-GoToRedBallNoDists-v0"),
        (80, "BabyAI-GoToRedBallNoDists-v0"),
    ]
    assert (
        recorded[1].episodes[0].line["number"] == 0
        and recorded[1].episodes[0].line["actions"] == []
    )
    assert all(replay(one.header, episode) for one in recorded for episode in one.episodes)


# --- the run folder -------------------------------------------------------------------------------


def test_traces_after_the_last_checkpoint_are_dropped_and_made_again(tmp_path: Path) -> None:
    config = config_of("student_alone", tmp_path / "run")
    with RunFolder(tmp_path / "run", config, VERSIONS) as run:
        run.trace(Trace(0, ({"kind": "trace", "n": 1},)))
        run.checkpoint(Checkpoint(16, {}, {}), None)
        run.trace(Trace(16, ({"kind": "trace", "n": 2},)))
        assert list(trace_files(tmp_path / "run")) == [0, 16]
    with RunFolder(tmp_path / "run", config, VERSIONS) as run:
        assert run.resume() is not None and list(trace_files(tmp_path / "run")) == [0]
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with RunFolder(tmp_path / "run", config, VERSIONS) as run:
        assert run.resume() is None and trace_files(tmp_path / "run") == {}


# --- nothing in it can run ------------------------------------------------------------------------


def test_no_text_can_leave_the_element_that_holds_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == 2 and text.count("</script") == 2 and "<img" not in text
    assert HOSTILE in data_of(page)["texts"]
    assert set("<>&\u2028") & set(embedded_json({"a": HOSTILE})) == set() and json.loads(
        embedded_json({"a": HOSTILE})
    ) == {"a": HOSTILE}
    titled = make_page(
        {
            "title": HOSTILE,
            "texts": ["@@SCRIPT@@"],
            "views": [],
            "grids": [],
            "runs": [],
            "pages": [],
            "page": 0,
        }
    )
    assert titled.count("<script") == 2 and '["@@SCRIPT@@"]' in titled


def test_the_page_names_nothing_outside_itself(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == ["data:,", "#t=0"]
    assert "default-src &#x27;none&#x27;" in text and "unsafe" not in text.split("<style>")[0]
    assert re.findall(r"https?://[^\s\"']*", text) == ["http://www.w3.org/2000/svg"]


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose method takes notes about steps and about the rollout."""
    folder = tmp_path_factory.mktemp("noted") / "reward_program" / "seed_0"
    programs = "method.programs=['distance_before - distance']"
    make_traced_run(config_of("reward_program", folder, programs))
    path = trace_files(folder)[0]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    told = {"kind": "note", "asked": HOSTILE, "answered": "yes", "changed": "+0.1"}
    lines += [{**told, "step": 3}, {**told, "step": 99}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_notes_stand_at_their_step_or_with_the_rollout(noted: Path) -> None:
    data = data_of(viewer.make_viewer(noted))
    rollout, texts = data["runs"][0]["rollouts"][0], data["texts"]
    steps = [step for episode in rollout["episodes"] for step in episode["steps"]]
    assert [place for place, step in enumerate(steps) if "notes" in step] == [3]
    assert texts[steps[3]["notes"][0]["asked"]] == HOSTILE
    assert [texts[note["changed"]] for note in rollout["notes"]] == [
        "the student is paid by distance_before - distance"
    ]
    assert data["runs"][0]["facts"]["method"] == "RewardProgram"


def test_a_trace_from_before_there_were_notes_is_shown(noted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(noted, tmp_path / "old" / "seed_0")
    for path in trace_files(folder).values():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        del lines[0]["method"]
        kept = [line for line in lines if line["kind"] != "note"]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    data = data_of(viewer.make_viewer(folder))
    assert data["runs"][0]["facts"]["method"] is None
    assert data["runs"][0]["rollouts"][0]["notes"] == []


@pytest.mark.parametrize("step", ["three", 1.5, True])
def test_a_note_without_a_place_is_refused(noted: Path, tmp_path: Path, step: Any) -> None:
    path = tmp_path / "step_000000.jsonl"
    header = trace_files(noted)[0].read_text().splitlines()[0]
    note = {"kind": "note", "step": step, "asked": "", "answered": "", "changed": ""}
    path.write_text(header + "\n" + json.dumps(note) + "\n")
    with pytest.raises(CheckpointError, match="line 2: step is"):
        read_trace(path)


# --- in a browser ---------------------------------------------------------------------------------


def browse(address: str, profile: Path) -> tuple[str, list[str]]:
    """The document after its scripts have run, and what they wrote to the console."""
    skip_without_browser()
    done = dump(address, profile)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@in_a_browser
def test_it_opens_from_a_disk_and_shows_the_step_that_the_address_asks_for(
    page: Path, tmp_path: Path
) -> None:
    document, console = browse(f"{page.as_uri()}?run=0#rollout=0&episode=0&t=3", tmp_path)
    assert console == []
    assert 'data-step="3"' in document and "Step 4 of " in document
    title, mission = (
        re.search("<title>(.*?)</title>", document),
        re.search('<p id="mission">(.*?)</p>', document),
    )
    assert title and mission and title.group(1).startswith("Loop viewer: ")
    assert mission.group(1).startswith("&lt;/script&gt;&lt;script&gt;") and "<img" not in document
    step = data_of(page)["runs"][0]["rollouts"][0]["episodes"][0]["steps"][3]
    badge = re.search(r'aria-label="f = (.*?)"', document)
    assert badge and badge.group(1) == {1.0: "+1", -1.0: "−1", 0.0: "0"}[step["signal"]]


@in_a_browser
def test_notes_are_shown_at_their_step_as_plain_text(noted: Path, tmp_path: Path) -> None:
    page = viewer.make_viewer(noted, tmp_path / "notes.html")
    document, console = browse(f"{page.as_uri()}?run=0#rollout=0&episode=0&t=3", tmp_path)
    assert console == []
    body = re.search(r'<article id="notes"[^>]*>(.*?)</article>', document, re.DOTALL)
    assert body and "&lt;/script&gt;" in body.group(1) and "<small>answered</small>yes" in document
    assert "the student is paid by distance_before - distance" in body.group(1)


@pytest.fixture(scope="module")
def driven() -> Iterator[Browser]:
    with drive() as session:
        yield session


@pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver")
@pytest.mark.parametrize(
    ("change", "place", "said"),
    [
        # What an LLM wrote is scored beside an update: without one there is no probability.
        ({"vocabulary": "free"}, "learning", "No update contained this step."),
        ({"vocabulary": "free", "signal": "none"}, "learning", "weights do not change here"),
        ({"vocabulary": "free"}, "observation", "The prompt, as the LLM read it"),
        ({"end": "terminated", "won": False}, "outcome", "ended without success"),
        ({"end": "terminated", "won": False, "reward": 0.5}, "episode", "failed"),
        ({"end": "terminated", "won": True, "reward": 0.0}, "episode", "success"),
        ({"end": "truncated", "won": False}, "episode", "out of time"),
        ({"end": "terminated", "won": None}, "outcome", "end: the task ended"),
        ({"end": "terminated", "reward": 0.9}, "outcome", "the task is solved"),  # an older trace
        ({"signal": "constant"}, "outcome", "f is always 1"),
        ({"signal": "td"}, "outcome", "f is the sign of A′."),
        ({}, "teacher", "M(x | s), from which x was drawn."),
        ({"agent": "own"}, "teacher", "The distribution from which the agent drew x."),
        ({"agent": "own"}, "learning", "which need not be the LLM's."),
    ],
)
def test_what_stands_on_the_page_is_so_whatever_was_recorded(
    compared: Path, tmp_path: Path, driven: Browser, change: dict[str, Any], place: str, said: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(compared / ARMS[0] / "seed_0", folder)
    path = trace_files(folder)[0]
    header, episode, *steps = [json.loads(line) for line in path.read_text().splitlines()]
    header |= {key: value for key, value in change.items() if key in header}
    if header["vocabulary"] == "free":
        episode["candidates"] = None
        for step in steps:
            step["llm"] = {**(step.get("llm") or {}), "before": None, "after": None, "later": None}
    first = steps[0] | {key: value for key, value in change.items() if key not in header}
    rest = [line for line in steps if line["kind"] == "update"]
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, episode, first, *rest)))
    made = viewer.make_viewer(folder, tmp_path / "page.html", steps=[0])
    driven.open(made, 1280)
    assert driven.log("browser") == []
    assert said in driven.run(f"return document.getElementById('{place}').innerText")


@pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver")
@pytest.mark.parametrize(
    ("sign", "said"),
    [("random", "a fair coin"), ("inverted", "turned around"), ("positive", "always plus")],
)
def test_a_control_is_explained_as_one_and_not_opened_first(
    compared: Path, tmp_path: Path, driven: Browser, sign: str, said: str
) -> None:
    control = "a_control"  # comes first, by the name of its folder
    config = config_of(ARMS[0], tmp_path / control / "seed_0", f"feedback.sign={sign}")
    make_traced_run(config)
    shutil.copytree(compared / ARMS[0] / "seed_0", tmp_path / "b" / "seed_0")
    made = viewer.make_viewer(tmp_path)
    driven.open(made, 1280)
    shown = "return document.getElementById('facts').innerText"
    assert "with its sign" not in driven.run(shown)
    place = next(i for i, run in enumerate(data_of(made)["runs"]) if run["facts"]["sign"] == sign)
    driven.run(f"location.hash = 'run={place}&t=1'; fromAddress()")
    assert f"signal previous with its sign {sign}" in driven.run(shown)
    outcome = driven.run("return document.getElementById('outcome').innerText")
    assert "A control: " in outcome and said in outcome
    assert driven.log("browser") == []


@in_a_browser
def test_a_script_that_came_in_nevertheless_would_not_run(page: Path, tmp_path: Path) -> None:
    """Also shows that the tests beside this one would see an error."""
    broken = tmp_path / "broken.html"
    broken.write_text(
        page.read_text(encoding="utf-8").replace(
            "<footer>", "<script>document.title='owned'</script><footer>"
        ),
        encoding="utf-8",
    )
    document, console = browse(broken.as_uri(), tmp_path)
    assert (
        "<title>owned" not in document
        and len(console) == 1
        and "Content Security Policy" in console[0]
    )


@pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver")
def test_on_paper_there_are_two_sides_and_no_controls(page: Path) -> None:
    shown = """return ["select, button, input", ".pane", "[id^=printed]"].map((kind) =>
      [...document.querySelectorAll(kind)].filter((one) => one.getClientRects().length).length)"""
    with drive() as browser:
        browser.open(page, 1280)
        browser.run("document.getElementById('beside').click()")
        controls, sides, names = browser.run(shown)
        assert controls > 20 and (sides, names) == (2, 0)
        browser.cdp("Emulation.setEmulatedMedia", media="print")
        assert browser.run(shown) == [0, 2, 2]


HARNESS = """<!DOCTYPE html><title>waiting</title>\
<iframe id="narrow" width="360" height="700"></iframe>\
<iframe id="wide" width="1280" height="900"></iframe>
<script>
const found = {}, frame = (id) => document.getElementById(id);
const doc = (id) => frame(id).contentDocument;
const press = (id, key, more = {}) => doc(id).body.dispatchEvent(
  new (frame(id).contentWindow.KeyboardEvent)(
    "keydown", { ...more, key, bubbles: true, cancelable: true }));
const overflow = (id) => doc(id).documentElement.scrollWidth - doc(id).documentElement.clientWidth;
const load = (id, address) => new Promise((done) => {
  frame(id).onload = done; frame(id).src = address; });
(async () => {
  for (const id of ["narrow", "wide"]) {
    await load(id, "viewer.html");
    found[id] = [];
    const runs = JSON.parse(doc(id).getElementById("data").textContent).runs;
    for (const [place] of runs.entries()) {
      await load(id, "about:blank");
      await load(id, `viewer.html?run=${place}&rollout=1&t=1`);
      found[id].push([Number(doc(id).body.dataset.step), overflow(id)]);
    }
  }
  const at = () => Number(doc("wide").body.dataset.step);
  found.keys = ["ArrowRight", "ArrowRight", "ArrowLeft", "Home", "ArrowLeft", "End", "ArrowRight"]
    .map((key) => { press("wide", key); return at(); });
  const focus = (id) => {
    doc("wide").getElementById(id).focus(); doc("wide").getElementById(id).click();
    return doc("wide").activeElement.id; };
  found.focus = [focus("last"), focus("forward"), at(), focus("first"), focus("back"), at()];
  const chosen = () => Number(doc("wide").getElementById("episode").value);
  found.episodes = doc("wide").getElementById("episode").options.length;
  const bracket = (key) => {
    press("wide", key, { modifierAltGraph: true, ctrlKey: true, altKey: true });
    return chosen(); };
  found.brackets = [chosen(), bracket("]"), bracket("[")];
  press("wide", "ArrowRight", { ctrlKey: true });
  found.shortcut = at();
  doc("wide").getElementById("first").click();
  doc("wide").getElementById("speed").value = "5";
  doc("wide").getElementById("play").click();
  found.playing = doc("wide").getElementById("play").textContent;
  await new Promise((done) => setTimeout(done, 500));
  found.played = at();
  doc("wide").getElementById("play").click();
  const arm = doc("wide").getElementById("arm");
  arm.value = "0";
  arm.dispatchEvent(new Event("change"));
  found.chosen = doc("wide").getElementById("facts").textContent;
  found.steps = Number(doc("wide").getElementById("slider").max) + 1;
  found.unnamed = [
    ...doc("wide").querySelectorAll("button, select, input, svg[role=img]")].filter((one) =>
    !one.getAttribute("aria-label") && !one.closest("label, button")?.textContent.trim()).length;
  const at2 = () => [at(), Number(doc("wide").getElementById("slider-2").value)];
  doc("wide").getElementById("first").click();
  doc("wide").getElementById("beside").click();
  found.sides = [doc("wide").querySelectorAll(".pane").length, overflow("wide"), at2()];
  press("wide", "ArrowRight");
  found.both = at2();
  doc("wide").getElementById("together").checked = false;
  doc("wide").getElementById("last-2").focus();
  press("wide", "Home");
  found.second = at2();
  found.shared = new URLSearchParams(doc("wide").getElementById("link").hash.slice(1)).has("run2");
  const ids = [...doc("wide").querySelectorAll("[id]")].map((one) => one.id);
  found.twice = ids.filter((id, place) => ids.indexOf(id) !== place);
  found.dangling = [...doc("wide").querySelectorAll("[for], [aria-labelledby]")].filter((one) =>
    !doc("wide").getElementById(
      one.getAttribute("for") ?? one.getAttribute("aria-labelledby"))).length;
  const address = doc("wide").getElementById("link-2").hash;
  await load("wide", "about:blank");
  await load("wide", `viewer.html${address}`);
  found.again = [doc("wide").querySelectorAll(".pane").length, at2()];
  doc("wide").getElementById("beside").click();
  found.closed = doc("wide").querySelectorAll(".pane").length;
  await load("narrow", "about:blank");
  await load("narrow", `viewer.html${address}`);
  found.phone = overflow("narrow");
  document.title = JSON.stringify(found);
})().catch((error) => { document.title = `failed: ${error}`; });
</script>"""


@pytest.fixture
def served(page: Path, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A folder with the page and one that drives it, over HTTP; the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            asked.append(self.path)

    shutil.copy(page, tmp_path / "viewer.html")
    (tmp_path / "harness.html").write_text(HARNESS, encoding="utf-8")
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path))
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


@in_a_browser
def test_it_steps_plays_and_fits_a_phone_and_asks_for_nothing(
    served: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, asked = served
    document, console = browse(f"{address}/harness.html", tmp_path / "profile")
    title = re.search("<title>(.*?)</title>", document)
    assert title and title.group(1).startswith("{"), document[:300]
    found = json.loads(title.group(1).replace("&amp;", "&"))
    assert found["narrow"] == found["wide"] == [[1, 0]] * 3, (
        "each run shows step 1 and nothing sticks out"
    )
    last = found["keys"][5]
    assert found["keys"] == [2, 3, 2, 0, 0, last, last] and last >= 3
    assert found["focus"] == ["last", "forward", last, "first", "back", 0], "the focus stays"
    first = found["brackets"][0]
    assert found["brackets"] == [first, min(first + 1, found["episodes"] - 1), first]
    assert found["shortcut"] == 0, "the browser's own shortcuts are its own"
    assert (
        found["playing"] == "❚❚ Pause" and 1 <= found["played"] <= 3
    )  # half a second at five steps a second, on a busy machine
    assert (
        "an LLM teaches a student" in found["chosen"]
        and found["steps"] >= 1
        and found["unnamed"] == 0
    )
    assert found["sides"] == [2, 0, [0, 0]] and found["both"] == [1, 1]
    assert found["second"] == [1, 0], "the keys go to the side with the focus"
    assert found["shared"] and found["twice"] == [] and found["dangling"] == 0
    assert found["again"] == [2, [1, 0]] and found["closed"] == 1 and found["phone"] == 0
    assert console == []
    assert {path.split("?")[0] for path in asked} - {"/favicon.ico"} == {
        "/harness.html",
        "/viewer.html",
    }
