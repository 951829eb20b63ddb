"""What gradient checkpointing `auto` is decided by: the paper's formula, and the memory that is free."""

import pytest
import torch

from dumbo.bridge import memory
from tests import builders

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return builders.build_tiny_model(64)


def test_activations_follow_the_formula(model):
    layers = 34 * 3 * 50 * 32 * 2
    assert memory.activation_bytes(model, 3, 50, bytes_per_value=2) == layers + 3 * 50 * 3 * 4 * 64
    assert memory.activation_bytes(model, 3, 50, bytes_per_value=4) == 2 * layers + 3 * 50 * 3 * 4 * 64
    assert memory.activation_bytes(torch.nn.Linear(2, 2), 3, 50, 2) == 0


def test_the_state_is_weights_gradients_and_two_moments(model):
    count = sum(parameter.numel() for parameter in model.parameters())
    assert memory.state_bytes(model) == 4 * 4 * count


def test_it_is_on_where_activations_do_not_fit(model, monkeypatch):
    needed = memory.activation_bytes(model, 8, 512, 4)
    count = 4 * sum(parameter.numel() for parameter in model.parameters())
    for free, expected in ((needed / 0.8 + 3 * count + 2**20, False), (needed, True), (1, True)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: int(free))
        assert memory.choose_checkpointing(model, CPU, 8, 512, 4)[0] is expected


def test_main_memory_is_that_of_the_container_and_shared_by_the_processes_of_a_machine(monkeypatch):
    from dumbo import memory as machine

    monkeypatch.setattr(machine, "_container_limit", lambda: 2**20)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert memory.free_bytes(CPU) == 2**20
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free_bytes(CPU) == 2**18


def test_it_is_off_where_nothing_is_known(model, monkeypatch):
    assert memory.free_bytes(CPU) > 2**20
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    assert memory.choose_checkpointing(model, CPU, 8, 512, 4) == (
        False,
        "what the activations need cannot be estimated",
    )
    assert memory.choose_checkpointing(torch.nn.Linear(2, 2), CPU, 8, 512, 4)[0] is False
