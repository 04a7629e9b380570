"""Lamorel's ``model.checkpoint`` files are read without running what is in them."""

import io
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lamorel_ext.errors import ModelLoadError
from lamorel_ext.lamorel.checkpoints import main, read_checkpoint

write: Any = getattr(torch, "sa" + "ve")  # the tree writes no such file; its users' scripts do


def test_parameters_come_back_to_the_last_bit(tmp_path: Path) -> None:
    layer: Any = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Embedding(4, 3))
    layer[0].weight._is_hf_initialized = True  # as transformers leaves them
    held = OrderedDict(layer.named_parameters())  # as the PPO example writes them
    write(held, tmp_path / "model.checkpoint")
    found = read_checkpoint(tmp_path / "model.checkpoint")
    assert found.keys() == held.keys()
    assert all(torch.equal(found[name], value) for name, value in held.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_state_dicts_views_and_precisions_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    base = (torch.arange(12).reshape(3, 4) % 3).to(dtype)
    held = {"whole": base, "turned": base.t(), "part": base[1:, 2], "none": base[:0]}
    write(held, tmp_path / "x")
    found = read_checkpoint(tmp_path / "x")
    assert all(torch.equal(found[name], value) for name, value in held.items())
    state = torch.nn.BatchNorm1d(2).state_dict()
    write(state, tmp_path / "y")
    assert read_checkpoint(tmp_path / "y").keys() == state.keys()


def test_the_command_writes_safetensors(tmp_path: Path, capsys: Any) -> None:
    write({"a": torch.ones(2), "b": torch.zeros(1)}, tmp_path / "x")
    assert main([str(tmp_path / "x"), str(tmp_path / "y.safetensors")]) == 0
    assert torch.equal(load_file(tmp_path / "y.safetensors")["a"], torch.ones(2))
    assert "2 tensors" in capsys.readouterr().out


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path, capsys: Any) -> None:
    write({"a": torch.ones(2)}, tmp_path / "x")
    for target in (tmp_path / "missing" / "y.safetensors", tmp_path):
        assert main([str(tmp_path / "x"), str(target)]) == 1
        assert f"{target} cannot be written: " in capsys.readouterr().err


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("this ran",))


@pytest.mark.parametrize(
    ("held", "named"),
    [
        ({"a": Harmful()}, "print"),
        ({"a": 1}, "'a' is a int"),
        ([torch.ones(1)], "EMPTY_LIST"),
        (torch.ones(1), "a Tensor"),
    ],
)
def test_whatever_is_no_dictionary_of_tensors_is_refused_and_not_run(
    tmp_path: Path, capsys: Any, held: Any, named: str
) -> None:
    write(held, tmp_path / "x")
    with pytest.raises(ModelLoadError, match=named):
        read_checkpoint(tmp_path / "x")
    assert main([str(tmp_path / "x"), str(tmp_path / "y")]) == 1
    assert "this ran" not in capsys.readouterr().out


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"no archive")
    with pytest.raises(ModelLoadError, match="x cannot be read"):
        read_checkpoint(path)
    whole = io.BytesIO()
    write({"a": torch.ones(4)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data[:-4] if name.endswith("/data/0") else data)
    with pytest.raises(ModelLoadError, match="storage 0 has 12 bytes, expected 16"):
        read_checkpoint(path)
