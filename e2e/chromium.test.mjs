// The scenarios in headless Chromium, with the browser's own WebSocket.

import assert from "node:assert/strict"
import { randomUUID } from "node:crypto"
import { once } from "node:events"
import { createServer } from "node:http"
import { fileURLToPath } from "node:url"
import { after, before, test } from "node:test"
import { launch, missing } from "./chromium.mjs"
import { scenarios } from "./scenarios.mjs"
import { Server } from "./server.mjs"
import { Wire } from "./wire.mjs"

// The files that the page loads from the server's own origin; phoenix is the unmodified bundle of the npm package.
const files = {
  "phoenix.mjs": fileURLToPath(import.meta.resolve("phoenix")),
  "participant.mjs": new URL("participant.mjs", import.meta.url).pathname,
  "scenarios.mjs": new URL("scenarios.mjs", import.meta.url).pathname,
}

let server, browser

before(async () => {
  if (missing) return
  server = await Server.start()
  browser = await launch()
})

after(async () => {
  await browser?.close()
  await server?.close()
})

async function openPage(wire) {
  const page = await browser.newPage()
  for (const [name, path] of Object.entries(files)) {
    await page.route(`**/e2e/${name}`, (route) => route.fulfill({ contentType: "text/javascript", path }))
  }
  await page.exposeFunction("publish", (document, draft) => server.publish(document, draft))
  await page.exposeFunction("restart", (signal) => server.restart(signal))
  await page.exposeFunction("cut", (user, forGood) => wire.cut(user, forGood))
  await page.exposeFunction("mend", (user) => wire.mend(user))
  // Any answer of the server will do: browsers let only a page of this machine connect to this machine.
  await page.goto(`${wire.url}/health/live`)
  return page
}

for (const { name } of scenarios) {
  test(`in Chromium: ${name}`, { skip: missing }, async () => {
    const wire = await Wire.open(server)
    const page = await openPage(wire)
    try {
      await page.evaluate(
        async ({ name, document }) => {
          const phoenix = await import("/e2e/phoenix.mjs")
          const { Participant } = await import("/e2e/participant.mjs")
          const { scenarios } = await import("/e2e/scenarios.mjs")
          const participant = (user, options) => new Participant(phoenix, location.origin, user, options)
          const { run } = scenarios.find((scenario) => scenario.name === name)
          const newId = () => crypto.randomUUID()
          await run({ document, participant, newId, publish, restart, cut, mend })
        },
        { name, document: randomUUID() },
      )
    } finally {
      await page.close()
      await wire.close()
    }
  })
}

test("in Chromium: a page of another origin is not let in", { skip: missing }, async () => {
  const elsewhere = createServer((_, response) => response.end("another site")).listen(0, "127.0.0.1")
  await once(elsewhere, "listening")
  const page = await browser.newPage()
  try {
    await page.goto(`http://127.0.0.1:${elsewhere.address().port}/`)
    const opened = await page.evaluate((address) => {
      const socket = new WebSocket(`ws://${address}/socket/websocket?vsn=2.0.0`)
      return new Promise((resolve) => {
        socket.onopen = () => resolve(true)
        socket.onerror = () => resolve(false)
      })
    }, server.address)
    assert.equal(opened, false)
  } finally {
    await page.close()
    elsewhere.close()
    elsewhere.closeAllConnections()
  }
})
