// The scenarios of the unmodified client, each of which is run in Node and in Chromium.
//
// A scenario gets its context: `document`, the name of a fresh document; `participant(user, options)`, which connects a
// user; `newId()`; `cut(user, forGood)`, which breaks a user's connections without a close, and `mend(user)`; and the
// server. Its `publish(document, draft)` publishes over HTTP across restarts, and its `restart(signal)` returns the exit
// code of the old process.

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

scenario("a push that is too large is refused, and its channel goes on", async ({ document, participant }) => {
  const ada = participant("ada")
  const notes = await ada.join(document)
  for (const payload of [{ text: "x".repeat(1_200_000) }, new ArrayBuffer(1_200_000)]) {
    const refused = await refusal(notes.push("x-note", payload))
    equal(refused.reason, "too_large", "the reason")
  }
  const receipt = await notes.type("small")
  equal([receipt.seq, ada.closes, notes.joins.length], [1, [], 1], "the seq, closes and joins")
})

scenario("a client that leaves gets nothing more", async ({ document, participant, publish }) => {
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

scenario("a malformed push is refused with its reason and harms no other client", async ({ document, participant }) => {
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

scenario("a client that was away gets exactly the missed events", async ({ document, participant, publish }) => {
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

scenario("everybody sees who is there, however many tabs somebody has", async ({ document, participant }) => {
  const bob = participant("bob")
  const his = await bob.join(document, null, {})
  await bob.until(() => his.seen.includes("sync"), "the state arrives")
  equal(his.present, { bob: [{}] }, "who is there")
  const tabs = [participant("ada"), participant("ada")]
  const first = await tabs[0].join(document, null, {})
  await bob.until(() => his.present.ada?.length === 1, "ada is there")
  const second = await tabs[1].join(document, null, {})
  await bob.until(() => his.present.ada?.length === 2, "ada's second tab is there")
  equal(first.joins[0].session, second.joins[0].session, "the session of both tabs")
  first.channel.leave()
  await bob.until(() => his.present.ada?.length === 1, "one tab is left")
  await tabs[1].leave()
  await bob.until(() => his.present.ada === undefined, "ada is gone")
  const changes = his.seen.filter((seen) => seen !== "sync")
  // The first is bob himself; a sync follows every change.
  equal(changes, ["join bob 0", "join ada 0", "join ada 1", "leave ada 1", "leave ada 0"], "the callbacks")
  equal([his.seen[0], his.seen.at(-1)], ["join bob 0", "sync"], "the first and the last callback")
  equal([his.events, his.ephemeral], [[], []], "the events: sessions and users are presence to members")
})

scenario("the others see a user's name and typing", async ({ document, participant }) => {
  const [ada, bob] = [participant("ada"), participant("bob")]
  const his = await bob.join(document, null, {})
  const hers = await ada.join(document, null, { state: { name: "Ada", colour: "teal" } })
  await bob.until(() => his.present.ada?.[0].name === "Ada", "the name arrives")
  await hers.push("presence:update", { typing: true, colour: null })
  await bob.until(() => his.present.ada?.[0].typing, "that she types arrives")
  equal(his.present.ada, [{ name: "Ada", typing: true }], "her state")
  equal(his.seen.filter((seen) => seen.includes("ada")), ["join ada 0", "update ada 1", "leave ada 1"], "the callbacks")
  const refused = await refusal(hers.push("presence:update", { phx_ref: "mine" }))
  equal(refused.reason, "invalid_request", "a reserved name")
  await hers.push("cursor", { position: 4 })
  await bob.until(() => his.ephemeral.some((event) => event.payload.position === 4), "her cursor arrives")
})

scenario("a connection that breaks and is back soon is noticed by nobody", async (world) => {
  const { document, participant, cut } = world
  const [ada, bob] = [participant("ada", { rejoinAfterMs: () => 50, reconnectAfterMs: () => 50 }), participant("bob")]
  const his = await bob.join(document, null, {})
  const hers = await ada.join(document, null, { state: { name: "Ada" } })
  await bob.until(() => his.present.ada, "ada is there")
  const before = his.seen.length
  await cut("ada")
  await ada.until(() => hers.joins.length === 2, "the client is back by itself")
  await hers.push("presence:update", { back: true })
  await bob.until(() => his.present.ada?.[0].back, "what she does then arrives")
  equal(his.present.ada, [{ back: true, name: "Ada" }], "her state has outlived the break")
  const since = his.seen.slice(before).filter((seen) => seen !== "sync")
  equal(since, ["update ada 1", "leave ada 1"], "the callbacks since")
})

scenario("a client that does not come back is gone after the grace time, and so are its locks", async (world) => {
  const { document, participant, cut, mend } = world
  const [ada, bob] = [participant("ada", { reconnectAfterMs: () => 50 }), participant("bob")]
  const his = await bob.join(document, null, {})
  const hers = await ada.join(document, null, {})
  await bob.until(() => his.present.ada, "ada is there")
  await hers.push("lock:acquire", { region: "intro" })
  await cut("ada", true)
  await bob.until(() => his.present.ada === undefined, "ada is gone")
  equal(his.seen.at(-2), "leave ada 0", "the callback")
  await bob.until(() => his.events.some(({ kind }) => kind === "document.unlocked"), "the lock is free")
  const told = his.events.map(({ kind, payload }) => [kind, payload.holder, payload.reason])
  equal(told, [["document.locked", "ada", undefined], ["document.unlocked", "ada", "holder_gone"]], "the events about ada")
  await mend("ada")
  await bob.until(() => his.present.ada, "ada is there again")
})

scenario("a lock keeps the others' edits out until it is released", async ({ document, participant, publish }) => {
  const [ada, bob] = [participant("ada"), participant("bob")]
  const [hers, his] = [await ada.join(document, undefined, {}), await bob.join(document, undefined, {})]
  const lock = await hers.push("lock:acquire", { ttl_ms: 60_000 })
  equal([lock.holder, lock.token > 0], ["ada", true], "the lock")
  const refused = await refusal(his.type("no"))
  equal([refused.reason, refused.holder], ["locked", "ada"], "an edit under somebody else's lock")
  equal((await refusal(his.push("lock:acquire", {}))).holder, "ada", "who holds the lock")
  equal((await refusal(his.push("lock:release", { token: lock.token }))).reason, "stale_lock", "releasing it")
  await hers.push("publish", {
    kind: "document.edited", payload: { patches: [[0, 0, "yes"]] }, metadata: { lock_token: `${lock.token}` },
  })
  // Bob waits for his turn.
  const waiting = his.push("lock:acquire", { wait_ms: 8_000 })
  const renewed = await hers.push("lock:renew", { token: lock.token, ttl_ms: 90_000 })
  equal(renewed.expires_at > lock.expires_at, true, "the lease is longer")
  const renewal = ({ kind, payload }) => kind === "lock.renewed" && payload.expires_at === renewed.expires_at
  await bob.until(() => his.ephemeral.some(renewal), "the others see how long")
  await hers.push("lock:release", { token: lock.token })
  const next = await waiting
  equal([next.holder, next.token > lock.token], ["bob", true], "the next lock")
  const stale = await refusal(hers.push("publish", {
    kind: "document.edited", payload: { patches: [[0, 0, "late"]] }, metadata: { lock_token: `${lock.token}` },
  }))
  equal([stale.reason, stale.holder], ["stale_lock", "bob"], "an edit under a lock that has ended")
  await his.type("mine")
  const forged = await refusal(hers.push("document.unlocked", { holder: "bob", token: next.token, reason: "forced" }))
  equal(forged.reason, "reserved_event", "a client that tells of locks itself")
  const info = await hers.push("session:info", {})
  equal(info.participants.map(({ user }) => user), ["ada", "bob"], "who is in the session")
  await his.push("lock:release", { token: next.token })
  await ada.until(() => hers.events.filter(({ kind }) => kind === "document.unlocked").length === 2, "the events arrive")
  const text = hers.events.filter(({ kind }) => kind === "document.edited").map(({ payload }) => payload.patches[0][2])
  equal(text, ["yes", "mine"], "the edits")
})
