"""Manifests: one config, one run id; every signature and value checked; mistakes in a TOML file named one by one."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm import wire
from swarm.config import RunConfig, SourceConfig
from swarm.digest import digest_of
from swarm.errors import BadSignature, ConfigError, MalformedBytes, RemoteError
from swarm.identity import Keypair
from swarm.manifest import MAX_MANIFEST_BYTES, Manifest, load_config, sign_manifest
from swarm.presets import PRESETS

KEYS = [Keypair.from_seed(bytes([n]) * 32) for n in range(4)]
TINY = PRESETS["tiny"]
RAW = sign_manifest(TINY, KEYS[:2]).to_bytes()


def _closed(threshold: int = 2) -> RunConfig:
    return TINY.model_copy(
        update={"maintainers": tuple(key.peer_id.base58 for key in KEYS[:3]), "threshold": threshold}
    )


def _changed(path: list[int], value: Any) -> bytes:
    """RAW with one wire value replaced: the path goes through lists."""
    whole = wire.decode(RAW)
    target = whole
    for index in path[:-1]:
        target = target[index]
    target[path[-1]] = value
    return wire.encode(whole)


# ---- identity and bytes


def test_bytes_come_back() -> None:
    sources = (SourceConfig(name="the pile", digest="ab" * 32, num_bytes=2**40), SourceConfig(name="Bücher"))
    config = _closed().model_copy(update={"data": TINY.data.model_copy(update={"sources": sources})})
    manifest = sign_manifest(config, KEYS)
    again = Manifest.from_bytes(manifest.to_bytes())
    assert again == manifest and again.run_id == manifest.run_id


def test_the_run_id_is_the_digest_of_the_config_alone() -> None:
    _, config, _ = wire.decode(RAW)
    assert Manifest(TINY).run_id == digest_of("manifest", wire.encode(config))
    assert sign_manifest(TINY, []).run_id == sign_manifest(TINY, KEYS).run_id


def test_every_value_of_the_config_changes_the_run_id() -> None:
    ids = {Manifest(preset).run_id for preset in PRESETS.values()}
    ids |= {Manifest(TINY.model_copy(update={"seed": seed})).run_id for seed in range(1, 9)}
    ids.add(Manifest(TINY.model_copy(update={"inner": TINY.inner.model_copy(update={"epsilon": 2e-8})})).run_id)
    assert len(ids) == len(PRESETS) + 9


# ---- signatures


def test_a_manifest_with_maintainers_needs_enough_of_them() -> None:
    config = _closed(threshold=2)
    assert len(sign_manifest(config, KEYS[:2]).signatures) == 2
    with pytest.raises(ConfigError, match="signed by 1 of 3 maintainers where 2 must sign"):
        sign_manifest(config, [KEYS[0], KEYS[3]])
    with pytest.raises(ConfigError):
        sign_manifest(config, [KEYS[0], KEYS[0]])
    signed = sign_manifest(config, KEYS)
    for kept in ((0, 3), ()):
        few = tuple(one for one in signed.signatures if one[0] in {KEYS[n].peer_id for n in kept})
        with pytest.raises(MalformedBytes, match="must sign"):
            Manifest.from_bytes(Manifest(config, few).to_bytes())


def test_every_signature_must_hold_even_where_none_is_needed() -> None:
    manifest = sign_manifest(TINY, KEYS[:1])
    ((signer, signature),) = manifest.signatures
    forged = bytes([signature[0] ^ 1]) + signature[1:]
    with pytest.raises(BadSignature):
        Manifest.from_bytes(Manifest(TINY, ((signer, forged),)).to_bytes())
    other = TINY.model_copy(update={"seed": 1})
    with pytest.raises(BadSignature):
        Manifest.from_bytes(Manifest(other, manifest.signatures).to_bytes())


def test_signatures_have_one_order() -> None:
    pairs = sign_manifest(TINY, KEYS).signatures
    for wrong in (pairs[::-1], (pairs[0], pairs[0])):
        with pytest.raises(MalformedBytes, match="sorted"):
            Manifest.from_bytes(Manifest(TINY, wrong).to_bytes())


# ---- hostile bytes


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ([0], 2, "version 2"),
        ([1], None, "names and values"),
        ([1, 0], ["nickname", "x"], "unknown name"),
        ([1, 0], ["name"], "names and values"),
        ([1, 0, 1], "two\nlines", "printable"),
        ([1, 1, 1, 1, 1], 2**40, "at most"),  # vocab_size
        ([1, 1, 1, 2, 1], 1.5, "integer"),  # hidden_size
        ([1, 1, 1, 2, 1], 130, "divisible"),
        ([1, 1, 1, 9, 1], math.nan, "finite"),  # rope_theta
        ([1, 1, 1, 9, 1], 10_000, "canonical"),  # an int where the float has one encoding
        ([2], [[b"", b""]], "64"),
        ([2], [[]] * 65, "at most 64"),
    ],
)
def test_wrong_values_are_named(path: list[int], value: Any, says: str) -> None:
    with pytest.raises(MalformedBytes, match=says):
        Manifest.from_bytes(_changed(path, value))


def test_pairs_must_be_whole_and_in_order() -> None:
    pairs = wire.decode(RAW)[1]
    for wrong in (pairs[1:], pairs[::-1], [*pairs, pairs[0]]):
        with pytest.raises(MalformedBytes, match="canonical"):
            Manifest.from_bytes(_changed([1], wrong))


def test_size_is_capped() -> None:
    with pytest.raises(MalformedBytes, match="at most"):
        Manifest.from_bytes(bytes(MAX_MANIFEST_BYTES + 1))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_an_error_of_ours(raw: bytes) -> None:
    with contextlib.suppress(RemoteError):
        Manifest.from_bytes(raw)


@settings(deadline=None)
@given(st.integers(0, len(RAW) * 8 - 1), st.integers(0, len(RAW)))
def test_flipped_bits_and_cuts_never_pass(bit: int, length: int) -> None:
    flipped = bytearray(RAW)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RemoteError):
        Manifest.from_bytes(bytes(flipped))
    if length < len(RAW):
        with pytest.raises(RemoteError):
            Manifest.from_bytes(RAW[:length])


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)
paths = st.sampled_from(
    [[i] for i in range(3)]
    + [[1, i] for i in range(len(RunConfig.model_fields))]
    + [[1, i, j] for i in range(len(RunConfig.model_fields)) for j in range(2)]
    + [[1, 1, 1, i, j] for i in range(12) for j in range(2)]
    + [[1, 2, 1, 1, 1], [1, 3, 1, 6, 1], [2, 0, 0], [2, 0, 1]]
)


@settings(deadline=None)
@given(paths, values)
def test_any_value_anywhere_is_a_manifest_or_an_error_of_ours(path: list[int], value: Any) -> None:
    with contextlib.suppress(RemoteError):
        Manifest.from_bytes(_changed(path, value))


# ---- TOML


def _load(tmp_path: Path, text: str) -> RunConfig:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return load_config(path)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert _load(tmp_path, "") == RunConfig()


def test_keys_override_the_preset(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        """
        preset = "tiny"
        name = "mine"
        [model]
        preset = "pythia-70m"
        num_layers = 2
        [inner]
        betas = [0, 0.5]
        learning_rate = 1
        [[data.sources]]
        name = "a"
        [[data.sources]]
        name = "b"
        """,
    )
    assert config.round == TINY.round and config.name == "mine"
    assert config.model == PRESETS["pythia-70m"].model.model_copy(update={"num_layers": 2})
    assert config.inner.betas == (0.0, 0.5) and type(config.inner.learning_rate) is float
    assert [source.name for source in config.data.sources] == ["a", "b"]
    assert Manifest.from_bytes(sign_manifest(config, []).to_bytes()).config == config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[round]\nlocale_steps = 3", "unknown key `round.locale_steps`; did you mean `local_steps`?"),
        ("local_steps = 3", "unknown key `local_steps`; did you mean `round.local_steps`?"),
        ("[modle]\nhidden_size = 3", "unknown key `modle`; did you mean `model`?"),
        ("[round]\nheartbeat_s = -1", "round.heartbeat_s = -1: should be greater than 0"),
        ("[model]\nfamily = 'gpt2'", "model.family = 'gpt2': should be 'gpt_neox', 'gptj' or 'llama'"),
        ("[model]\nnum_layers = '4'", "model.num_layers = '4': should be a valid integer"),
        ("model = 4", "model = 4: should be a table"),
        ("preset = 'tyni'", "unknown preset 'tyni'; did you mean `tiny`?"),
        ("[[data.sources]]\nnum_bytes = 1", "`data.sources[0].name` is missing"),
        ("[model]\nhidden_size = 100\nnum_heads = 3", "must be divisible by model.num_heads = 3"),
        ("[model]\nnum_kv_heads = 2", "only family llama has it"),
        ("[model]\nfamily = 'llama'\nnum_kv_heads = 3", "must divide model.num_heads = 4"),
        ("[model]\nrotary_fraction = 0.01", "an even number of at least 2 is due"),
        ("[model]\nvocab_size = 255", "the tokenizer `bytes` needs at least 256"),
        ("[data]\nsequence_length = 4096", "data.sequence_length = 4096: at most model.max_positions = 2048"),
        ("[data]\ntokenizer = 'gpt2'", "64 hex digits"),
        (f"[data]\nseparator = '{'x' * 257}'", "data.separator: 257 letters; the name of a token has at most 256"),
        ("[data]\nnum_heldout_windows = 3", "data.eval_windows = 16: at most data.num_heldout_windows = 3"),
        ("[data]\nnum_windows = 99999999999999999999", "at most 9223372036854775807"),
        ("[inner]\nlearning_rate = inf", "inner.learning_rate = inf: a finite number is due"),
        ("[inner]\nlearning_rate = 1e-5", "inner.final_learning_rate = 0.0001: at most inner.learning_rate = 1e-05"),
        ("[inner]\nbetas = [0.9, 1]", "inner.betas = [0.9, 1.0]: each must be less than 1"),
        ("[round]\nleader_timeout_s = 3", "at least twice round.heartbeat_s = 2.0"),
        ("[round]\nlocal_steps = 20\nlease_steps = 3", "round.lease_steps = 3: at least round.local_steps = 20"),
        ("[round]\nmax_listed = 1025", "at most 1024, which is what one commit carries"),
        ("[round]\nexchange_deadline_s = 1", "at least round.heartbeat_s = 2.0"),
        ("[round]\ntrain_deadline_s = 1e9", "a week"),
        ("threshold = 1", "there are only 0 maintainers"),
        ("maintainers = ['me']\nthreshold = 1", "not an Ed25519 peer id"),
        (f"maintainers = ['{KEYS[0].peer_id.base58}']", "at least 1 of them must sign"),
        ("name = ''", "1 to 64 printable letters"),
        ("name =", "not TOML"),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_all_mistakes_stand_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, "sead = 1\n[round]\nheartbeat_s = 0\n[model]\nnum_layers = 0")
    line = str(caught.value)
    assert all(part in line for part in ("`sead`", "`seed`", "round.heartbeat_s = 0", "model.num_layers = 0"))
    assert "\n" not in line and line.count("; ") >= 2


def test_zero_local_steps_and_zero_target_tokens_are_fine(tmp_path: Path) -> None:
    assert _load(tmp_path, "[round]\nlocal_steps = 0\ntarget_tokens = 0").round.local_steps == 0


def test_a_missing_file_and_binary_rubbish_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not TOML"):
        load_config(tmp_path / "b.toml")


def test_signing_refuses_a_config_that_does_not_hold_together() -> None:
    with pytest.raises(ConfigError, match="divisible"):
        sign_manifest(TINY.model_copy(update={"model": TINY.model.model_copy(update={"num_heads": 3})}), [])
