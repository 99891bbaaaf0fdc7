// What must hold for the unmodified client, wherever it runs: every scenario is run in Node and in Chromium.
//
// A scenario is handed its world: `document`, a fresh document's name; `participant(user, options)`, who connects;
// `newId()`; and the server, of which `publish(document, draft)` publishes over HTTP across restarts and `restart(signal)`
// says with which code the old process ended.

export const scenarios = []

function scenario(name, run) {
  scenarios.push({ name, run })
}

function equal(actual, expected, what) {
  const [found, wanted] = [JSON.stringify(actual), JSON.stringify(expected)]
  if (found !== wanted) throw new Error(`${what}: ${found} is not ${wanted}`)
}

function upTo(count) {
  return Array.from({ length: count }, (_, index) => index + 1)
}

async function refusal(pushed) {
  try {
    return { accepted: await pushed }
  } catch (error) {
    return error
  }
}

scenario("a client joins, pushes and gets a receipt", async ({ document, participant }) => {
  const ada = participant("ada")
  const notes = await ada.join(document)
  equal(notes.joins[0].user, "ada", "the join reply's user")
  const receipt = await notes.type("h")
  equal([receipt.seq, receipt.duplicate], [1, false], "the receipt")
  await ada.until(() => notes.events.length === 1, "the author gets the event, too")
  const [event] = notes.events
  equal([event.id, event.kind, event.actor], [receipt.id, "document.edited", "user:ada"], "the event")
  equal(event.payload, { patches: [[0, 0, "h"]] }, "its payload")
})

scenario("everybody gets everything in the same order", async ({ document, participant }) => {
  const users = ["ada", "bob", "cy"].map((user) => participant(user))
  const followed = await Promise.all(users.map((user) => user.join(document)))
  const pushed = followed.flatMap((notes) => upTo(30).map((n) => notes.type(`${n}`)))
  const receipts = await Promise.all(pushed)
  for (const [index, notes] of followed.entries()) {
    await users[index].until(() => notes.events.length >= 90, `${users[index].user} gets 90 events`)
    equal(notes.seqs, upTo(90), "the seqs")
    equal(notes.ids, followed[0].ids, "the ids")
  }
  equal(receipts.map((receipt) => receipt.id).sort(), [...followed[0].ids].sort(), "the acknowledged ids")
})

scenario("a connection outlives its heartbeat interval", async ({ document, participant }) => {
  // The client gives the server one interval to answer; a busy machine may need some of it.
  const ada = participant("ada", { heartbeatIntervalMs: 400 })
  const notes = await ada.join(document)
  await ada.until(() => ada.heartbeats >= 3, "three heartbeats are answered")
  await notes.type("still here")
  equal([ada.closes, notes.joins.length], [[], 1], "closes and joins")
})

scenario("an ephemeral event is delivered without a seq", async ({ document, participant }) => {
  const [ada, bob] = [participant("ada"), participant("bob")]
  const [hers, his] = [await ada.join(document), await bob.join(document)]
  const receipt = await hers.push("cursor.moved", { position: 3 })
  equal(receipt.seq, undefined, "the receipt's seq")
  await bob.until(() => his.ephemeral.length > 0, "the cursor arrives")
  equal([his.ephemeral[0].actor, his.events], ["user:ada", []], "what arrived")
})

scenario("who leaves gets nothing more", async ({ document, participant, publish }) => {
  const ada = participant("ada")
  const notes = await ada.join(document)
  await notes.type("a")
  await ada.until(() => notes.events.length === 1, "the event arrives")
  notes.channel.leave()
  await ada.until(() => notes.closed, "the channel closes")
  await publish(document, { kind: "document.edited", payload: { patches: [[0, 0, "b"]] } })
  await ada.roundTrip()
  equal(notes.seqs, [1], "what arrived")
})

scenario("a second join of a document replaces the first", async ({ document, participant }) => {
  const ada = participant("ada")
  const first = await ada.join(document)
  const second = await ada.join(document)
  await ada.until(() => first.closed, "the first channel closes")
  await second.type("x")
  await ada.until(() => second.events.length === 1, "the second channel gets the event")
  equal(first.events, [], "what the first got")
})

scenario("an unknown topic is refused", async ({ participant }) => {
  const ada = participant("ada")
  const reply = await new Promise((resolve) => ada.socket.channel("kitchen").join().receive("error", resolve))
  equal(reply.reason, "unmatched topic", "the reason")
})

