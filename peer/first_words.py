"""What a newcomer asks the first peers it reaches: the manifest, the text if its Python has another one, and the state."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from peer.catch_up import ASKED_FOR_STATE, fetch_reported, states_of
from peer.fetch import Asker, Fetcher
from peer.network import Network
from swarm.digest import Digest
from swarm.errors import ConfigError, NetworkError, RemoteError, Unreachable
from swarm.manifest import Manifest
from swarm.messages import GetManifest, ManifestBytes, StateRecord

ASK_TIMEOUT_S: Final = 10.0
_TRIES: Final = 3
_TRY_AGAIN_S: Final = 1.0


async def fetch_manifest(asker: Asker, network: Network) -> Manifest:
    """The manifest of the run, from whoever was reached; its digest must be the run id of the invite.

    Asks a few times: somebody who has just started listens a moment before he answers. Raises Unreachable.
    """
    for _ in range(_TRIES - 1):
        with contextlib.suppress(Unreachable):
            return await _fetch_manifest_once(asker, network)
        await asyncio.sleep(_TRY_AGAIN_S)
    return await _fetch_manifest_once(asker, network)


async def _fetch_manifest_once(asker: Asker, network: Network) -> Manifest:
    reasons = []
    for peer in tuple(network.transport.known):
        try:
            answer = await asker.ask(peer, GetManifest(), timeout_s=ASK_TIMEOUT_S)
            if not isinstance(answer, ManifestBytes):
                raise ConfigError(f"{peer} answered with a {type(answer).__name__}")
            manifest = Manifest.from_bytes(answer.manifest)
        except (NetworkError, RemoteError, ConfigError) as error:
            reasons.append(f"{peer}: {error}")
            continue
        if manifest.run_id == asker.run:
            return manifest
        reasons.append(f"{peer}: its manifest is of run {manifest.run_id}")
    raise Unreachable(f"nobody has the manifest of run {asker.run}: " + ("; ".join(reasons) or "nobody was reached"))


async def fetch_from_known(fetcher: Fetcher, network: Network, root: Digest) -> None:
    """Fetches a blob from whoever was reached; it stays pinned."""
    fetcher.pin(f"first words {root.hex()}", [root])
    await fetcher.fetch(root, tuple(network.transport.known))


async def fetch_state(asker: Asker, network: Network, fetcher: Fetcher) -> StateRecord:
    """The state that most of those known report, with its blobs in the store."""
    record, _ = await fetch_reported(fetcher, await states_of(asker, tuple(network.transport.known)[-ASKED_FOR_STATE:]))
    return record
