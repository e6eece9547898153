"""What all peers of a run must agree on, as typed sections of the manifest.

Closed and whole: unknown keys are refused, every value has one source, and the whole is hashed into the run id. What is
a peer's own affair (device, data path, name) is in `peer/config.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from swarm.lease import LeaseSize

Positive = Annotated[int, Field(gt=0, le=2**40)]
_LEASE_STEPS_WITHOUT_LOCAL_STEPS = 256
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the manifest: frozen, complete, refusing unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelConfig(Section):
    """The model: a transformers family and its sizes. Dropout is 0, and embeddings are never tied."""

    family: Literal["gpt_neox", "gptj", "llama"] = "gpt_neox"
    vocab_size: Positive = 256
    hidden_size: Positive = 128
    num_layers: Positive = 4
    num_heads: Positive = 4
    num_kv_heads: Positive | None = None  # llama only; None: as many as heads
    intermediate_size: Positive = 512
    max_positions: Positive = 2048
    rotary_fraction: Fraction = 0.25  # gpt_neox: share of a head's dimensions that rotate; gptj: rotary_dim / head_dim
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    parallel_residual: bool = True  # gpt_neox only


class SourceConfig(Section):
    """One source of text."""

    name: str
    digest: str = (
        ""  # hex digest of the source's content; for the embedded text, of its blob. Empty: filled in by `new`
    )
    num_bytes: int = Field(0, ge=0)


class DataConfig(Section):
    """The text and how it is cut into windows. A window is `sequence_length + 1` tokens; its loss has `sequence_length`."""

    kind: Literal["embedded", "files"] = "embedded"
    sources: tuple[SourceConfig, ...] = ()
    tokenizer: str = "bytes"  # "bytes", or the hex digest of a tokenizer.json
    separator: str = ""  # its token that ends each document; "": its end-of-text token, filled in by `new`
    sequence_length: Positive = 256
    num_windows: int = Field(0, ge=0)  # training windows, in the manifest's order; filled in by `new`
    num_heldout_windows: int = Field(0, ge=0)
    eval_windows: Positive = 16  # the first so many held-out windows are the ones that losses are reported on
    seed: int = Field(0, ge=0, lt=2**63)


class InnerConfig(Section):
    """The inner optimizer, and the learning rate as a function of the swarm's tokens."""

    optimizer: Literal["adamw8bit", "lion8bit", "adamw", "sgd"] = "adamw8bit"
    learning_rate: float = Field(1e-3, gt=0)
    final_learning_rate: float = Field(1e-4, ge=0)
    warmup_tokens: int = Field(0, ge=0)
    decay_tokens: Positive = 2**33  # the swarm's tokens at which the cosine ends; constant behind it
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    clip_norm: float = Field(1.0, ge=0)  # of each inner step's gradient; 0: off
    batch_windows: Positive = 16  # windows in one inner step of one peer, in as many micro-batches as fit


class OuterConfig(Section):
    """The outer optimizer, applied to the committed mean by everyone alike."""

    optimizer: Literal["sgd", "nesterov", "adamw"] = "nesterov"
    learning_rate: float = Field(0.7, gt=0)
    momentum: Fraction = 0.9  # nesterov
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)  # adamw
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)


class CodecConfig(Section):
    """How a pseudo-gradient travels."""

    name: Literal["raw", "int8"] = "int8"
    block_size: Positive = 4096  # elements that share one scale
    error_decay: Fraction = 1.0  # beta of the error feedback


class RoundConfig(Section):
    """When a round is cut and committed. All times are seconds."""

    local_steps: int = Field(0, ge=0)  # a member cuts by itself after so many inner steps; 0: only on the leader's hint
    lease_steps: int = Field(
        0, ge=0
    )  # inner steps' worth of windows leased a round; 0: local_steps, or 256 without them
    target_tokens: int = Field(
        0, ge=0
    )  # the swarm's tokens that make a round; 0: everyone who is live, or the deadline
    train_deadline_s: float = Field(120.0, gt=0)  # from a new head to the cut hint
    exchange_deadline_s: float = Field(60.0, gt=0)  # from the cut hint to a commit with what is held
    heartbeat_s: float = Field(2.0, gt=0)
    leader_timeout_s: float = Field(10.0, gt=0)  # silence of a leader after which a member turns to the next view
    min_peers: Positive = 1  # nobody commits version 1 before so many peers are there
    overlap: bool = False  # True: training goes on while blobs are exchanged
    max_listed: Positive = 64  # contributions in one commit; members of a larger group contribute in turns


class CheckpointConfig(Section):
    """Versions 0, 1, 2, 4 ... 512 and every `every`-th are kept as checkpoints."""

    every: Positive = 1000
    keep: Positive = 4  # a peer keeps so many of the newest; the others may be pruned


class RunConfig(Section):
    """Everything that peers of a run must agree on."""

    name: str = "barnraise"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    inner: InnerConfig = InnerConfig()
    outer: OuterConfig = OuterConfig()
    codec: CodecConfig = CodecConfig()
    round: RoundConfig = RoundConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    seed: int = Field(0, ge=0, lt=2**63)  # version 0 is made from it
    genesis_digest: str = ""  # hex digest of version 0's parameters; filled in by whoever makes the manifest
    maintainers: tuple[str, ...] = ()  # libp2p peer ids whose signatures the manifest needs
    threshold: int = Field(0, ge=0)  # how many of them

    @property
    def lease_windows(self) -> int:
        """Windows leased to each member for one round."""
        steps = self.round.lease_steps or self.round.local_steps or _LEASE_STEPS_WITHOUT_LOCAL_STEPS
        return steps * self.inner.batch_windows

    @property
    def round_steps(self) -> int:
        """Inner steps that are one member's share of a round: those that its lease is enough for."""
        return self.lease_windows // self.inner.batch_windows

    @property
    def lease_tokens(self) -> int:
        """Tokens of one round's lease: the most that one round of one member may weigh."""
        return self.lease_windows * self.data.sequence_length

    @property
    def lease(self) -> LeaseSize:
        """Both of them."""
        return LeaseSize(self.lease_windows, self.lease_tokens)
