// The page: one document, joined over the same WebSocket protocol that any `phoenix` client speaks.
//
// The text is what the ordered events make of it (`SharedText`). What is typed here and not yet among them is laid on
// top: at most one edit is on its way (`sent`), and the rest is what the editor differs by. An event of somebody
// else moves both over itself.

import { Channel } from "./phoenix.js"
import { showSummary } from "./summary.js"
import { SharedText, apply, difference, moveCaret, operation, transform } from "./text.js"

const NAMES = ["ada", "bob", "cleo", "dan", "eve", "finn", "gina", "hugo"]
const MOST_ROWS = 300
const RETRY_MS = 1000

const $ = (id) => document.getElementById(id)
const editor = $("editor")

let session = null // what is joined now
let composing = false // an input method is at work: the editor's text is not to be touched

class Session {
  constructor(name, user) {
    this.name = name
    this.user = user
    this.#start()
    const url = new URL("/socket/websocket", location.href)
    url.protocol = url.protocol.replace("http", "ws")
    url.search = new URLSearchParams({ vsn: "2.0.0", user })
    this.channel = new Channel(url.href, `document:${name}`, () => this.#position(), {
      joined: (reply) => this.#joined(reply),
      event: (kind, envelope) => this.#event(envelope),
      presence: (users) => showUsers(users),
      state: (state, detail) => show(state, detail),
    })
  }

  #start() {
    this.text = new SharedText()
    this.epoch = null
    this.sent = null // the edit on its way: {id, draft, operation, at}
    this.shown = [] // the code points in the editor
    this.catchingUp = false
    this.online = false
    this.refused = false // the server has refused what the editor differs by: it stays until its author decides
    $("refused").hidden = true
    this.summary = null // what the services have found
    showSummary(null)
  }

  #position() {
    return this.epoch === null ? { seq: 0 } : { epoch: this.epoch, seq: this.text.seq }
  }

  #joined(reply) {
    const returned = this.epoch !== null && !reply.reset
    if (reply.reset) this.#reset(reply)
    this.epoch = reply.epoch
    this.text.seq = reply.position
    this.history = reply.seq // what comes up to here had happened before
    this.online = true
    this.catchingUp = !returned && reply.position < reply.seq
    editor.disabled = this.catchingUp
    $("annotation").disabled = $("add-annotation").disabled = false
    $("epoch").textContent = reply.epoch
    if (returned) showRecovery(reply)
    this.#facts()
    // An edit whose answer never came is sent again under its id: the server keeps it once, whatever it had done.
    if (this.sent) this.#push()
    else this.#send()
  }

  #reset(reply) {
    const had = this.shown.length > 0
    const unshared = difference(this.text.points, this.shown)?.[2] ?? ""
    this.#start()
    setEditor("", 0, 0)
    $("events").replaceChildren()
    const words = unshared && ` What you had typed and nobody had got was: “${unshared}”`
    if (reply.reset_reason === "trimmed") {
      lasting(`The beginning of this document is no longer kept. The text here is incomplete: it is made of the later edits alone.${words}`)
    } else if (had) {
      lasting(`The server's history is another one now; the page starts again from it.${words}`)
    }
  }

  #event(envelope) {
    if (composing) return held.push(envelope)
    this.take(envelope)
  }

  take(envelope) {
    const own = this.sent !== null && envelope.id === this.sent.id
    addRow(envelope, this.#latency(envelope, own), envelope.actor === `user:${this.user}`)
    if (!envelope.seq) return
    if (envelope.lost) lasting("The server lost an event of this document. The text here may be incomplete.")
    if (envelope.kind === "x-summary" && !envelope.expired && envelope.actor.startsWith("service:")) this.#summary(envelope.payload)
    if (this.catchingUp) return this.#catchUp(envelope)
    if (own) this.#confirm(envelope)
    else this.#merge(envelope)
    this.#facts()
    if (own) this.#send()
  }

  // What happened before the page was opened is shown when all of it is here.
  #catchUp(envelope) {
    this.text.take(envelope)
    if (envelope.seq < this.history) return
    this.catchingUp = false
    editor.disabled = false
    this.#render([...this.text.points], [])
    if (this.summary) showSummary(this.summary)
    this.#facts()
  }

  #summary(payload) {
    this.summary = payload
    if (!this.catchingUp) showSummary(payload)
  }

  // Says something about what is selected in the editor, or about all of it.
  async annotate(text) {
    const points = (units) => [...editor.value.slice(0, units)].length
    const range = [points(editor.selectionStart), points(editor.selectionEnd)]
    const payload = { annotation: uuid(), text, ...(range[0] < range[1] && { range }) }
    try {
      await this.channel.push("publish", { kind: "annotation.added", id: payload.annotation, payload })
      return true
    } catch (error) {
      notice(`The annotation was not added: ${error.message}`)
      return false
    }
  }

  #latency(envelope, own) {
    if (own) return `${Math.max(0, performance.now() - this.sent.at).toFixed(1)} ms`
    if (envelope.seq && envelope.seq <= this.history) return "history"
    return `${Math.max(0, Date.now() - Date.parse(envelope.time))} ms`
  }

  // The edit that was on its way has its place.
  #confirm(envelope) {
    const expected = JSON.stringify(apply(this.text.points, this.sent.operation))
    this.sent = null
    this.text.take(envelope)
    // Only an edit that was very long on its way can have come to something else; then the order is the truth.
    if (JSON.stringify(this.text.points) !== expected) this.#render(this.text.points, [])
  }

  // Somebody else's event comes before what is not confirmed yet.
  #merge(envelope) {
    const base = this.sent ? apply(this.text.points, this.sent.operation) : [...this.text.points]
    const patch = difference(base, this.shown)
    let typed = patch && operation(patch)
    const moves = []
    for (let op of this.text.take(envelope)) {
      if (this.sent) [op, this.sent.operation] = transform(op, this.sent.operation)
      if (typed) [op, typed] = transform(op, typed)
      moves.push(op)
    }
    if (moves.length > 0) this.#render(moves.reduce(apply, this.shown), moves)
  }

  #render(points, moves) {
    const caret = (units) => {
      const position = moves.reduce(moveCaret, [...editor.value.slice(0, units)].length)
      return points.slice(0, position).join("").length
    }
    const [start, end] = [caret(editor.selectionStart), caret(editor.selectionEnd)]
    this.shown = points
    setEditor(points.join(""), start, end)
  }

  // What the person types.
  typed() {
    this.shown = [...editor.value]
    this.#send()
  }

  // Sends what the editor differs by, unless an edit is on its way already.
  #send() {
    if (this.sent || !this.online || this.catchingUp) return this.#facts()
    const patch = difference(this.text.points, this.shown)
    if (this.refused && patch) return this.#facts()
    this.#settle()
    if (patch) {
      const id = uuid()
      const payload = { patches: [patch], base: this.text.seq }
      this.sent = { id, draft: { kind: "document.edited", id, payload }, operation: operation(patch), at: performance.now() }
      this.#push()
    }
    this.#facts()
  }

  async #push() {
    const { id, draft } = this.sent
    try {
      await this.channel.push("publish", draft)
      // Its event comes, or has come, in its place among the others.
    } catch (error) {
      if (error.reason === "disconnected") this.online = false
      else if (this.sent?.id !== id) return
      else if (["overloaded", "too_many_documents", "log_failed", "not_owner"].includes(error.reason)) {
        notice(`${error.message} — trying again.`)
        setTimeout(() => session === this && this.online && this.sent?.id === id && this.#push(), RETRY_MS)
      } else if (error.reason !== "closed") {
        // The text stays in the editor, and nobody else gets it until its author decides.
        this.sent = null
        this.refused = true
        $("refusal").textContent = error.message
        $("refused").hidden = false
        this.#facts()
      }
    }
  }

  // Sends what was refused once more.
  again() {
    this.#settle()
    this.#send()
  }

  // Gives up what was refused.
  discard() {
    this.#settle()
    this.#render([...this.text.points], [])
    this.#facts()
  }

  #settle() {
    this.refused = false
    $("refused").hidden = true
  }

  #facts() {
    $("seq").textContent = this.text.seq
    $("pending").textContent = this.sent || difference(this.text.points, this.shown) ? "yes" : "no"
  }
}

