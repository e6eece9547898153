"""What a swarm trained, loaded by whoever pulls it: each model family, from two peers' rounds to `from_pretrained`.

The loss that a checkpoint's record reports must be the one that plain transformers finds on the windows that it names, and
the parameters the anchor's, bit for bit.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from peer import handoff as work
from peer.model import layout_of
from swarm.allreduce.layout import flatten
from swarm.config import CodecConfig, InnerConfig
from tests.equivalence.group import Group
from tests.equivalence.stand_ins import tiny_config, tiny_round, tiny_windows

ROUNDS = 2


@pytest.mark.parametrize("family", ["gpt_neox", "gptj", "llama"])
def test_checkpoint_loads_with_the_reported_loss(tmp_path: Path, family: str) -> None:
    config = tiny_config(
        family,
        inner=InnerConfig(optimizer="adamw", learning_rate=3e-3, batch_windows=2),
        codec=CodecConfig(name="int8", block_size=256),
        round=tiny_round(local_steps=2, min_peers=2),
    )
    with Group(tmp_path, config, 2, checkpoints=True) as group:
        group.settle(ROUNDS)
        anchor_N = group[0].anchor_N
        digest = group[0].digest
        kept = [[report for report in member.reports if isinstance(report, work.Kept)][-1] for member in group.members]
    records = [one.record for one in kept]
    assert [(record.version, record.state_digest) for record in records] == [(ROUNDS, digest)] * 2
    assert records[0].files == records[1].files, "two peers wrote different bytes for one version"
    assert records[0].evaluation is not None and records[0].evaluation == records[1].evaluation

    folder = Path(kept[0].files[0][1]).parent
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == family
    loaded_N = flatten(layout_of(model), dict(model.named_parameters()))
    assert torch.equal(loaded_N, anchor_N)

    evaluation = records[0].evaluation
    assert evaluation.windows == tuple(range(config.data.eval_windows))
    _, heldout = tiny_windows(config.data, config.model.vocab_size)
    tokens_BL1 = torch.from_numpy(heldout[list(evaluation.windows)])
    model.eval()
    with torch.no_grad():
        loss = model(input_ids=tokens_BL1, labels=tokens_BL1).loss.item()
    print(f"\n{family}: reported {evaluation.loss:.9f}, transformers {loss:.9f}")
    # fp32 sums over 64 tokens in another order: about 1e-6 of a loss of 4; anything above 1e-3 is another model
    assert abs(loss - evaluation.loss) < 1e-5
