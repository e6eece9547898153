"""The manifest: everything that peers of a run must agree on, its name (the run id) and its maintainers' signatures.

    bytes = canonical msgpack [version, config, [[signer, signature], ...]]

The wire knows no maps, so a config travels as the list of its [name, value] pairs in the order of the fields, sections
nested. The run id covers the config alone: signatures may be added without making another run. A manifest that a stranger
hands out is trusted because its run id is the one in the invite.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

from pydantic import ValidationError

from swarm import wire
from swarm.config import RunConfig, Section
from swarm.config_check import problems_of
from swarm.config_file import describe, load_config
from swarm.digest import Digest, digest_of
from swarm.errors import ConfigError, MalformedBytes
from swarm.identity import KEY_BYTES, SIGNATURE_BYTES, Keypair, PeerId

__all__ = ["MAX_MANIFEST_BYTES", "Manifest", "load_config", "sign_manifest"]

MAX_MANIFEST_BYTES: Final = 64 << 10
MANIFEST_VERSION: Final = 1
_MAX_SIGNATURES: Final = 64


@dataclass(frozen=True)
class Manifest:
    """A run's config with signatures over its run id, sorted by signer, each signer once."""

    config: RunConfig
    signatures: tuple[tuple[PeerId, bytes], ...] = ()

    @cached_property
    def run_id(self) -> Digest:
        """The digest of the config: the name of the run."""
        return digest_of("manifest", wire.encode(_to_value(self.config)))

    def to_bytes(self) -> bytes:
        """The canonical bytes, at most MAX_MANIFEST_BYTES of them."""
        signatures = [[signer.raw, signature] for signer, signature in self.signatures]
        raw = wire.encode([MANIFEST_VERSION, _to_value(self.config), signatures])
        if len(raw) > MAX_MANIFEST_BYTES:
            raise ConfigError(f"a manifest of {len(raw)} bytes exceeds {MAX_MANIFEST_BYTES}; name fewer sources")
        return raw

    @classmethod
    def from_bytes(cls, raw: bytes) -> Manifest:
        """The manifest in `raw`, every value and every signature checked.

        Raises MalformedBytes for bytes that are no manifest of this version or hold impossible values, BadSignature if one
        signature does not hold. A run that names maintainers needs `threshold` of them; others need no signature.
        """
        value = wire.decode(raw, max_bytes=MAX_MANIFEST_BYTES)
        if not isinstance(value, list) or not value:
            raise MalformedBytes("a manifest is a list of version, config and signatures")
        if value[0] != MANIFEST_VERSION:
            raise MalformedBytes(f"manifest version {str(value[0])[:20]}; this program reads {MANIFEST_VERSION}")
        if len(value) != 3:
            raise MalformedBytes("a manifest is a list of version, config and signatures")
        manifest = cls(_config_from_value(value[1]), _signatures_from_value(value[2]))
        if manifest.to_bytes() != raw:
            raise MalformedBytes("the manifest is not in canonical form; it may come from another version of barnraise")
        for signer, signature in manifest.signatures:
            signer.verify(signature, _to_sign(manifest.run_id))
        if lacking := _lacking_signatures(manifest):
            raise MalformedBytes(lacking)
        return manifest


def sign_manifest(config: RunConfig, keypairs: Sequence[Keypair]) -> Manifest:
    """The manifest of a config, signed by these keys. Raises ConfigError for a config that does not hold together, or one
    that names maintainers of whom fewer than `threshold` are among the keys."""
    if problems := problems_of(config):
        raise ConfigError("; ".join(problems))
    run_id = Manifest(config).run_id
    signed = {keypair.peer_id: keypair.sign(_to_sign(run_id)) for keypair in keypairs}
    if len(signed) > _MAX_SIGNATURES:
        raise ConfigError(f"{len(signed)} signatures where at most {_MAX_SIGNATURES} are allowed")
    manifest = Manifest(config, tuple(sorted(signed.items())))
    if lacking := _lacking_signatures(manifest):
        raise ConfigError(lacking)
    manifest.to_bytes()  # too large shows now, not when the first joiner asks
    return manifest


def _to_sign(run_id: Digest) -> bytes:
    return digest_of("manifest.signature", run_id.raw).raw


def _lacking_signatures(manifest: Manifest) -> str | None:
    """Why the signatures do not suffice, or None."""
    due = {PeerId.from_base58(text) for text in manifest.config.maintainers}
    there = due & {signer for signer, _ in manifest.signatures}
    if len(there) >= manifest.config.threshold:
        return None
    return f"signed by {len(there)} of {len(due)} maintainers where {manifest.config.threshold} must sign"


def _to_value(item: Any) -> Any:
    if isinstance(item, Section):
        return [[name, _to_value(getattr(item, name))] for name in type(item).model_fields]
    if isinstance(item, tuple):
        return [_to_value(one) for one in item]
    return item


def _config_from_value(value: Any) -> RunConfig:
    try:
        config = RunConfig.model_validate(_table(RunConfig, value, "config"))
    except ValidationError as error:
        raise MalformedBytes(describe(error)) from None
    if problems := problems_of(config):
        raise MalformedBytes("; ".join(problems))
    return config


def _table(section: type[Section], value: Any, where: str) -> dict[str, Any]:
    """The [name, value] pairs of a section as pydantic wants them: a dict, with tuples for lists."""
    if not isinstance(value, list):
        raise MalformedBytes(f"{where}: a list of names and values is due")
    table: dict[str, Any] = {}
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise MalformedBytes(f"{where}: a list of names and values is due")
        name, one = pair
        field = section.model_fields.get(name)
        if field is None:
            raise MalformedBytes(f"{where}: unknown name {name[:40]!r}; it may come from a newer version of barnraise")
        table[name] = _field(field.annotation, one, f"{where}.{name}")
    return table


def _field(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, Section):
        return _table(kind, value, where)
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        item = typing.get_args(kind)[0]
        return tuple(_field(item, one, where) for one in value)
    return value


def _signatures_from_value(value: Any) -> tuple[tuple[PeerId, bytes], ...]:
    if not isinstance(value, list) or len(value) > _MAX_SIGNATURES:
        raise MalformedBytes(f"at most {_MAX_SIGNATURES} signatures are due")
    signatures = []
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(one, bytes) for one in pair)):
            raise MalformedBytes("a signature is a signer and 64 bytes")
        signer, signature = pair
        if len(signer) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
            raise MalformedBytes(f"a signer has {KEY_BYTES} bytes and a signature {SIGNATURE_BYTES}")
        signatures.append((PeerId(signer), signature))
    signers = [signer for signer, _ in signatures]
    if any(left >= right for left, right in pairwise(signers)):
        raise MalformedBytes("signatures must be sorted by signer, each signer once")
    return tuple(signatures)
