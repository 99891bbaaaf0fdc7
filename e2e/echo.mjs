// The npm package `ws` against a server that echoes, with and without permessage-deflate: node e2e/echo.mjs URL.
// `cargo xtask conformance` runs it.

import assert from "node:assert/strict"
import { once } from "node:events"

import WebSocket from "ws"

const PATIENCE_MS = 60_000
const large = "Grüße, κόσμε! ".repeat(10_000)

async function exchange(url, perMessageDeflate) {
  const socket = new WebSocket(url, { perMessageDeflate })
  const answer = async (event) => once(socket, event, { signal: AbortSignal.timeout(PATIENCE_MS) })
  await answer("open")
  assert.equal(socket.extensions, perMessageDeflate ? "permessage-deflate" : "")

  const echoed = async (sent, binary) => {
    const [data, isBinary] = await answer("message")
    assert.equal(isBinary, binary)
    assert.deepEqual(data, Buffer.from(sent))
  }
  for (const sent of ["", "hello", large]) {
    socket.send(sent)
    await echoed(sent, false)
  }
  for (const sent of [Buffer.alloc(0), Buffer.from([0, 255]), Buffer.from(large)]) {
    socket.send(sent)
    await echoed(sent, true)
  }

  socket.send("a message", { fin: false })
  socket.send(" in ", { fin: false })
  socket.send("three frames")
  await echoed("a message in three frames", false)

  socket.ping("are you there?")
  const [pong] = await answer("pong")
  assert.equal(pong.toString(), "are you there?")

  socket.close(4000, "bye")
  const [code] = await answer("close")
  assert.equal(code, 4000)
}

for (const deflate of [false, true]) {
  await exchange(process.argv[2], deflate)
  console.log(`ok: ws, ${deflate ? "with" : "without"} permessage-deflate`)
}
