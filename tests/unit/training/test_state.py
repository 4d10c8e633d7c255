import json

import pytest
import torch

from refocus.errors import ModelCorrupt
from refocus.training.state import load_state, save_state


def trained_optimizer():
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, betas=(0.8, 0.9))
    layer(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    return layer, optimizer


def test_an_optimizer_goes_on_from_disk_exactly_where_it_stopped(tmp_path):
    layer, optimizer = trained_optimizer()
    save_state({"layer": layer.state_dict(), "optimizer": optimizer.state_dict(), "step": 7}, tmp_path)
    state = load_state(tmp_path)
    again = torch.nn.Linear(3, 2)
    again.load_state_dict(state["layer"])
    resumed = torch.optim.AdamW(again.parameters(), lr=0.5)
    resumed.load_state_dict(state["optimizer"])
    for module, stepper in ((layer, optimizer), (again, resumed)):
        stepper.zero_grad()
        module(torch.arange(12.0).reshape(4, 3)).square().sum().backward()
        stepper.step()
    assert state["step"] == 7
    for ours, theirs in zip(layer.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_structure_comes_back_as_it_was(tmp_path):
    state = {"a": [1, 2.5, None, "x", True], "b": {0: (1, torch.arange(3)), 1: {}}, "c": {"0": torch.tensor(2)}}
    save_state(state, tmp_path)
    read = load_state(tmp_path)
    assert read["a"] == state["a"]
    assert isinstance(read["b"][0], tuple)
    assert torch.equal(read["b"][0][1], torch.arange(3))
    assert set(read["c"]) == {"0"}


def test_nothing_that_would_need_a_pickle_is_written(tmp_path):
    with pytest.raises(TypeError, match="set"):
        save_state({"a": {1, 2}}, tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "missing", "structure"])
def test_a_damaged_state_is_named(tmp_path, damage):
    save_state({"a": torch.arange(100.0)}, tmp_path)
    tensors, structure = tmp_path / "state.safetensors", tmp_path / "state.json"
    if damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:-50])
    elif damage == "missing":
        tensors.unlink()
    else:
        structure.write_text(json.dumps({"a": {"__tensor__": "/b"}}))
    with pytest.raises(ModelCorrupt, match="resume from an earlier checkpoint"):
        load_state(tmp_path)
