"""One decision about the optimizer, kept from start to start; a change on purpose takes the moments along."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peer.inner import InnerOptimizer, make_inner_optimizer
from peer.moments import choose_optimizer, fit_moments, saved_kind
from swarm.config import InnerConfig
from tests.unit.test_inner import Toy

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ROOM, NO_ROOM = 1 << 40, 1000


@pytest.mark.parametrize(
    ("run", "device", "free", "wish", "saved", "expected"),
    [
        ("adamw8bit", CPU, ROOM, None, None, "adamw"),
        ("adamw8bit", CPU, NO_ROOM, None, None, "adamw8bit"),
        ("adamw8bit", GPU, ROOM, None, None, "adamw8bit"),
        ("adamw8bit", CPU, ROOM, False, None, "adamw8bit"),
        ("adamw8bit", GPU, ROOM, True, None, "adamw"),
        ("adamw8bit", CPU, ROOM, None, "adamw8bit", "adamw8bit"),
        ("adamw8bit", GPU, NO_ROOM, None, "adamw", "adamw"),
        ("adamw8bit", CPU, ROOM, True, "adamw8bit", "adamw"),
        ("adamw8bit", CPU, ROOM, False, "adamw", "adamw8bit"),
        ("lion8bit", CPU, ROOM, None, None, "lion"),
        ("lion8bit", CPU, ROOM, None, "adamw", "lion"),
        ("adamw", CPU, ROOM, False, None, "adamw"),
        ("sgd", CPU, ROOM, True, None, "sgd"),
    ],
)
def test_a_wish_comes_first_then_what_is_saved_then_what_suits_the_machine(
    run: str, device: torch.device, free: int, wish: bool | None, saved: str | None, expected: str
) -> None:
    config = InnerConfig.model_validate({"optimizer": run})
    kind, reason = choose_optimizer(config, device, 10_000, wish=wish, saved=saved, free=lambda: free)
    assert kind == expected and reason.startswith(f"{kind}")


def trained(run: str, kind: str, steps: int = 20) -> tuple[Toy, InnerOptimizer]:
    torch.manual_seed(3)
    model, config = Toy(), InnerConfig.model_validate({"optimizer": run})
    optimizer = make_inner_optimizer(config, model.named_parameters(), device=CPU, kind=kind)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) * 0.01
        optimizer.step(1e-3)
    return model, optimizer


@pytest.mark.parametrize("run", ["adamw8bit", "lion8bit"])
@pytest.mark.parametrize("back", [False, True], ids=["to fp32", "to 8 bits"])
def test_moments_come_along(run: str, back: bool) -> None:
    plain = run.removesuffix("8bit")
    old_kind, new_kind = (plain, run) if back else (run, plain)
    config = InnerConfig.model_validate({"optimizer": run})
    _, old = trained(run, old_kind)
    saved = {name: tensor.clone() for name, tensor in old.state_tensors().items()}
    assert saved_kind(config, saved) == old_kind
    _, new = trained(run, new_kind, steps=0)
    fitted, note = fit_moments(saved, new)
    assert fitted is not None and new_kind in note
    new.load_state_tensors(fitted)
    there, _ = fit_moments(new.state_tensors(), old)
    assert there is not None and there.keys() == saved.keys()
    assert all(int(there[name]) == 20 for name in saved if name.endswith("step") and run == "adamw8bit")
    plain_before, plain_after = (saved, there) if back else (fitted, fit_moments(there, new)[0])
    assert plain_after is not None
    for name, tensor in plain_before.items():
        if not name.endswith("step"):
            assert (plain_after[name] - tensor).norm() <= 0.05 * tensor.norm(), name


def test_what_fits_is_taken_as_it_is_and_anothers_moments_are_dropped_with_a_word() -> None:
    _, adamw = trained("adamw8bit", "adamw8bit")
    saved: dict[str, Any] = adamw.state_tensors()
    fitted, note = fit_moments(saved, adamw)
    assert fitted is not None and note == "" and all(fitted[name] is saved[name] for name in saved)
    _, lion = trained("lion8bit", "lion")
    fitted, note = fit_moments(saved, lion)
    assert fitted is None and "begin at zero" in note
