"""A process with a real p2pd that serves our protocol: it echoes; `call me` makes it ask the asker back on a new stream.

Prints its address when it is up; ends, and takes p2pd with it, when its standard input ends. `--key FILE --port N` make it
come back as the same peer at the same place.
"""

import argparse
import asyncio
import sys

from hivemind.p2p import P2P

PROTOCOL = "/barnraise/1"


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--key", required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    p2p = await P2P.create(
        identity_path=options.key,
        check_if_identity_free=False,
        host_maddrs=[f"/ip4/127.0.0.1/tcp/{options.port}"],
        auto_nat=False,
        nat_port_map=False,
        use_relay=False,
    )

    async def answer(info, reader, writer) -> None:  # type: ignore[no-untyped-def]
        payload = await read_frame(reader)
        if payload == b"brood":
            await asyncio.Event().wait()
        if payload == b"hang up":
            writer.close()
            return
        if payload == b"lie":
            writer.write((1 << 31).to_bytes(4, "big") + b"x")
        elif payload == b"call me":
            _, back_reader, back_writer = await p2p.call_binary_stream_handler(info.peer_id, PROTOCOL)
            back_writer.write(framed(b"who is there?"))
            payload = await read_frame(back_reader)
            back_writer.close()
            writer.write(framed(payload))
        else:
            writer.write(framed(payload))
        await writer.drain()
        writer.close()

    await p2p.add_binary_stream_handler(PROTOCOL, answer)
    for address in await p2p.get_visible_maddrs():
        print(address, flush=True)
        break
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await p2p.shutdown()


asyncio.run(main())
