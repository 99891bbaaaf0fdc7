// A small client of Phoenix Channels (serializer 2.0.0): one socket, one topic, written out so that it can be read.
// It connects again by itself, with growing waits, and joins with whatever `joinPayload()` says by then.

const RECONNECT_MS = [50, 100, 250, 500, 1000, 2000, 5000]
const REJOIN_MS = 1000
const HEARTBEAT_MS = 30_000
const REPLY_MS = 10_000

export class Channel {
  #url
  #topic
  #joinPayload
  #on
  #socket = null
  #ref = 0
  #joinRef = null
  #users = {} // who is there: {user: [ref of each connection]}
  #waiting = new Map() // ref → what to do with the reply
  #attempts = 0
  #timers = new Set()
  #left = false

  // `on`: joined(reply), event(kind, envelope), state("connecting" | "joined" | "waiting" | "refused", detail)
  constructor(url, topic, joinPayload, on) {
    this.#url = url
    this.#topic = topic
    this.#joinPayload = joinPayload
    this.#on = on
    this.#connect()
  }

  // Resolves to the reply's response; rejects with {reason, message}. The reason is "disconnected" when it is not
  // known whether the server took the push.
  push(event, payload) {
    return this.#request(event, payload)
  }

  leave() {
    this.#left = true
    this.#clear()
    this.#socket?.close()
  }

  #connect() {
    if (this.#left) return
    this.#on.state("connecting")
    const socket = new WebSocket(this.#url)
    socket.binaryType = "arraybuffer"
    this.#socket = socket
    socket.onopen = () => {
      this.#heartbeat()
      this.#join()
    }
    socket.onmessage = (message) => this.#receive(message.data)
    socket.onclose = (close) => this.#closed(socket, close)
  }

  #closed(socket, close) {
    if (this.#left || socket !== this.#socket) return
    this.#socket = null
    this.#clear()
    const wait = RECONNECT_MS[Math.min(this.#attempts++, RECONNECT_MS.length - 1)]
    const detail = close.code === 1012 ? "the server restarts" : `the connection ended (${close.code})`
    this.#on.state("waiting", detail)
    this.#after(wait * (0.5 + Math.random()), () => this.#connect())
  }

  // Nothing that was asked on the old connection will be answered.
  #clear() {
    for (const timer of this.#timers) clearTimeout(timer)
    this.#timers.clear()
    const waiting = [...this.#waiting.values()]
    this.#waiting.clear()
    for (const { reject } of waiting) reject({ reason: "disconnected", message: "the connection ended" })
  }

  #after(ms, action) {
    const timer = setTimeout(() => {
      this.#timers.delete(timer)
      action()
    }, ms)
    this.#timers.add(timer)
  }

  async #join() {
    this.#joinRef = String(++this.#ref)
    try {
      const reply = await this.#request("phx_join", this.#joinPayload(), this.#joinRef)
      this.#attempts = 0
      this.#on.joined(reply)
      this.#on.state("joined")
    } catch (error) {
      if (error.reason === "disconnected") return
      if (error.reason === "invalid_request") return this.#on.state("refused", error.message)
      this.#on.state("waiting", error.message)
      this.#after(REJOIN_MS, () => this.#join())
    }
  }

  async #heartbeat() {
    try {
      await this.#request("heartbeat", {}, String(++this.#ref), "phoenix", null)
      this.#after(HEARTBEAT_MS, () => this.#heartbeat())
    } catch {
      this.#socket?.close()
    }
  }

  #request(event, payload, ref = String(++this.#ref), topic = this.#topic, joinRef = this.#joinRef) {
    return new Promise((resolve, reject) => {
      if (this.#socket?.readyState !== WebSocket.OPEN) {
        return reject({ reason: "disconnected", message: "there is no connection" })
      }
      this.#waiting.set(ref, { resolve, reject })
      this.#after(REPLY_MS, () => {
        if (this.#waiting.has(ref)) this.#socket?.close()
      })
      this.#socket.send(JSON.stringify([joinRef, ref, topic, event, payload]))
    })
  }

  #receive(data) {
    if (typeof data !== "string") return this.#receiveBinary(data)
    const [joinRef, ref, topic, event, payload] = JSON.parse(data)
    if (event === "phx_reply") return this.#reply(ref, payload)
    if (topic !== this.#topic) return
    if (event === "phx_error" && joinRef === this.#joinRef) {
      this.#on.state("waiting", `the channel ended: ${payload.reason}`)
      this.#after(REJOIN_MS, () => this.#join())
    } else if (event === "presence_state" || event === "presence_diff") {
      this.#on.presence(this.#present(event, payload))
    } else if (!event.startsWith("phx_")) {
      this.#on.event(event, payload)
    }
  }

  // Who is there, as `{user: [ref of each connection]}`, after this message.
  #present(event, payload) {
    const refs = ({ metas }) => metas.map((meta) => meta.phx_ref)
    const change = event === "presence_state" ? { joins: payload, leaves: {} } : payload
    if (event === "presence_state") this.#users = {}
    for (const [user, joined] of Object.entries(change.joins)) {
      this.#users[user] = [...(this.#users[user] ?? []), ...refs(joined)]
    }
    for (const [user, left] of Object.entries(change.leaves)) {
      const stay = (this.#users[user] ?? []).filter((ref) => !refs(left).includes(ref))
      if (stay.length > 0) this.#users[user] = stay
      else delete this.#users[user]
    }
    return this.#users
  }

  #reply(ref, { status, response }) {
    const waiting = this.#waiting.get(ref)
    this.#waiting.delete(ref)
    if (status === "ok") waiting?.resolve(response)
    else waiting?.reject(response)
  }

  // A broadcast with a binary payload: the lengths of topic and event, these two, the length of the envelope, the
  // envelope, and the bytes.
  #receiveBinary(buffer) {
    const view = new DataView(buffer)
    const text = (from, length) => new TextDecoder().decode(new Uint8Array(buffer, from, length))
    if (view.getUint8(0) !== 2) return
    const [topicLength, eventLength] = [view.getUint8(1), view.getUint8(2)]
    const payloadAt = 3 + topicLength + eventLength
    if (text(3, topicLength) !== this.#topic) return
    const envelopeLength = view.getUint32(payloadAt)
    const envelope = JSON.parse(text(payloadAt + 4, envelopeLength))
    envelope.bytes = buffer.byteLength - payloadAt - 4 - envelopeLength
    this.#on.event(text(3 + topicLength, eventLength), envelope)
  }
}
