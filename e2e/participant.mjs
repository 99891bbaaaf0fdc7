// One user of the unmodified phoenix client. It keeps a position as docs/protocol.md shows and records every event. It runs
// in Node and in browsers alike.

const PATIENCE_MS = 30_000

export class Participant {
  #waiting = new Set()

  // `phoenix` is the package; `options` go to its socket.
  constructor(phoenix, url, user, options = {}) {
    this.phoenix = phoenix
    this.user = user
    this.heartbeats = 0
    this.closes = []
    this.socket = new phoenix.Socket(`${url.replace("http", "ws")}/socket`, { params: { user }, ...options })
    this.socket.onMessage(({ topic, event }) => {
      if (topic === "phoenix" && event === "phx_reply") this.#note(() => this.heartbeats++)
    })
    this.socket.onClose((event) => this.#note(() => this.closes.push(event?.code)))
    this.socket.connect()
  }

  #note(change) {
    change()
    for (const check of this.#waiting) check()
  }

  // Joins a document and follows it; `position` is the participant's position, `null` for live events alone. Most scenarios
  // are about published events, so `wishes` has no events of sessions and users by default.
  follow(document, position = { seq: 0 }, wishes = { presence: false }) {
    const followed = new Followed(document, position, (change) => this.#note(change))
    followed.channel = this.socket.channel(`document:${document}`, () => ({ ...followed.position, ...wishes }))
    followed.watch(this.phoenix.Presence)
    followed.listen()
    return followed
  }

  // Joins and waits for the reply.
  async join(document, position, wishes) {
    const followed = this.follow(document, position, wishes)
    followed.joining = followed.channel.join()
    followed.joining.receive("ok", (reply) => this.#note(() => followed.joins.push(reply)))
    await this.until(() => followed.joins.length > 0, `${this.user} joins ${document}`)
    return followed
  }

  // Waits until a condition holds; checks it again after each message.
  until(holds, what) {
    if (holds()) return Promise.resolve()
    return new Promise((resolve, reject) => {
      const check = () => {
        if (!holds()) return
        clearTimeout(timer)
        this.#waiting.delete(check)
        resolve()
      }
      const timer = setTimeout(() => {
        this.#waiting.delete(check)
        reject(new Error(`waited in vain: ${what}`))
      }, PATIENCE_MS)
      this.#waiting.add(check)
    })
  }

  // Waits until the server has answered all earlier messages.
  roundTrip() {
    return new Promise((resolve) => this.socket.ping(resolve))
  }

  leave() {
    return new Promise((resolve) => this.socket.disconnect(resolve))
  }
}

// A participant's state of one document.
class Followed {
  constructor(document, position, note) {
    Object.assign(this, { document, position, note, events: [], ephemeral: [], joins: [], closed: false, errors: 0, seen: [] })
  }

  listen() {
    this.channel.onMessage = (kind, payload) => {
      const event = payload instanceof ArrayBuffer ? decodeBinary(payload) : payload
      if (event?.document !== undefined) this.note(() => this.#take(event))
      return payload
    }
    this.channel.onClose(() => this.note(() => (this.closed = true)))
    this.channel.onError(() => this.note(() => this.errors++))
  }

  // Follows presence with phoenix's own Presence, and records its callbacks: the user, and the number of connections before
  // and after.
  watch(Presence) {
    this.presence = new Presence(this.channel)
    const count = (presence) => presence?.metas.length ?? 0
    const refs = (presence) => presence.metas.map((meta) => meta.phx_ref)
    this.presence.onJoin((user, before, joined) => {
      const isUpdate = joined.metas.some((meta) => refs(before ?? { metas: [] }).includes(meta.phx_ref_prev))
      this.note(() => this.seen.push(`${isUpdate ? "update" : "join"} ${user} ${count(before)}`))
    })
    this.presence.onLeave((user, left, gone) => {
      this.note(() => this.seen.push(`leave ${user} ${left.metas.length}`))
    })
    this.presence.onSync(() => this.note(() => this.seen.push("sync")))
  }

  // The users who are present, each with the states of their connections.
  get present() {
    const users = this.presence.list((user, { metas }) => [user, metas.map(({ phx_ref, phx_ref_prev, ...state }) => state)])
    return Object.fromEntries(users.sort(([one], [other]) => (one < other ? -1 : 1)))
  }

  #take(event) {
    if (event.seq === undefined) return void this.ephemeral.push(event)
    this.events.push(event)
    this.position = { epoch: event.epoch, seq: event.seq }
  }

  // Pushes an event and returns the receipt; throws the server's response when it refuses.
  push(kind, payload) {
    return new Promise((resolve, reject) => {
      const push = this.channel.push(kind, payload)
      push.receive("ok", resolve).receive("error", reject)
      push.receive("timeout", () => reject(new Error(`no answer to ${kind}`)))
    })
  }

  // An edit that inserts at the beginning.
  type(text) {
    return this.push("document.edited", { patches: [[0, 0, text]] })
  }

  get seqs() {
    return this.events.map((event) => event.seq)
  }

  get ids() {
    return this.events.map((event) => event.id)
  }
}

// A binary event: the length of its envelope, the envelope, the bytes.
function decodeBinary(buffer) {
  const length = new DataView(buffer).getUint32(0)
  const envelope = JSON.parse(new TextDecoder().decode(buffer.slice(4, 4 + length)))
  return { ...envelope, payload: new Uint8Array(buffer.slice(4 + length)) }
}