// Events that came while an input method was at work.
const held = []

function setEditor(text, start, end) {
  if (editor.value === text) return
  editor.value = text
  if (document.activeElement === editor) editor.setSelectionRange(start, end)
}

const STATES = { connecting: "connecting …", joined: "connected", waiting: "connecting again", refused: "refused" }

function show(state, detail) {
  const status = $("status")
  status.dataset.state = state
  status.textContent = detail ? `${STATES[state]}: ${detail}` : STATES[state]
  if (state === "joined") $("notice").hidden = true
  else if (session) session.online = false
}

// Everybody who is there, with the number of their tabs where they have several.
function showUsers(users) {
  const names = Object.entries(users).map(([user, refs]) => (refs.length > 1 ? `${user} ×${refs.length}` : user))
  $("users").textContent = names.sort().join(", ") || "–"
}

function showRecovery({ position, seq }) {
  const missed = seq - position
  const what = missed === 0 ? "nothing was missed" : `${missed} missed event${missed === 1 ? "" : "s"} recovered`
  $("recovery").textContent = `Connected again after seq ${position}: ${what}.`
  $("recovery").hidden = false
}

// What stays true while the page shows this document.
function lasting(text) {
  $("lasting").textContent = text
  $("lasting").hidden = false
}

function notice(text) {
  $("notice").textContent = text
  $("notice").hidden = false
}

