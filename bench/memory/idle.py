#!/usr/bin/env python3
"""The resident memory of a server for each idle WebSocket connection.

It starts the given programs in turn, with nothing on the disk, and opens connections that send nothing: those that join no
document, those that join documents of ten without being in their presence, and those that are in it. Each kind has a server
of its own. The first figure is the growth since a hundred connections were open; the second is that since the start, with
what the server sets up once. The resident memory is read from /proc, so it runs on Linux. Python's standard library is
enough. The limit of open files (`ulimit -n`) must be above the number of connections.

    cargo build --release -p relay-service
    bench/memory/idle.py target/release/relay
"""

import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONNECTIONS = 8_000
AT_ONCE = 100
SETTINGS = [
    "ws.admission_rate=1000000",
    "ws.admission_burst=1000000",
    "ws.max_connections=20000",
    "ws.max_connections_per_address=20000",
    "ws.max_documents_per_address=20000",
    "http.max_connections_per_address=20000",
    "ws.stale_after=10m",
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def resident_bytes(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) * 1024


def begin(port):
    client = socket.create_connection(("127.0.0.1", port))
    head = "GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    client.sendall((head + "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").encode())
    return client


def finish(client):
    answer = b""
    while b"\r\n\r\n" not in answer:
        received = client.recv(4096)
        assert received, answer
        answer += received
    assert answer.startswith(b"HTTP/1.1 101"), answer


def join(client, document, presence):
    text = '["1","1","document:%s","phx_join",%s]' % (document, '{"presence":%s}' % str(presence).lower())
    body = text.encode()
    assert len(body) < 126
    client.sendall(bytes([0x81, 0x80 | len(body), 0, 0, 0, 0]) + body)


def joined(client):
    answer = b""
    while b"phx_reply" not in answer:
        received = client.recv(4096)
        assert received, answer
        answer += received
    assert b'"ok"' in answer, answer


def open_connections(port, count, joining, first=0, presence=True):
    clients = []
    while len(clients) < count:
        batch = [begin(port) for _ in range(min(AT_ONCE, count - len(clients)))]
        for client in batch:
            finish(client)
        if joining:
            for number, client in enumerate(batch):
                join(client, f"idle-{(first + len(clients) + number) // 10}", presence)
            for client in batch:
                joined(client)
        clients += batch
    return clients


def measure(program, joining, presence=True):
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        command = [program, "serve", "--listen", f"127.0.0.1:{port}", "--data-dir", directory, "--durability", "memory"]
        for setting in SETTINGS:
            command += ["--set", setting]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            time.sleep(1)
            cold = resident_bytes(server.pid)
            # The first connections also pay what the server sets up once.
            clients = open_connections(port, 100, joining, presence=presence)
            time.sleep(3)
            before = resident_bytes(server.pid)
            clients += open_connections(port, CONNECTIONS, joining, first=len(clients), presence=presence)
            time.sleep(5)
            after = resident_bytes(server.pid)
            return (after - before) // CONNECTIONS, (after - cold) // (CONNECTIONS + 100)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for program in sys.argv[1:]:
        figures = {
            "unjoined": measure(program, joining=False),
            "joined": measure(program, joining=True, presence=False),
            "in presence": measure(program, joining=True),
        }
        print(program, figures, flush=True)
