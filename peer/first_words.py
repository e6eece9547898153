"""What a newcomer asks the first peers it reaches: the manifest, the text if its Python has another one, and the state."""

from __future__ import annotations

import contextlib
from typing import Final

from peer.fetch import Asker, Fetcher
from peer.network import Network
from swarm.digest import Digest
from swarm.errors import ConfigError, NetworkError, RemoteError, Unreachable
from swarm.identity import PeerId
from swarm.manifest import Manifest
from swarm.messages import GetManifest, GetState, ManifestBytes, StateRecord

ASK_TIMEOUT_S: Final = 10.0


async def fetch_manifest(asker: Asker, network: Network) -> Manifest:
    """The manifest of the run, from whoever was reached; its digest must be the run id of the invite."""
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
    await fetcher.fetch(root, tuple(network.transport.known))


async def fetch_state(asker: Asker, network: Network, fetcher: Fetcher) -> StateRecord:
    """The newest state that anyone known reports, with its blobs in the store."""
    found: dict[PeerId, StateRecord] = {}
    for peer in tuple(network.transport.known):
        with contextlib.suppress(NetworkError, RemoteError):
            answer = await asker.ask(peer, GetState(), timeout_s=ASK_TIMEOUT_S)
            if isinstance(answer, StateRecord):
                found[peer] = answer
    if not found:
        raise Unreachable("nobody known has a state to begin from")
    best = max(found.values(), key=lambda record: record.chain.key)
    holders = [peer for peer, record in found.items() if record == best]
    for unit in best.units:
        await fetcher.fetch(unit.root, holders, unit.num_bytes)
    return best
