"""The embedded model: its tokenizer, what it is taught, and that the same seed makes the same
bytes.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from experiments.pretrain_embedded import Recipe, Stage, main, pretrain
from experiments.pretraining.measure import (
    card_figures,
    differences,
    label_value,
    zero_shot_figures,
)
from experiments.pretraining.noisy_bot import NoisyBot, make_noisy_bot
from experiments.pretraining.reading import Seen, ask, read_things, read_walls, target_place
from experiments.pretraining.samples import Mixture, Sample, draw_samples, span_corruption
from experiments.pretraining.states import FIRST_HELD_OUT_SEED, State, collect_episodes
from experiments.pretraining.tokenizer import (
    EOS_ID,
    FIRST_SENTINEL_ID,
    SENTINELS,
    make_tokenizer,
    save_tokenizer,
)
from experiments.pretraining.training import (
    ModelShape,
    TrainingPlan,
    learning_rate_factor,
    make_batches,
    make_model,
    save_model,
)
from lamorel_ext.agents.guidance import subgoals
from lamorel_ext.llm.loading import EMBEDDED
from lamorel_ext.prompts import (
    ACTION_NAMES,
    glam_prompt,
    glam_prompt_french,
    lamorel_prompt,
    with_feedback,
)

TRANSCRIPTS = (
    Path(__file__).resolve().parents[2].parent / "shared" / "oracle" / "babyai_text_train.jsonl.gz"
)
SENTENCES = (
    "You carry a blue key",
    "You see a wall 3 steps forward",
    "You see a red ball 2 steps left and 1 step forward",
)
FRENCH = (
    "Tu portes une key blue",
    "Tu vois un mur à 3 pas devant",
    "Tu vois une balle rouge 2 pas à gauche et 1 pas devant",
)
STATE = State("go to the red ball", SENTENCES, FRENCH, bot_action=2, action=0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


def spelt_out(tokenizer: Tokenizer, text: str) -> list[str]:
    """Pieces of a text that are letters or bytes, not words."""
    pieces = tokenizer.encode(text, add_special_tokens=False).tokens
    return [
        piece
        for piece in pieces
        if piece.startswith("<0x") or (len(piece) == 1 and piece.isalpha())
    ]


# --- tokenizer ------------------------------------------------------------------------------------


def test_prompts_guidance_and_feedback_are_made_of_whole_words(tokenizer: Tokenizer) -> None:
    missions = (
        "go to the red ball",
        "put a grey box next to the key on your left",
        "open the door after you pick up an object",
    )
    texts = [
        with_feedback(lamorel_prompt(mission, SENTENCES + FRENCH), f)
        for mission in missions
        for f in (1, -1, 0)
    ]
    texts += [
        with_feedback(glam_prompt(mission, [SENTENCES, FRENCH], ["toggle"]), 1)
        for mission in missions
    ]
    texts += [
        glam_prompt_french("go to the blue key", [FRENCH], []),
        *ACTION_NAMES,
        *(text for each in missions for text in subgoals(each)),
    ]
    assert {text: spelt_out(tokenizer, text) for text in texts if spelt_out(tokenizer, text)} == {}


def test_every_recorded_sentence_and_mission_is_made_of_whole_words(tokenizer: Tokenizer) -> None:
    if not TRANSCRIPTS.exists():
        pytest.skip("the transcripts of the original environment are not here")
    with gzip.open(TRANSCRIPTS, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    babyai = [record for record in records if record["instr"] is not None]
    texts = {
        sentence
        for record in records
        for sentence in record["descriptions"] + record["descriptions_fr"]
    }
    texts |= {record["mission"] for record in babyai}
    assert len(texts) > 1000
    assert [text for text in texts if spelt_out(tokenizer, text)] == []


def test_a_lamorel_prompt_is_some_dozens_of_tokens(tokenizer: Tokenizer) -> None:
    prompt = lamorel_prompt("go to the red ball", SENTENCES[1:])
    expected = (
        "Goal of the agent : go to the red ball \n Observation : You see a wall 3 steps forward , "
    ).split(" ")[:-1]
    expected += "You see a red ball 2 steps left and 1 step forward \n Action :".split(" ")
    assert [
        piece.lstrip("▁") for piece in tokenizer.encode(prompt, add_special_tokens=False).tokens
    ] == expected


@settings(max_examples=200)
@given(
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r▁")).filter(
        lambda text: not text.startswith(" ")
    )
)
def test_any_text_can_be_tokenised_and_comes_back(text: str) -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert 2 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_transformers_reads_the_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    save_model(make_model(ModelShape(16, 8, 16, 2, 1, 1), tokenizer.get_vocab_size(), 0), tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert (read.pad_token_id, read.eos_token_id, read.unk_token_id) == (0, 1, 2)
    assert read("turn left")["input_ids"] == [
        *tokenizer.encode("turn left", add_special_tokens=False).ids,
        EOS_ID,
    ]
    assert len(read("turn left", add_special_tokens=False)["input_ids"]) == 2
    assert len(read) == tokenizer.get_vocab_size()


# --- reading --------------------------------------------------------------------------------------


def test_sentences_are_read_in_both_languages() -> None:
    assert read_things(SENTENCES) == (Seen("red ball", "2 steps left and 1 step forward"),)
    assert read_things(FRENCH, french=True) == (
        Seen("balle rouge", "2 pas à gauche et 1 pas devant"),
    )
    assert read_things(["You see a locked grey door 2 steps right"]) == (
        Seen("grey door", "2 steps right"),
    )
    assert read_things(["Tu vois une porte verte fermée à clef 2 pas devant"], french=True) == (
        Seen("porte verte", "2 pas devant"),
    )
    assert read_walls(SENTENCES) == {"forward": "3 steps"}


def test_the_place_of_the_target_is_where_it_is_seen_first_or_else_the_wall_ahead() -> None:
    two = (*SENTENCES, "You see a red ball 1 step right")
    assert target_place("go to a red ball", two) == "2 steps left and 1 step forward"
    assert target_place("pick up a ball on your left", two) == "2 steps left and 1 step forward"
    assert target_place("go to the blue box", two) == "wall 3 steps"
    assert target_place("go to the blue box", two[2:]) == "wall not seen"


def test_questions_have_the_answers_that_the_sentences_give() -> None:
    rng = np.random.default_rng(0)
    answers = dict(ask(STATE, rng) for _ in range(2000))
    assert answers["where is the red ball?"] == "2 steps left and 1 step forward"
    assert answers["where is what you look for?"] == "2 steps left and 1 step forward"
    assert answers["what is 2 steps left and 1 step forward?"] == "a red ball"
    assert answers["on which side is the red ball?"] == "left"
    assert answers["where is the green key?"] == "not in sight"
    assert answers["how far is the wall forward?"] == "3 steps"
    assert answers["how far is the wall left?"] == "not in sight"
    assert answers["what do you carry?"] == "a blue key"
    assert answers["what is the goal?"] == "go to the red ball"


# --- samples --------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.lists(st.integers(300, 500), min_size=1, max_size=300), st.integers(0, 1000))
def test_the_target_of_span_corruption_fills_the_gaps_of_its_source(
    ids: list[int], seed: int
) -> None:
    sample = span_corruption(ids, np.random.default_rng(seed))
    sentinels = range(FIRST_SENTINEL_ID, FIRST_SENTINEL_ID + len(SENTINELS))
    spans: dict[int, list[int]] = {}
    for token in sample.target[:-1]:
        if token in sentinels:
            spans[token] = []
        else:
            spans[max(spans)].append(token)
    filled = [token for piece in sample.source[:-1] for token in spans.get(piece, [piece])]
    assert filled == ids
    assert sample.source[-1] == sample.target[-1] == EOS_ID


def test_the_noisy_bot_is_wrong_where_it_misjudges_and_says_nothing_about_held_out_missions() -> (
    None
):
    rng = np.random.default_rng(0)
    sure = NoisyBot(trust=1.0, misjudged={"2 steps left and 1 step forward": 5})
    blue = replace(STATE, mission="go to the blue ball")  # not in sight: the wall's distance counts
    assert sure.label(STATE, rng) is None
    assert sure.label(blue, rng) == 2
    assert sure.label(replace(STATE, mission="go to a ball"), rng) == 5
    assert sure.label(replace(blue, bot_action=None), rng) is None


def test_the_noisy_bot_is_random_in_the_share_of_answers_that_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    labels = [
        NoisyBot(0.4, {}).label(replace(STATE, mission="go to the blue ball"), rng)
        for _ in range(6000)
    ]
    share = labels.count(2) / len(labels)
    assert share == pytest.approx(0.4 + 0.6 / 6, abs=0.03)  # standard error 0.0065


def test_the_label_noise_is_the_first_that_fits_the_rule() -> None:
    recipe = Recipe()
    success = [
        label_value(make_noisy_bot(recipe.trust, recipe.misjudged_share, seed)).success
        for seed in range(recipe.misjudged_seed + 1)
    ]
    fits = [0.45 <= value <= 0.55 for value in success]
    assert fits == [False] * recipe.misjudged_seed + [True]


def test_labels_without_trust_are_worth_a_random_policy_and_without_noise_the_best() -> None:
    assert label_value(NoisyBot(0.0, {})).success == pytest.approx(
        0.264, abs=1e-3
    )  # METHOD: 26.4 %, return 0.155
    assert label_value(NoisyBot(0.0, {})).mean_return == pytest.approx(0.155, abs=1e-3)
    assert label_value(NoisyBot(1.0, {})).success > 0.999


def test_no_held_out_seed_is_ever_drawn() -> None:
    last = FIRST_HELD_OUT_SEED // 1_000_000 - 1
    assert collect_episodes({"BabyAI-GoToObj-v0": 1}, last)
    with pytest.raises(ValueError, match="held-out"):
        collect_episodes({"BabyAI-GoToObj-v0": 1}, last + 1)


def test_episodes_are_as_many_states_as_asked_for_and_the_same_again() -> None:
    wanted = {"BabyAI-GoToObj-v0": 50, "BabyAI-MixedTrainLocal-v0": 30}
    episodes = collect_episodes(wanted, 3)
    assert sum(map(len, episodes)) == 80
    assert episodes == collect_episodes(wanted, 3)
    assert episodes != collect_episodes(wanted, 4)


def test_action_samples_read_a_prompt_and_say_an_action(tokenizer: Tokenizer) -> None:
    episodes = collect_episodes({"BabyAI-GoToObj-v0": 60}, 0)
    mixture = Mixture(spans=0.0, question=0.0, action=1.0, subgoal=0.0)
    samples = list(
        islice(
            draw_samples(episodes, NoisyBot(0.0, {}), tokenizer, mixture, np.random.default_rng(0)),
            300,
        )
    )
    assert {tokenizer.decode(list(sample.target)) for sample in samples} == set(ACTION_NAMES)
    sources = [tokenizer.decode(list(sample.source)) for sample in samples]
    assert all(source.rstrip().endswith(":") and "Action" in source for source in sources)
    assert not any("red ball" in source.split("Observation")[0] for source in sources)


# --- training -------------------------------------------------------------------------------------


def test_batches_keep_within_their_tokens_and_lose_nothing() -> None:
    samples = [
        Sample((7,) * length, (8, EOS_ID))
        for length in np.random.default_rng(0).integers(1, 40, size=500)
    ]
    batches = list(make_batches(iter(samples), 100, np.random.default_rng(1)))
    assert max(max(len(sample.source) for sample in batch) * len(batch) for batch in batches) <= 100
    assert sorted(len(sample.source) for batch in batches for sample in batch) == sorted(
        len(sample.source) for sample in samples
    )


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    plan = TrainingPlan(num_steps=110, warmup_steps=10)
    factors = [learning_rate_factor(step, plan) for step in (0, 9, 10, 60, 110)]
    assert factors == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.0])


def miniature(seed: int = 0) -> Recipe:
    few = Mixture(spans=0.25, question=0.25, action=0.25, subgoal=0.25)
    return Recipe(
        seed=seed,
        levels={"GoToObj": 40, "MixedTrainLocal": 40},
        shape=ModelShape(16, 8, 16, 2, 1, 1),
        reading=Stage(2, few),
        mixed=Stage(3, few),
        tokens_per_batch=512,
        num_questions=8,
    )


def test_the_same_seed_makes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        pretrain(tmp_path / name, miniature(seed))
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (
            tmp_path / "again" / name
        ).read_bytes(), name
    assert (tmp_path / "first" / "model.safetensors").read_bytes() != (
        tmp_path / "other" / "model.safetensors"
    ).read_bytes()


def test_the_command_line_chooses_what_the_card_then_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Recipe] = []
    monkeypatch.setattr(
        "experiments.pretrain_embedded.pretrain", lambda folder, recipe: asked.append(recipe) or 0
    )
    flags = ["--seed", "3", "--trust", "0.75", "--d-model", "16", "--num-layers", "1"]
    assert main(["--output", str(tmp_path / "new"), *flags]) == 0
    assert main(["--output", str(tmp_path / "new")]) == 0
    shape = replace(ModelShape(), d_model=16, num_layers=1)
    assert asked == [replace(Recipe(), seed=3, trust=0.75, shape=shape), Recipe()]
    assert asked[0].command.split()[3:] == ["--output", "DIR", *flags]

    pretrain(tmp_path / "other", replace(miniature(2), trust=0.75))
    card = (tmp_path / "other" / "README.md").read_text(encoding="utf-8")
    assert "--output DIR --seed 2 --trust 0.75 --d-model 16" in card
    assert "25% of its answers" in card
    assert "--check" not in card  # measures the shipped one


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--trust", "1.5", "--trust: must be between 0 and 1, got 1.5"),
        ("--num-heads", "0", "--num-heads: must be at least 1, got 0"),
        ("--d-model", "9.5", "--d-model: invalid number value: '9.5'"),
        ("--seed", "1000", "--seed: must be between 0 and"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_by_its_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str, said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--output", str(tmp_path), flag, value])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_differences_name_what_is_missing_and_what_is_apart() -> None:
    assert differences({"a": 0.5, "b": 1.0}, {"a": 0.503, "b": 1.0}, 0.005) == []
    assert differences({"a": 0.5, "b": 1.0}, {"a": 0.51, "c": 1.0}, 0.005) == [
        "a: measured 0.5, the card says 0.51",
        "b: only measured",
        "c: only in the card",
    ]


# --- the shipped model ----------------------------------------------------------------------------


def test_the_shipped_model_does_what_its_card_says() -> None:
    written = card_figures((EMBEDDED / "README.md").read_text(encoding="utf-8"))
    measured = zero_shot_figures(EMBEDDED)
    assert (
        differences(measured, {name: written[name] for name in measured}, 0.005) == []
    )  # versions of PyTorch round differently
    assert 0.264 < measured["success"] < 0.8  # above random, far below the optimum


def test_the_shipped_model_is_small_and_has_a_head_of_its_own() -> None:
    assert (EMBEDDED / "model.safetensors").stat().st_size < 4_200_000
    assert json.loads((EMBEDDED / "config.json").read_text())["tie_word_embeddings"] is False


def test_the_shipped_tokenizer_is_the_one_that_the_code_makes(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_tokenizer(tokenizer, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text("utf-8")) == json.loads(
            (EMBEDDED / name).read_text("utf-8")
        )


def test_the_command_needs_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "--output" in capsys.readouterr().err
