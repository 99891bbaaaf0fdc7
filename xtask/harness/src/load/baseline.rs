//! The baseline: the cost of the machine's sockets alone. One thread reads a message and writes the frame that holds it
//! to every socket, one write per member and message.

use std::io::{ErrorKind, Read, Write};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustix::event::{PollFd, PollFlags, poll};

use super::worker::check_open_files;

/// Bytes of a frame beside its head and message. With a message of 128 bytes the frame is as long as Relay's.
const ENVELOPE_BYTES: usize = 249;
const MAX_MEMBERS: u32 = 11_000;
const LISTENER: Token = Token(usize::MAX);

/// Serves until it is killed. Prints `listening <port>`.
pub(crate) fn run(message_bytes: usize) -> anyhow::Result<()> {
    check_open_files(MAX_MEMBERS)?;
    let mut listener = TcpListener::bind(([127, 0, 0, 1], 0).into())?;
    println!("listening {}", listener.local_addr()?.port());
    let mut readiness = Poll::new()?;
    readiness.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut members: Vec<TcpStream> = Vec::new();
    let mut pending: Vec<Vec<u8>> = Vec::new();
    let mut events = Events::with_capacity(1_024);
    let mut buffer = vec![0; 64 << 10];
    let mut frame = vec![b' '; 4 + ENVELOPE_BYTES + message_bytes];
    let length = u16::try_from(ENVELOPE_BYTES + message_bytes)?.to_be_bytes();
    frame[..4].copy_from_slice(&[0x82, 126, length[0], length[1]]);
    loop {
        readiness.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    readiness.registry().register(&mut stream, Token(members.len()), Interest::READABLE)?;
                    members.push(stream);
                    pending.push(Vec::new());
                }
                continue;
            }
            let Token(index) = event.token();
            while let Ok(read) = members[index].read(&mut buffer) {
                if read == 0 {
                    break;
                }
                pending[index].extend_from_slice(&buffer[..read]);
            }
            let whole = pending[index].len() / message_bytes * message_bytes;
            let messages: Vec<u8> = pending[index].drain(..whole).collect();
            for message in messages.chunks_exact(message_bytes) {
                frame[4 + ENVELOPE_BYTES..].copy_from_slice(message);
                for member in &mut members {
                    write_all(member, &frame);
                }
            }
        }
    }
}

/// Writes all bytes, waiting while the socket is full. A socket with an error is skipped.
fn write_all(member: &mut TcpStream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match member.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut wanted = [PollFd::new(&*member, PollFlags::OUT)];
                if poll(&mut wanted, None).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}
