//! A server on `socketioxide`, as its users write one: "join" answers with the ids of all who are in the document,
//! "message" goes to all of them. Prints `listening <port>` once it listens, on a free port of the loopback.

use std::convert::Infallible;
use std::time::Duration;

use socketioxide::SocketIo;
use socketioxide::extract::{AckSender, Data, SocketRef};
use socketioxide::handler::ConnectHandler;

#[derive(Clone)]
struct Document(String);

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let (layer, io) = SocketIo::builder()
        .ping_interval(Duration::from_secs(5))
        .ping_timeout(Duration::from_secs(60))
        // Its default of 128 packets is for a calm client; a window of 256 messages is this load's.
        .max_buffer_size(4096)
        .build_layer();
    // In a middleware, since a connection is told that it is connected before its handler has run: a client that
    // joins at once would find nobody listening.
    let listen = async |socket: SocketRef| {
        socket.on("join", async |socket: SocketRef, Data::<String>(name), answer: AckSender| {
            socket.join(name.clone());
            socket.extensions.insert(Document(name.clone()));
            let members: Vec<_> = socket.within(name).sockets().into_iter().map(|member| member.id).collect();
            answer.send(&members).ok();
        });
        socket.on("message", async |socket: SocketRef, Data::<String>(text)| {
            if let Some(Document(name)) = socket.extensions.get::<Document>() {
                socket.within(name).emit("message", &text).await.ok();
            }
        });
        Ok::<(), Infallible>(())
    };
    io.ns("/", (async |_: SocketRef| {}).with(listen));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("listening {}", listener.local_addr()?.port());
    axum::serve(listener, axum::Router::new().layer(layer)).await
}
