// The page at `/` in use: two tabs, one document.

import assert from "node:assert/strict"
import { after, before, test } from "node:test"
import { launch, missing } from "./chromium.mjs"
import { Server } from "./server.mjs"

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

// Opens the page in a tab of its own and joins a document there.
async function openTab(document, user) {
  const page = await browser.newPage({ viewport: { width: 1000, height: 640 } })
  const errors = []
  page.on("pageerror", (error) => errors.push(error.message))
  await page.goto(server.url)
  await page.fill("#document-name", document)
  await page.fill("#user-name", user)
  await page.click("#join")
  await page.waitForSelector("#editor:enabled")
  return { page, errors }
}

const seqs = (page) => page.locator("#events [data-seq]").evaluateAll((rows) => rows.map((row) => Number(row.dataset.seq)))

// Waits until a tab shows `text` and the rows of that many events.
async function shows(page, text, events) {
  await page.waitForFunction(
    ({ text, events }) =>
      document.querySelector("#editor").value === text && document.querySelectorAll("#events [data-seq]").length >= events,
    { text, events },
  )
}

test("in Chromium: what is typed in one tab shows in the other, with the same events in the same order", { skip: missing }, async () => {
  const [ada, bob] = [await openTab("tour", "ada"), await openTab("tour", "bob")]
  await ada.page.locator("#editor").pressSequentially("Hello Bob 👋")
  await shows(bob.page, "Hello Bob 👋", 1)
  await bob.page.locator("#editor").press("End")
  await bob.page.locator("#editor").pressSequentially(" and Ada")
  const text = "Hello Bob 👋 and Ada"
  await shows(ada.page, text, 1)
  await shows(bob.page, text, (await seqs(ada.page)).length)
  assert.deepEqual(await seqs(bob.page), await seqs(ada.page))
  for (const { page } of [ada, bob]) assert.equal(await page.textContent("#users"), "ada, bob")
  if (process.env.RELAY_SCREENSHOT) await bob.page.screenshot({ path: process.env.RELAY_SCREENSHOT })
  assert.deepEqual([ada.errors, bob.errors], [[], []])
  await Promise.all([ada.page.close(), bob.page.close()])
})

test("in Chromium: a tab that comes back shows the document as it is", { skip: missing }, async () => {
  const ada = await openTab("return", "ada")
  await ada.page.locator("#editor").pressSequentially("kept")
  const again = await openTab("return", "ada")
  await shows(again.page, "kept", 1)
  await again.page.waitForFunction(() => document.querySelector("#users").textContent === "ada ×2")
  await ada.page.close()
  // A closed tab may be loading again, so its presence stays for the grace time.
  await again.page.waitForFunction(() => document.querySelector("#users").textContent === "ada")
  await again.page.close()
})

test("in Chromium: a tab goes on after the server was killed and started again", { skip: missing }, async () => {
  const [ada, bob] = [await openTab("restart", "ada"), await openTab("restart", "bob")]
  await ada.page.locator("#editor").pressSequentially("before")
  await shows(bob.page, "before", 1)
  await server.restart("SIGKILL")
  await ada.page.locator("#editor").press("End")
  await ada.page.locator("#editor").pressSequentially(" after")
  await shows(bob.page, "before after", 1)
  await shows(ada.page, "before after", 1)
  await Promise.all([ada.page.close(), bob.page.close()])
})

test("in Chromium: text that is refused stays until its author decides", { skip: missing }, async () => {
  const locks = `${server.url}/v1/documents/refused/locks`
  const headers = { "content-type": "application/json" }
  const ask = async (method, path, body) => {
    const answer = await fetch(path, { method, headers, body: JSON.stringify(body) })
    assert.ok(answer.ok, `${method} ${path}: ${answer.status}`)
    return answer.status === 204 ? null : answer.json()
  }
  const [ada, bob] = [await openTab("refused", "ada"), await openTab("refused", "bob")]
  await ada.page.locator("#editor").pressSequentially("Agreed.")
  await shows(bob.page, "Agreed.", 1)
  const lease = await ask("POST", locks, { user: "eve", ttl_ms: 60_000 })
  await ada.page.locator("#editor").press("End")
  await ada.page.locator("#editor").pressSequentially(" Eighteen letters!")
  await ada.page.waitForSelector("#refused:visible")
  assert.match(await ada.page.textContent("#refusal"), /locked.*eve/)
  assert.equal(await ada.page.inputValue("#editor"), "Agreed. Eighteen letters!")
  assert.equal(await ada.page.textContent("#pending"), "yes")
  assert.equal(await bob.page.inputValue("#editor"), "Agreed.")
  // Once the lock is gone, others edit, and the refused text moves with their edits.
  await ask("DELETE", `${locks}/${lease.token}?user=eve`)
  await bob.page.locator("#editor").press("Home")
  await bob.page.locator("#editor").pressSequentially("> ")
  await shows(bob.page, "> Agreed.", 1)
  await shows(ada.page, "> Agreed. Eighteen letters!", 1)
  await ada.page.click("#send-again")
  await shows(bob.page, "> Agreed. Eighteen letters!", 1)
  assert.equal(await ada.page.isVisible("#refused"), false)
  // What its author discards is gone, and the text is the shared one.
  const second = await ask("POST", locks, { user: "eve", ttl_ms: 60_000 })
  await ada.page.locator("#editor").press("End")
  await ada.page.locator("#editor").pressSequentially(" No.")
  await ada.page.waitForSelector("#refused:visible")
  await ada.page.click("#discard")
  assert.equal(await ada.page.inputValue("#editor"), "> Agreed. Eighteen letters!")
  assert.equal(await ada.page.isVisible("#refused"), false)
  await ask("DELETE", `${locks}/${second.token}?user=eve`)
  assert.deepEqual([ada.errors, bob.errors], [[], []])
  await Promise.all([ada.page.close(), bob.page.close()])
})

