// The network between clients and the server, which can break one user's connections without a close.

import { once } from "node:events"
import { connect, createServer } from "node:net"

export class Wire {
  #server
  #listener
  // Each connection with the first bytes of its client, which name the user.
  #connections = new Map()
  #lost = new Set()

  // A wire to `server`, which may be restarted while the wire is open.
  static async open(server) {
    const wire = new Wire()
    wire.#server = server
    wire.#listener = createServer((client) => wire.#carry(client)).listen(0, "127.0.0.1")
    await once(wire.#listener, "listening")
    return wire
  }

  get url() {
    return `http://127.0.0.1:${this.#listener.address().port}`
  }

  #carry(client) {
    const [host, port] = this.#server.address.split(":")
    const server = connect(Number(port), host)
    const end = () => {
      this.#connections.delete(client)
      client.destroy()
      server.destroy()
    }
    for (const socket of [client, server]) socket.setNoDelay(true).on("error", end).on("close", end)
    client.once("data", (head) => {
      const user = /[?&]user=([^& ]+)/.exec(head.toString("latin1"))?.[1]
      if (this.#lost.has(user)) return end()
      this.#connections.set(client, { user, server })
      server.write(head)
      client.pipe(server)
    })
    server.pipe(client)
  }

  // Breaks all connections of a user at both ends. With `forGood` new ones break, too, until `mend`.
  cut(user, forGood = false) {
    if (forGood) this.#lost.add(user)
    for (const [client, connection] of this.#connections) {
      if (connection.user !== user) continue
      client.resetAndDestroy()
      connection.server.resetAndDestroy()
    }
  }

  // Lets a user's connections through again.
  mend(user) {
    this.#lost.delete(user)
  }

  async close() {
    for (const client of this.#connections.keys()) client.destroy()
    this.#listener.close()
  }
}
