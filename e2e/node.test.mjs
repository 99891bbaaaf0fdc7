// The scenarios in Node, with the `ws` package as transport.

import { randomUUID } from "node:crypto"
import { after, before, test } from "node:test"
import * as phoenix from "phoenix"
import WebSocket from "ws"
import { Participant } from "./participant.mjs"
import { scenarios } from "./scenarios.mjs"
import { Server } from "./server.mjs"
import { Wire } from "./wire.mjs"

let server

before(async () => {
  server = await Server.start()
})

after(() => server?.close())

for (const { name, run } of scenarios) {
  test(`in Node: ${name}`, async () => {
    const participants = []
    const wire = await Wire.open(server)
    const participant = (user, options) => {
      const one = new Participant(phoenix, wire.url, user, { transport: WebSocket, ...options })
      participants.push(one)
      return one
    }
    try {
      await run({
        document: randomUUID(),
        participant,
        newId: randomUUID,
        publish: (document, draft) => server.publish(document, draft),
        restart: (signal) => server.restart(signal),
        cut: (user, forGood) => wire.cut(user, forGood),
        mend: (user) => wire.mend(user),
      })
    } finally {
      await Promise.all(participants.map((one) => one.leave()))
      await wire.close()
    }
  })
}
