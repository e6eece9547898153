"""The inner optimizers of a peer, behind one interface.

Which implementation takes which parameter:

    kind        | matrices of >= 4096 elements | input embedding, and everything smaller
    adamw8bit   | bitsandbytes AdamW8bit       | torch AdamW (fused), fp32 state
    lion8bit    | bitsandbytes Lion8bit        | `_Lion`, fp32 state
    adamw, lion | torch AdamW (fused), `_Lion`: all parameters, state in the parameter's dtype
    sgd         | `_PlainSGD`: theta -= lr * grad, no state

The input embedding keeps fp32 moments because a batch touches few of its rows: one 8-bit block would then hold moments of
very different sizes under one scale (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", section 2.3).
The output head is dense in every batch and is quantized. The split is made with separate optimizers: in bitsandbytes
`optim_bits` in a parameter group is ignored, and overrides of its global manager leak by index into later optimizers.

Notable: all state is allocated at birth, so that a first step cannot run out of memory with half the parameters moved, and
so that saved state always has the same names. Norms and biases (one-dimensional tensors) are not decayed.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import Parameter

from swarm.config import InnerConfig
from swarm.errors import ConfigError, LocalError, StateError

MIN_8BIT_ELEMENTS: Final = 4096  # bitsandbytes' own limit: below it the scales and the loss of precision buy nothing

# The input embedding's name ends so in gpt_neox, gptj and llama, in this order.
INPUT_EMBEDDINGS: Final = ("embed_in.weight", "wte.weight", "embed_tokens.weight")

_CONSTANT_STATE: Final = ("qmap1", "qmap2")  # bitsandbytes' code books, shared by all parameters and never changed


class InnerOptimizer:
    """One or more torch optimizers that together own every trainable parameter, each parameter once.

    All public methods speak of flat names: the parameter's name, a slash, the name of the state tensor.
    """

    def __init__(self, kind: str, names: Mapping[Parameter, str], parts: Iterable[torch.optim.Optimizer]) -> None:
        self.kind = kind
        self._names = dict(names)
        self._parts = list(parts)
        for part in self._parts:
            for group_index, group in enumerate(part.param_groups):
                for index, parameter in enumerate(group["params"]):
                    _allocate_state(part, parameter, group_index, index)

    def step(self, learning_rate: float) -> None:
        """Applies the gradients at this learning rate. Parameters without a gradient stay."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()

    def zero_grad(self) -> None:
        """Drops all gradients and their memory."""
        for parameter in self._names:
            parameter.grad = None

    def state_bytes(self) -> int:
        """Returns the bytes of all state tensors; tensors that several parameters share count once."""
        unique = {
            value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
            for _, state in self._states()
            for value in state.values()
            if isinstance(value, Tensor)
        }
        return sum(unique.values())

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns the whole state by flat name: the live tensors (no copy), and step counts as int64 scalars."""
        return {
            f"{name}/{key}": value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int64)
            for name, state in self._states()
            for key, value in state.items()
            if key not in _CONSTANT_STATE
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over a state as `state_tensors` gave it, bit for bit, from any device.

        Raises StateError, with nothing changed, when names, shapes or dtypes are not those of this optimizer.
        """
        expected = self.state_tensors()
        if differing := sorted(expected.keys() ^ tensors.keys()):
            raise StateError(
                f"the saved optimizer state has {len(tensors)} tensors and {self.kind} needs {len(expected)}, "
                f"{differing[0]!r} for one is only on one side: remove the saved state to begin with zero moments"
            )
        for name, tensor in tensors.items():
            if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
                raise StateError(
                    f"the saved optimizer state {name!r} is {tensor.dtype} {tuple(tensor.shape)} and {self.kind} needs "
                    f"{expected[name].dtype} {tuple(expected[name].shape)}: remove the saved state to begin anew"
                )
        for name, state in self._states():
            for key, value in state.items():
                if key in _CONSTANT_STATE:
                    continue
                if isinstance(value, Tensor):
                    value.copy_(tensors[f"{name}/{key}"])
                else:
                    state[key] = int(tensors[f"{name}/{key}"])

    def _states(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for part in self._parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    yield self._names[parameter], part.state[parameter]


def make_inner_optimizer(
    config: InnerConfig,
    named_parameters: Iterable[tuple[str, Parameter]],
    *,
    device: torch.device,
    kind: str | None = None,
) -> InnerOptimizer:
    """Returns an inner optimizer over all parameters that require a gradient, with zero state.

    The parameters must be on `device` already. `kind` is one that `choose_optimizer` gave; None: the run's.
    Raises ConfigError for a setting that the optimizer cannot use, LocalError for parameters on another device.
    """
    names = {parameter: name for name, parameter in named_parameters if parameter.requires_grad}
    if misplaced := [name for parameter, name in names.items() if parameter.device.type != device.type]:
        raise LocalError(f"parameter {misplaced[0]!r} is not on {device}: move the model before making its optimizer")
    if max(config.betas) >= 1:
        raise ConfigError(f"inner.betas={config.betas}: both must be below 1")
    kind = kind or config.optimizer
    eight_bit = [p for p, name in names.items() if kind.endswith("8bit") and _has_8bit_state(name, p)]
    if wrong := [p.dtype for p in eight_bit if p.dtype != torch.float32]:
        raise ConfigError(f"inner.optimizer={kind!r} needs fp32 parameters and this model has {wrong[0]}: use 'adamw'")
    chosen = set(eight_bit)
    rest = [parameter for parameter in names if parameter not in chosen]
    parts = [
        make(config, _decay_groups(config, parameters))
        for make, parameters in ((_eight_bit_maker(kind), eight_bit), (_PLAIN_MAKERS[kind.removesuffix("8bit")], rest))
        if parameters
    ]
    return InnerOptimizer(kind, names, parts)


def _has_8bit_state(name: str, parameter: Parameter) -> bool:
    return parameter.numel() >= MIN_8BIT_ELEMENTS and not name.endswith(INPUT_EMBEDDINGS)


_Groups = list[dict[str, Any]]
_Maker = Callable[[InnerConfig, _Groups], torch.optim.Optimizer]


def _decay_groups(config: InnerConfig, parameters: list[Parameter]) -> _Groups:
    groups: _Groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _eight_bit_maker(kind: str) -> _Maker:
    # Imported on use: it takes seconds, and a peer with another optimizer does not need it. Its note about an optional
    # kernel package for 4-bit inference means nothing to whoever trains.
    def make(config: InnerConfig, groups: _Groups) -> torch.optim.Optimizer:
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        bitsandbytes: Any = importlib.import_module("bitsandbytes.optim")  # untyped
        optimizer: torch.optim.Optimizer
        if kind == "lion8bit":
            optimizer = bitsandbytes.Lion8bit(groups, lr=config.learning_rate, betas=config.betas)
        else:
            settings = {"lr": config.learning_rate, "betas": config.betas, "eps": config.epsilon}
            optimizer = bitsandbytes.AdamW8bit(groups, **settings)
        return optimizer

    return make


def _make_adamw(config: InnerConfig, groups: _Groups) -> torch.optim.Optimizer:
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for g in groups for p in g["params"])
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=fused or None
    )


