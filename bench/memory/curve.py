#!/usr/bin/env python3
"""The memory of a server before, at and after a peak.

It starts the given programs in turn, each with a log of its own. In 24 documents it publishes events of mixed sizes, reads
them back over server-sent events that do not read, and stops. Then the server has nothing to hold: its caches are dropped
with the idle documents. The resident memory is read from /proc, so it runs on Linux. Python's standard library is enough.

    cargo build -p relay-service && cp target/debug/relay /tmp/relay-mimalloc
    cargo build -p relay-service --no-default-features --features demo && cp target/debug/relay /tmp/relay-system
    bench/memory/curve.py /tmp/relay-mimalloc /tmp/relay-system
"""

import http.client
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

DOCUMENTS = 24
BYTES_OF_EACH = 12 * 1024 * 1024
READERS_OF_EACH = 2
SETTINGS = ["bus.idle_after=1s", "bus.sweep_interval=1s", "memory.max_cache_bytes=1000000000", "http.body_timeout=10m"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def resident_mb(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) // 1024


def publish(port, document, seed):
    sizes = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    left = BYTES_OF_EACH
    while left > 0:
        batch = []
        while left > 0 and sum(map(len, batch)) < 2_000_000:
            size = min(left, sizes.choice([100, 1_000, 10_000, 100_000]))
            left -= size
            batch.append(json.dumps({"kind": "x-note", "payload": "x" * size}))
        body = ('[' + ','.join(batch) + ']').encode()
        connection.request("POST", f"/v1/documents/{document}/events", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status


def follow(port, document):
    reader = socket.create_connection(("127.0.0.1", port))
    head = f"GET /v1/documents/{document}/events/stream?after_seq=0 HTTP/1.1\r\nhost: localhost\r\n\r\n"
    reader.sendall(head.encode())
    return reader


def curve(program):
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        command = [program, "serve", "--listen", f"127.0.0.1:{port}", "--data-dir", directory, "--durability", "logged"]
        for setting in SETTINGS:
            command += ["--set", setting]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            time.sleep(1)
            measured = {"before": resident_mb(server.pid)}
            documents = [f"document-{number}" for number in range(DOCUMENTS)]
            readers = [follow(port, document) for document in documents for _ in range(READERS_OF_EACH)]
            peak, done = [0], threading.Event()

            def watch():
                while not done.wait(0.05):
                    peak[0] = max(peak[0], resident_mb(server.pid))

            watcher = threading.Thread(target=watch)
            watcher.start()
            publishers = [
                threading.Thread(target=publish, args=(port, document, seed))
                for seed, document in enumerate(documents)
            ]
            for publisher in publishers:
                publisher.start()
            for publisher in publishers:
                publisher.join()
            for reader in readers:
                reader.close()
            done.set()
            watcher.join()
            measured["peak"] = peak[0]
            for seconds, passed in ((10, 10), (60, 50)):
                time.sleep(passed)
                measured[f"{seconds} s after"] = resident_mb(server.pid)
            return measured
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    for program in sys.argv[1:]:
        print(program, curve(program), flush=True)