scenario("what does not fit is refused with its reason and hurts nobody", async ({ document, participant }) => {
  const [ada, bob] = [participant("ada"), participant("bob")]
  const [hers, his] = [await ada.join(document), await bob.join(document)]
  await his.type("a")
  const misfit = await refusal(hers.push("document.edited", { patches: "none" }))
  equal(misfit.reason, "invalid_payload", "a payload that does not fit")
  const unknown = await refusal(hers.push("document.sung", {}))
  equal(unknown.reason, "unknown_event", "an unknown kind")
  await hers.type("b")
  await bob.until(() => his.events.length === 2, "the next edit arrives")
  equal([his.seqs, bob.closes, ada.closes], [[1, 2], [], []], "seqs and closes")
})

scenario("a document id that is too long is refused", async ({ participant }) => {
  const ada = participant("ada")
  const topic = `document:${"x".repeat(300)}`
  const reply = await new Promise((resolve) => ada.socket.channel(topic).join().receive("error", resolve))
  equal(reply.reason, "invalid_request", "the reason")
})

scenario("bytes arrive as they were pushed", async ({ document, participant }) => {
  const [ada, bob] = [participant("ada"), participant("bob")]
  const [hers, his] = [await ada.join(document), await bob.join(document)]
  const bytes = Uint8Array.from({ length: 1000 }, (_, index) => index % 256)
  const receipt = await hers.push("document.edited", bytes.buffer)
  await bob.until(() => his.events.length === 1, "the bytes arrive")
  const [event] = his.events
  equal([event.id, event.seq, event.actor], [receipt.id, 1, "user:ada"], "the envelope")
  equal(Array.from(event.payload), Array.from(bytes), "the bytes")
})

scenario("who was away gets exactly what was missed", async ({ document, participant, publish }) => {
  const ada = participant("ada")
  const notes = await ada.join(document)
  await notes.type("a")
  await ada.until(() => notes.events.length === 1, "the event arrives")
  await ada.leave()
  for (const text of ["b", "c"]) await publish(document, { kind: "document.edited", payload: { patches: [[0, 0, text]] } })
  ada.socket.connect()
  await ada.until(() => notes.joins.length === 2, "the client rejoins by itself")
  await ada.until(() => notes.events.length >= 3, "what was missed arrives")
  await notes.type("d")
  await ada.until(() => notes.events.length >= 4, "and then live events")
  equal(notes.seqs, [1, 2, 3, 4], "the seqs")
  equal([notes.joins[1].reset, notes.joins[1].recovered], [false, true], "the second join's reply")
})

for (const [signal, how] of [["SIGTERM", "stopped"], ["SIGKILL", "killed"]]) {
  scenario(`a server that is ${how} and started again loses and doubles nothing`, async (world) => {
    const { document, participant, publish, restart, newId } = world
    const ada = participant("ada", { rejoinAfterMs: () => 50 })
    const notes = await ada.join(document)
    const acknowledged = []
    const publishUpTo = async (count) => {
      while (acknowledged.length < count) {
        const id = newId()
        const payload = { patches: [[0, 0, `${acknowledged.length}`]] }
        const receipt = await publish(document, { id, kind: "document.edited", payload })
        acknowledged.push([receipt.seq, id])
      }
    }
    await publishUpTo(20)
    await ada.until(() => notes.events.length >= 20, "the first events arrive")
    // The publisher goes on while the server is away and comes back.
    const [code] = await Promise.all([restart(signal), publishUpTo(40)])
    await publishUpTo(60)
    await ada.until(() => notes.events.length >= 60, "all events arrive")
    await notes.type("the end")
    await ada.until(() => notes.events.length >= 61, "the last event arrives")
    equal(notes.seqs, upTo(61), "the seqs")
    equal(acknowledged, notes.events.slice(0, 60).map(({ seq, id }) => [seq, id]), "the acknowledged events")
    const rejoin = notes.joins.at(-1)
    equal([notes.joins.length > 1, rejoin.reset, rejoin.recovered], [true, false, true], "the rejoin")
    if (signal === "SIGTERM") equal([code, ada.closes[0]], [0, 1012], "the exit code and the close code")
  })
}

scenario("a server that stops tells its clients to come back", async ({ document, participant, restart }) => {
  const ada = participant("ada", { rejoinAfterMs: () => 50 })
  const notes = await ada.join(document)
  let notice
  notes.channel.on("system.notice", (payload) => (notice = payload))
  await restart("SIGTERM")
  await ada.until(() => notes.joins.length === 2, "the client rejoins by itself")
  equal([notice?.level, notice?.code], ["info", "reconnect"], "the notice")
})
