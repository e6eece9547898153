"""What the oracles share: the model built by transformers alone, version 0, and nothing of the product's training."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from peer.model import hf_config, initial_parameters, layout_of
from swarm.allreduce.layout import flatten, unflatten_into
from swarm.config import RunConfig


def plain_model(config: RunConfig, dtype: torch.dtype) -> Any:
    """The run's model at version 0, made from its config.json by transformers alone."""
    settings = transformers.AutoConfig.for_model(**hf_config(config.model))
    model = transformers.AutoModelForCausalLM.from_config(settings, attn_implementation="sdpa").to(dtype)
    layout = layout_of(model)
    unflatten_into(layout, initial_parameters(config.model, config.seed, layout), dict(model.named_parameters()))
    return model


def flat(model: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """(N,) of its parameters, in the product's order."""
    return flatten(layout_of(model), dict(model.named_parameters()), dtype)
