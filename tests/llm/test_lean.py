"""Stand-ins for what transformers imports without need: absent until used, then the real thing."""

from __future__ import annotations

import builtins
import subprocess
import sys

import torch

from lamorel_ext.llm.lean import LATER, Later, lean_imports


def ran(script: str) -> str:
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_a_stand_in_is_the_real_thing_once_it_is_used() -> None:
    fraction = Later("fractions", "Fraction")
    assert fraction(1, 2) == 0.5
    assert isinstance(fraction(1, 2), fraction)
    assert not isinstance(0.5, fraction)
    assert fraction.from_float(0.25) == fraction(1, 4)

    class Half(fraction):
        pass

    assert issubclass(Half, fraction)


def test_nothing_is_an_instance_of_what_nobody_imported() -> None:
    absent = Later("no_such_module", "Thing")
    assert not isinstance(object(), absent)
    assert not isinstance(object(), (int, absent))
    assert not issubclass(int, absent)
    assert "no_such_module.Thing" in repr(absent)


def test_imports_and_marks_are_as_before_afterwards() -> None:
    names = ("allow_in_graph", "disable")
    before = [builtins.__import__, torch.nn.init.normal_, vars(torch).get("_dynamo")]
    marks = [getattr(torch.compiler, name) for name in names]
    with lean_imports(), lean_imports():
        assert builtins.__import__ is not before[0]
    after = [builtins.__import__, torch.nn.init.normal_, vars(torch).get("_dynamo")]
    assert after == before
    assert [getattr(torch.compiler, name) for name in names] == marks


def test_only_transformers_gets_stand_ins() -> None:
    with lean_imports():
        from scipy.optimize import linear_sum_assignment
    assert not isinstance(linear_sum_assignment, Later)
    assert linear_sum_assignment.__module__.startswith("scipy")


def test_a_tensor_with_memory_is_filled_and_one_without_is_left() -> None:
    with lean_imports():
        torch.nn.init.normal_(filled := torch.zeros(1000), std=2.0)
        torch.nn.init.normal_(meta := torch.zeros(3, device="meta"))
        embedding = torch.nn.Embedding(5, 4)
    assert 1.8 < float(filled.std()) < 2.2
    assert meta.is_meta
    assert float(embedding.weight.detach().abs().min()) > 0


def test_the_compiler_can_be_had_during_and_after_a_lean_import() -> None:
    script = (
        "import torch\n"
        "from lamorel_ext.llm.lean import lean_imports\n"
        "with lean_imports():\n"
        "    from transformers import T5ForConditionalGeneration\n"
        "    import os, sys; assert 'torch._dynamo' not in sys.modules\n"
        "    within = 'pass'\n"
        "    for other in ('import torch._dynamo', 'torch._dynamo.config.verbose'):\n"
        "        if os.fork() == 0:  # transformers is imported once for all three\n"
        "            within = other\n"
        "            break\n"
        "        assert os.wait()[1] == 0, other\n"
        "    exec(within)\n"
        "doubled = torch.compile(lambda x: x * 2, backend='eager')\n"
        "print(doubled(torch.ones(1)).item(), torch._dynamo.__name__)\n"
    )
    assert ran(script).splitlines() == ["2.0 torch._dynamo"] * 3


def test_a_lean_import_leaves_out_what_it_names() -> None:
    script = (
        "from lamorel_ext.llm.lean import LATER, lean_imports\n"
        "import sys\n"
        "with lean_imports():\n"
        "    from transformers import AutoModelForCausalLM, T5ForConditionalGeneration\n"
        "    from transformers.models.llama import modeling_llama\n"
        "print([name for name in LATER if name in sys.modules])\n"
    )
    assert LATER
    # transformers 5.17 gets at the last one in a way of its own.
    assert ran(script) in ("[]", "['torch.distributed.tensor']")
