"""The transcript checker: what was recorded from the original, and that nothing escapes it."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.check_oracle import check_file, main
from lamorel_ext.envs import BabyAITextEnv, describe
from lamorel_ext.envs.babyai.transcripts import box_contents, grid_codes, thing_record
from lamorel_ext.prompts import ACTION_NAMES, glam_prompt, lamorel_prompt

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "oracle" / "babyai_text_train.jsonl.gz"
LEFT, FORWARD = 0, 2


def record_episode(
    seed: int, actions: list[int], level_id: str = "BabyAI-GoToRedBallNoDists-v0"
) -> list[dict[str, Any]]:
    """An episode of a go-to level in one room in the format of the transcripts."""
    env = BabyAITextEnv(level_id)
    observation, info = env.reset(seed=seed)
    level, lines = env.level, []
    meant: Any = level.instrs.desc  # type: ignore[attr-defined]
    sentences: list[list[str]] = []
    names: list[str] = []
    for t, action in enumerate([*actions, None]):
        sentences.append(info["descriptions"])
        state = {
            "id": t, "level": env.level_id, "seed": seed, "episode": 0, "t": t, "width": 8,
            "height": 8, "grid": grid_codes(level.grid), "box_contents": box_contents(level.grid),
            "agent_pos": [int(x) for x in level.agent_pos], "agent_dir": int(level.agent_dir),
            "carrying": thing_record(level.carrying), "mission": level.mission,
            "step_count": level.step_count, "max_steps": level.max_steps,
            "see_through_walls": False, "rooms": {"size": 8, "rows": 1, "cols": 1},
            "instr": {
                "kind": "goto", "strict": False,
                "desc": {"type": meant.type, "color": meant.color, "loc": None},
            },
            "image": observation["image"].reshape(-1).tolist(),
            "descriptions": info["descriptions"],
            "descriptions_fr": list(describe(observation["image"], language="fr")),
            "glam_prompt": glam_prompt(
                level.mission, sentences[-3:], names[-2:] if t > 1 else names,
            ),
            "lamorel_prompt": lamorel_prompt(level.mission, info["descriptions"]),
            "action_id": action, "after": None,
        }  # fmt: skip
        if action is not None:
            observation, reward, terminated, truncated, info = env.step(action)
            state["after"] = {
                "reward": reward,
                "done": terminated or truncated,
                "descriptions": info["descriptions"],
            }
            names.append(ACTION_NAMES[action])
        lines.append(state)
    return lines


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return path


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    return record_episode(7, [LEFT, FORWARD, LEFT, LEFT])


@pytest.mark.skipif(
    not RECORDED.exists(), reason="the recorded transcripts are not beside this repository"
)
def test_everything_recorded_from_the_original_is_reproduced() -> None:
    comparison = check_file(RECORDED)
    assert sum(comparison.differing.values()) == 0, comparison.shown
    assert comparison.compared["image"] == 4208 and comparison.compared["reward"] == 4012
    assert (
        comparison.compared["glam_prompt"] == 3528 and comparison.compared["lamorel_prompt"] == 3711
    )
    assert comparison.compared["draw"] == 165


def test_a_faithful_transcript_passes_and_the_last_line_counts(
    tmp_path: Path, lines: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write(tmp_path / "good.jsonl.gz", lines))]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["states"], report["mismatches"]) == (5, 0)
    assert (
        report["compared"]["glam_prompt"] == 5
        and report["compared"]["reward"] == 4
        and report["compared"]["draw"] == 1
    )


def test_a_level_that_speaks_french_may_be_recorded_in_either_language(tmp_path: Path) -> None:
    french = record_episode(3, [LEFT, FORWARD], "BabyAI-GoToFrench-v0")
    assert french[0]["descriptions"] == french[0]["descriptions_fr"]
    assert main([str(write(tmp_path / "french.jsonl.gz", french))]) == 0
    english = record_episode(3, [LEFT, FORWARD], "BabyAI-GoToLocal-v0")
    for line in english:
        line["descriptions"] = line["descriptions_fr"]
    assert main([str(write(tmp_path / "english.jsonl.gz", english))]) == 1


TAMPERED: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "image": lambda lines: lines[1]["image"].__setitem__(0, 9),
    "descriptions": lambda lines: lines[2]["descriptions"].append(
        "You see a red ball 9 steps forward"
    ),
    "descriptions_fr": lambda lines: lines[2].__setitem__("descriptions_fr", []),
    "glam_prompt": lambda lines: lines[3].__setitem__("glam_prompt", lines[3]["glam_prompt"] + " "),
    "lamorel_prompt": lambda lines: lines[0].__setitem__(
        "lamorel_prompt", lines[0]["lamorel_prompt"].strip(":")
    ),
    "mission": lambda lines: lines[1].__setitem__("mission", "go to a red ball"),
    "max_steps": lambda lines: lines[1].__setitem__("max_steps", 65),
    "state": lambda lines: lines[1].__setitem__("agent_dir", (lines[1]["agent_dir"] + 1) % 4),
    "reward": lambda lines: lines[0]["after"].__setitem__("reward", 0.5),
    "done": lambda lines: lines[0]["after"].__setitem__("done", True),
    "after": lambda lines: lines[0]["after"].__setitem__("descriptions", []),
    "draw": lambda lines: lines[0].__setitem__("seed", 8),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_tampered_transcript_is_noticed(
    kind: str, tmp_path: Path, lines: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    tampered = copy.deepcopy(lines)
    TAMPERED[kind](tampered)
    assert main([str(write(tmp_path / "bad.jsonl.gz", tampered))]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out.splitlines()[-1])["differing"][kind] >= 1
    assert kind in output.err


def test_a_file_that_cannot_be_read_is_answered_in_one_line(
    tmp_path: Path, lines: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "good.jsonl.gz", lines).read_bytes()
    cut, plain, broken = tmp_path / "cut.gz", tmp_path / "plain.gz", tmp_path / "broken.gz"
    cut.write_bytes(good[: len(good) // 2])
    plain.write_text("{}\n")
    broken.write_bytes(gzip.compress(b'{"id": 0\n'))
    impossible = write(tmp_path / "impossible.gz", [{**lines[0], "grid": [[9999] * 8] * 8}])
    gap = write(tmp_path / "gap.gz", [lines[0], lines[2]])
    lacking = write(
        tmp_path / "lacking.gz",
        [{name: value for name, value in lines[0].items() if name != "grid"}],
    )
    expected = {
        tmp_path / "absent.gz": "No such file",
        cut: "cannot be read",
        plain: "gzip",
        broken: "line 1 is not JSON",
        gap: "t = 2",
        impossible: "no possible state",
        lacking: "lacks grid",
    }
    for path, message in expected.items():
        assert main([str(path)]) == 2
        output = capsys.readouterr()
        assert output.out == "" and message in output.err and len(output.err.splitlines()) == 1, (
            output.err
        )
