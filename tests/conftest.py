"""Every test is fast, ranks or slow, by one rule: what the file's text speaks of.

``ranks`` starts processes, ``slow`` builds or trains models or reads run after run, all else is
``fast``; ``make test-fast`` runs these, in less than a minute on one core. A marker that stands in
a file wins.
"""

import functools
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import wheel

KINDS = {
    "ranks": (
        "subprocess|warm|test_own_code|multiprocessing|num_workers|Browser|ThreadGroup|run_here"
    ),
    "slow": (
        "tiny_models|tiny_llm|student_fakes|updater_fakes|made_runs|fuzz_run_folders|embedded"
        "|load_host|ModelHost|load_matrix|training.loop|make_report|minigrid|Caller"
        "|lamorel_ext.lamorel"
    ),
}
"""Words of a file, the first kind that has one of them first."""
DEAREST = (
    "wheel own_environment wheel_recipes benchmarks own_code fsdp config several_clients"
    " lamorel_launch portable"
).split()
"""The files that take longest: begun last, one would leave the other processes without work. The
two of the wheel, with one between them, often share a process and so the installed wheel.
"""

# What a busy machine makes slow is not wrong, and what fails today fails tomorrow.
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


@functools.cache
def kind_of(path: Path) -> str:
    """The kind of the tests in a file."""
    text = path.read_text(encoding="utf-8")
    found = (kind for kind, words in KINDS.items() if re.search(rf"\b({words})\b", text))
    return next(found, "fast")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where only fast tests are wanted the other files are not even imported."""
    wanted = config.getoption("markexpr", "")
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if wanted == "fast" and is_test and kind_of(collection_path) != "fast" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that has no kind of its own, and put the dearest files first."""
    for item in items:
        if not any(item.get_closest_marker(kind) for kind in ("fast", *KINDS)):
            item.add_marker(kind_of(item.path))
    places = {f"test_{name}": place for place, name in enumerate(DEAREST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of a fresh environment with a wheel of this tree."""
    return wheel.install(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def user_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with everyday names in it."""
    return wheel.make_folder(tmp_path_factory.mktemp("user"))