class _Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2), state in full precision."""

    def __init__(self, groups: _Groups, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures here
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if (gradient := parameter.grad) is None:
                    continue
                momentum = self.state[parameter]["momentum"]
                direction = momentum.mul(beta1).add_(gradient, alpha=1 - beta1).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                momentum.mul_(beta2).add_(gradient, alpha=1 - beta2)


class _PlainSGD(torch.optim.Optimizer):
    """theta -= lr * grad: two separately rounded operations, no momentum, no decay, no state."""

    def __init__(self, groups: _Groups) -> None:
        super().__init__(groups, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures here
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad * group["lr"])


_PLAIN_MAKERS: Final[dict[str, _Maker]] = {
    "adamw": _make_adamw,
    "lion": lambda config, groups: _Lion(groups, config.betas),
    "sgd": lambda _, groups: _PlainSGD(groups),
}


def _allocate_state(part: torch.optim.Optimizer, parameter: Parameter, group_index: int, index: int) -> None:
    """Gives a parameter the zero state that the optimizer would otherwise make in its first step."""
    if isinstance(part, _PlainSGD):
        return
    if isinstance(part, _Lion):
        part.state[parameter] = {"momentum": torch.zeros_like(parameter)}
    elif isinstance(part, torch.optim.AdamW):
        # As in torch: the fused kernels read the step count where the parameter is.
        where = parameter.device if part.defaults["fused"] else torch.device("cpu")
        part.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=where),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    else:
        eight_bit: Any = part
        eight_bit.init_state(part.param_groups[group_index], parameter, group_index, index)
