// The two peers on Node, written as in their documentation: `node server.mjs socket.io` or `node server.mjs ws`.
// It prints `listening <port>` once it listens on a free port of the loopback.
import { createServer } from "node:http"

const http = createServer((_, response) => response.writeHead(404).end())

// A client emits "join" with a document and gets the ids of its members; "message" goes to all members of that document.
async function socketIo() {
  const { Server } = await import("socket.io")
  const io = new Server(http, { transports: ["websocket"], pingInterval: 5_000, pingTimeout: 60_000 })
  io.on("connection", (socket) => {
    let document
    socket.on("join", (name, answer) => {
      document = name
      socket.join(name)
      answer([...io.of("/").adapter.rooms.get(name)])
    })
    socket.on("message", (text) => io.to(document).emit("message", text))
  })
}

// The first message names the document and is answered with the ids of its members; every later one goes to all of them.
async function bareWs() {
  const { WebSocketServer } = await import("ws")
  const server = new WebSocketServer({ server: http, perMessageDeflate: false })
  const documents = new Map()
  let lastId = 0
  server.on("connection", (socket) => {
    let members
    const id = ++lastId
    socket.on("message", (data) => {
      if (members) {
        for (const member of members.keys()) member.send(data, { binary: false })
        return
      }
      const name = data.toString()
      members = documents.get(name) ?? new Map()
      documents.set(name, members.set(socket, id))
      socket.send(`joined ${JSON.stringify([...members.values()])}`)
    })
    socket.on("close", () => members?.delete(socket))
    socket.on("error", () => socket.terminate())
  })
}

await { "socket.io": socketIo, ws: bareWs }[process.argv[2]]()
http.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () => console.log(`listening ${http.address().port}`))
