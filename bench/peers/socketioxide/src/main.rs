//! A server on `socketioxide`, written as in its documentation: "join" answers with the ids of the document's members, and
//! "message" goes to all of them. It prints `listening <port>` once it listens on a free port of the loopback.

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
        // The load has a window of 256 messages, and the default is 128 packets.
        .max_buffer_size(4096)
        .build_layer();
    // The handlers are set in a middleware. The client learns that it is connected before the handler of the connection
    // has run, so the first join of a quick client would be lost.
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
