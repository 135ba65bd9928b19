"""Recorder of seeds for the HTTP/2 fuzz targets: a proxy between a gRPC client and a gRPC server. It
saves the beginning of each connection, in both directions, and the header blocks.

usage: record_http2.py LISTEN-PORT SERVER-PORT SEEDS-FOLDER      until it is ended

The seeds in the repository come from grpc-go's interoperability client and server, h2spec and tbd-grpc:
    python3 fuzz/record_http2.py 7001 7000 fuzz/seeds &
    grpc-interop-client -server_port 7001 -test_case large_unary    # and others, against examples/interop_server
"""

import hashlib
import pathlib
import socket
import sys
import threading

BYTES_MAX = 2048
SEEDS_MAX = 12
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
seeds = pathlib.Path(sys.argv[3])
lock = threading.Lock()


def keep(target, content):
    """Saves a seed if it is new and of a new size, and the target still needs one."""
    folder = seeds / target
    with lock:
        folder.mkdir(parents=True, exist_ok=True)
        old = [file.stat().st_size for file in folder.iterdir()]
        if content and len(old) < SEEDS_MAX and len(content) not in old:
            (folder / hashlib.sha256(content).hexdigest()[:12]).write_bytes(content)


def keep_stream(target, content):
    keep(target, content[:BYTES_MAX])
    frames = content.removeprefix(PREFACE)
    while len(frames) >= 9:
        length, kind, flags = int.from_bytes(frames[:3], "big"), frames[3], frames[4]
        payload, frames = frames[9 : 9 + length], frames[9 + length :]
        if kind == 1 and not flags & 0x28 and len(payload) == length <= BYTES_MAX:
            keep("hpack", payload)


def forward(source, sink, target):
    content = b""
    try:
        while data := source.recv(65536):
            content += data[: 4 * BYTES_MAX - len(content)]
            sink.sendall(data)
    except OSError:
        pass
    keep_stream(target, content)
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
        for way in ((client, server, "http2_server"), (server, client, "http2_client")):
            threading.Thread(target=forward, args=way, daemon=True).start()