function addRow(envelope, latency, mine) {
  const row = document.createElement("tr")
  if (envelope.seq) row.dataset.seq = envelope.seq
  else row.classList.add("ephemeral")
  row.classList.toggle("mine", mine)
  for (const text of [envelope.seq ?? "–", envelope.kind, envelope.actor, summary(envelope), latency]) {
    const cell = document.createElement("td")
    cell.textContent = text
    cell.title = text
    row.append(cell)
  }
  row.lastChild.classList.toggle("history", latency === "history")
  const rows = $("events")
  rows.prepend(row)
  while (rows.children.length > MOST_ROWS) rows.lastChild.remove()
  $("none").hidden = true
}

// What an event says, in a few characters.
function summary({ payload, bytes, payload_base64, expired, lost }) {
  if (expired) return "expired"
  if (lost) return "lost"
  if (bytes !== undefined) return `${bytes} bytes`
  if (payload_base64 !== undefined) return "binary"
  if (!Array.isArray(payload?.patches)) return JSON.stringify(payload)
  return payload.patches
    .map(([at, deleted, text]) => `@${at}${deleted ? ` −${deleted}` : ""}${text ? ` +${JSON.stringify(text)}` : ""}`)
    .join(", ")
}

// `crypto.randomUUID` is not there on pages that came over plain HTTP from another machine.
function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16))
  bytes[6] = (bytes[6] & 0x0f) | 0x40
  bytes[8] = (bytes[8] & 0x3f) | 0x80
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")
  return hex.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, "$1-$2-$3-$4-$5")
}

const quoted = (text) => (/^[\w.:/-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`)

function commands(name) {
  const path = `${location.origin}/v1/documents/${encodeURIComponent(name)}/events`
  const url = location.origin === "http://127.0.0.1:7400" ? "" : ` --url ${location.origin}`
  const texts = {
    tail: `relay tail ${quoted(name)} --after-seq 0${url}`,
    publish: `relay publish ${quoted(name)} x-note '{"text": "hello"}' --actor service:shell${url}`,
    edit: `curl ${quoted(path)} -H 'content-type: application/json' -d '{"kind": "document.edited", "actor": "user:curl", "payload": {"patches": [[0, 0, "Hi! "]]}}'`,
    read: `curl ${quoted(`${path}?after_seq=0`)}`,
  }
  for (const code of document.querySelectorAll("[data-command]")) code.textContent = texts[code.dataset.command]
}

function join(name, user) {
  session?.channel.leave()
  held.length = 0
  editor.value = ""
  $("events").replaceChildren()
  $("none").hidden = false
  $("recovery").hidden = true
  $("notice").hidden = true
  $("lasting").hidden = true
  session = new Session(name, user)
  history.replaceState(null, "", `?${new URLSearchParams({ document: name, user })}`)
  document.title = `${name} – Relay`
  $("who").textContent = `you are ${user}`
  const other = NAMES.find((one) => one !== user)
  $("second").href = `?${new URLSearchParams({ document: name, user: other })}`
  $("second").querySelector("b").textContent = other
  $("second").hidden = false
}

$("entry").addEventListener("submit", (event) => {
  event.preventDefault()
  join($("document-name").value, $("user-name").value)
})
$("annotate").addEventListener("submit", async (event) => {
  event.preventDefault()
  const input = $("annotation")
  if (session && (await session.annotate(input.value))) input.value = ""
})
$("document-name").addEventListener("input", () => commands($("document-name").value || "notes"))
$("send-again").addEventListener("click", () => session?.again())
$("discard").addEventListener("click", () => session?.discard())
editor.addEventListener("input", () => composing || session?.typed())
editor.addEventListener("compositionstart", () => (composing = true))
editor.addEventListener("compositionend", () => {
  composing = false
  if (!session) return
  session.shown = [...editor.value]
  for (const envelope of held.splice(0)) session.take(envelope)
  session.typed()
})

const wanted = new URLSearchParams(location.search)
$("document-name").value = wanted.get("document") ?? "notes"
$("user-name").value = wanted.get("user") ?? NAMES[Math.floor(Math.random() * NAMES.length)]
commands($("document-name").value)
if (wanted.get("document") && wanted.get("user")) join(wanted.get("document"), wanted.get("user"))