test("in Chromium: a document whose beginning is gone says so for as long as it is shown", { skip: missing }, async () => {
  const trimming = await Server.start(["--set", "retention.max_events=5"])
  try {
    const headers = { "content-type": "application/json" }
    const drafts = [..."abcdefghij"].map((letter, at) => ({ kind: "document.edited", actor: "user:curl", payload: { patches: [[at, 0, letter]] } }))
    for (const draft of drafts) {
      const answer = await fetch(`${trimming.url}/v1/documents/old/events`, { method: "POST", headers, body: JSON.stringify(draft) })
      assert.equal(answer.status, 201)
    }
    // The log drops events soon, and not at once.
    while ((await fetch(`${trimming.url}/v1/documents/old/events?after_seq=0`)).status !== 410) await new Promise(setImmediate)
    const page = await browser.newPage()
    await page.goto(`${trimming.url}/?document=old&user=ada`)
    await page.waitForSelector("#editor:enabled")
    await page.waitForFunction(() => document.querySelector("#status").dataset.state === "joined")
    assert.match(await page.textContent("#lasting"), /beginning of this document is no longer kept/)
    assert.equal(await page.isVisible("#lasting"), true)
    await page.locator("#editor").press("End")
    await page.locator("#editor").pressSequentially("!")
    await page.waitForFunction(() => document.querySelector("#pending").textContent === "no")
    assert.equal(await page.isVisible("#lasting"), true)
    await page.close()
  } finally {
    await trimming.close()
  }
})

test("in Chromium: what the services find is shown, the latest of it, also to who comes later", { skip: missing }, async () => {
  const publish = async (draft) => {
    const headers = { "content-type": "application/json" }
    const answer = await fetch(`${server.url}/v1/documents/found/events`, { method: "POST", headers, body: JSON.stringify(draft) })
    assert.equal(answer.status, 201)
  }
  const summary = (title, ease) => ({
    kind: "x-summary",
    actor: "service:stitch",
    payload: {
      quality: { result: { reading_ease: ease, flags: [{ name: "doubled_word", count: 1, examples: ["the the"] }] } },
      metadata: { result: { title, language: { name: "English" }, words: 120, reading_seconds: 31 } },
      tags: [{ tag: "retry budget", annotations: 2 }],
    },
  })
  const shown = (page) => page.waitForFunction(() => document.querySelector("#metadata").textContent.includes("The plan"))
  const ada = await openTab("found", "ada")
  assert.equal(await ada.page.isVisible("#no-summary"), true)
  await publish(summary("A draft", 20))
  await publish(summary("The plan", 64.6))
  // A user's event does not count as a service's result.
  await publish({ ...summary("Nonsense", 1), actor: "user:mallory" })
  await shown(ada.page)
  const bob = await openTab("found", "bob")
  await shown(bob.page)
  for (const { page } of [ada, bob]) {
    const text = async (selector) => (await page.locator(selector).innerText()).replaceAll(/\s+/g, " ")
    assert.equal(await text("#metadata"), "title The plan language English words 120 reading time 31 s")
    assert.equal(await text("#quality"), "reading ease 64.6 – standard")
    assert.equal(await text("#flags"), "doubled words: 1 – “the the”")
    assert.equal(await text("#tags"), "retry budget ×2")
  }
  await ada.page.fill("#annotation", "needs a retry budget")
  await ada.page.press("#annotation", "Enter")
  const row = bob.page.locator("#events tr", { hasText: "annotation.added" })
  await row.waitFor()
  assert.match(await row.innerText(), /user:ada.*"text":"needs a retry budget"/s)
  assert.equal(await ada.page.inputValue("#annotation"), "")
  if (process.env.RELAY_SCREENSHOT_FOUND) await bob.page.screenshot({ path: process.env.RELAY_SCREENSHOT_FOUND, fullPage: true })
  assert.deepEqual([ada.errors, bob.errors], [[], []])
  await Promise.all([ada.page.close(), bob.page.close()])
})

test("in Chromium: a tab that comes back to a document without its beginning shows what it had not shared", { skip: missing }, async () => {
  const trimming = await Server.start(["--set", "retention.max_events=5"])
  try {
    const page = await browser.newPage()
    let offline = false
    let socket
    await page.routeWebSocket(/websocket/, (opened) => {
      if (offline) return opened.close()
      socket = opened
      opened.connectToServer()
    })
    await page.goto(`${trimming.url}/?document=old&user=ada`)
    await page.waitForFunction(() => document.querySelector("#status").dataset.state === "joined")
    await page.locator("#editor").pressSequentially("a")
    await page.waitForFunction(() => document.querySelector("#pending").textContent === "no")
    offline = true
    await socket.close()
    await page.waitForFunction(() => document.querySelector("#status").dataset.state !== "joined")
    await page.locator("#editor").press("End")
    await page.locator("#editor").pressSequentially("lost words")
    const draft = { kind: "document.edited", actor: "user:curl", payload: { patches: [[0, 0, "b"]] } }
    const request = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(draft) }
    for (let count = 0; count < 10; count++) {
      assert.equal((await fetch(`${trimming.url}/v1/documents/old/events`, request)).status, 201)
    }
    while ((await fetch(`${trimming.url}/v1/documents/old/events?after_seq=2`)).status !== 410) await new Promise(setImmediate)
    offline = false
    await page.waitForFunction(() => document.querySelector("#lasting").textContent.includes("no longer kept"))
    assert.match(await page.textContent("#lasting"), /nobody had got was: “lost words”/)
    await page.close()
  } finally {
    await trimming.close()
  }
})
