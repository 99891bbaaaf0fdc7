// The real server, as a child process with a temporary data directory. It can be stopped, killed and started
// again on the same port with the same data.

import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { createInterface } from "node:readline"

const PATIENCE_MS = 30_000

// A developer's own settings stay out of the tests.
const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("RELAY_")))

const program = process.env.RELAY_BIN ?? assert.fail("RELAY_BIN names no server; run: cargo xtask test")

export class Server {
  #data
  #flags
  #child
  #started

  // Starts a server on a free port, with further flags of `relay serve`.
  static async start(flags = []) {
    const server = new Server()
    server.#flags = flags
    server.#data = await mkdtemp(join(tmpdir(), "relay-e2e-"))
    server.#started = server.#spawn("127.0.0.1:0")
    await server.#started
    return server
  }

  get url() {
    return `http://${this.address}`
  }

  async #spawn(listen) {
    const flags = ["serve", "--listen", listen, "--data-dir", this.#data, "--log-format", "json", ...this.#flags]
    const options = { cwd: this.#data, env: environment, stdio: ["ignore", "pipe", "inherit"] }
    this.#child = spawn(resolve(program), flags, options)
    const exited = once(this.#child, "exit").then(([code]) => assert.fail(`the server ended with ${code} at its start`))
    const listening = new Promise((found) => {
      // Reads to the end, so that the server never waits for a full pipe.
      createInterface(this.#child.stdout).on("line", (line) => {
        const address = /"address":"([^"]+)"/.exec(line)
        if (address) found(address[1])
        if (line.includes('"level":"ERROR"')) console.error(`server: ${line}`)
      })
    })
    exited.catch(() => {}) // It ends later, too.
    let timer
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error("the server does not say in its log where it listens")), PATIENCE_MS)
    })
    try {
      this.address = await Promise.race([listening, exited, late])
    } finally {
      clearTimeout(timer)
    }
  }

  // Ends the process, with SIGTERM as an operator does or with SIGKILL as a crash does. Returns the exit code.
  async end(signal) {
    const ended = once(this.#child, "exit")
    this.#child.kill(signal)
    const [code] = await ended
    return code
  }

  // Ends the process and starts it again on the same port with the same data.
  async restart(signal) {
    const code = await this.end(signal)
    this.#started = this.#spawn(this.address)
    await this.#started
    return code
  }

  // Publishes a draft over HTTP until the server acknowledges it, across restarts. The draft's id makes repeats safe.
  async publish(document, draft) {
    const path = `${this.url}/v1/documents/${encodeURIComponent(document)}/events`
    const body = JSON.stringify(draft)
    const request = { method: "POST", headers: { "content-type": "application/json" }, body }
    for (;;) {
      await this.#started
      const child = this.#child
      let answer
      try {
        answer = await fetch(path, request)
        const receipt = await answer.json()
        if (answer.ok) return receipt
        if (answer.status !== 503) assert.fail(`${answer.status} ${JSON.stringify(receipt)}`)
      } catch (error) {
        // The connection broke: the server ends, or is not back yet.
        if (error instanceof assert.AssertionError) throw error
      }
      if (this.#child === child && child.exitCode === null && child.signalCode === null) await once(child, "exit")
      await new Promise(setImmediate)
    }
  }

  async close() {
    if (this.#child.exitCode === null && this.#child.signalCode === null) await this.end("SIGKILL")
    await rm(this.#data, { recursive: true })
  }
}
