"""Runs the PyPI package `websockets` against a server that echoes: websockets_client.py URL."""

import asyncio
import sys

from websockets.asyncio.client import connect

LARGE = "Grüße, κόσμε! " * 10_000


async def exchange(url, compression):
    async with connect(url, compression=compression, max_size=None) as client:
        agreed = "permessage-deflate" in client.response.headers.get("Sec-WebSocket-Extensions", "")
        assert agreed == (compression == "deflate"), client.response.headers
        for message in ("", "hello", LARGE, b"", b"\x00\xff", LARGE.encode()):
            await client.send(message)
            assert await client.recv() == message
        await client.send(["a message", " in ", "three frames"])
        assert await client.recv() == "a message in three frames"
        await (await client.ping(b"are you there?"))
        await client.send("last")
        await client.close(4_000, "bye")
        # A message that was under way when the client closed still arrives.
        assert await client.recv() == "last"
        try:
            await client.recv()
        except Exception as closed:
            assert closed.rcvd.code == 4_000, closed
        else:
            raise AssertionError("the server did not close")


async def main():
    for compression in (None, "deflate"):
        async with asyncio.timeout(60):
            await exchange(sys.argv[1], compression)
        print(f"ok: websockets, {'with' if compression else 'without'} permessage-deflate")


asyncio.run(main())
