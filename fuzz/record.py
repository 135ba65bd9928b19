"""Recorder of fuzz seeds: a proxy between clients and a real broker that saves some of the answers.

usage: record.py LISTEN-PORT BROKER-PORT SEEDS-FOLDER      until it is ended; scripts/record-seeds runs it

A seed of kafka_NAME is the version's distance from the oldest one in this table, and the answer's frame.
"""

import hashlib
import pathlib
import socket
import struct
import sys
import threading

# Request: target, oldest version that crates/kafka/src/wire.rs speaks.
APIS = {
    0: ("produce", 3), 1: ("fetch", 4), 2: ("list_offsets", 1), 3: ("metadata", 4), 8: ("offset_commit", 7),
    9: ("offset_fetch", 5), 10: ("find_coordinator", 1), 11: ("join_group", 5), 12: ("heartbeat", 3),
    13: ("leave_group", 3), 14: ("sync_group", 3), 17: ("sasl_handshake", 1), 17: ("sasl_handshake", 1), 36: ("sasl_authenticate", 0),
    18: ("api_versions", 0), 19: ("create_topics", 2), 20: ("delete_topics", 1), 22: ("init_producer_id", 0), 36: ("sasl_authenticate", 0), 68: ("consumer_group_heartbeat", 0),
    15: ("describe_groups", 0), 16: ("list_groups", 0), 21: ("delete_records", 0), 32: ("describe_configs", 1),
    37: ("create_partitions", 0), 42: ("delete_groups", 0), 44: ("incremental_alter_configs", 0), 47: ("offset_delete", 0),
    69: ("consumer_group_describe", 0),
}
BYTES_MAX = 2048
SEEDS_MAX = 6

seeds = pathlib.Path(sys.argv[3])
lock = threading.Lock()


def keep(target, content, most=SEEDS_MAX):
    """Saves a seed if it is small, new and of a new size, and the target still needs one."""
    folder = seeds / f"kafka_{target}"
    with lock:
        folder.mkdir(parents=True, exist_ok=True)
        old = [file.stat().st_size for file in folder.iterdir()]
        if len(content) <= BYTES_MAX and len(old) < most and len(content) not in old:
            (folder / hashlib.sha256(content).hexdigest()[:12]).write_bytes(content)


def uvarint(frame, at):
    value = shift = 0
    while True:
        byte = frame[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def compact(frame, at):
    """Compact string or bytes, and its end."""
    size, at = uvarint(frame, at)
    return frame[at:at + size - 1], at + max(size - 1, 0)


def metadata_of_members(frame):
    """JoinGroup, from version 7 on: each member's subscription."""
    at = 4 + 1 + 4 + 2 + 4
    for _ in range(4):  # protocol type and name, leader, member id
        _, at = compact(frame, at)
    count, at = uvarint(frame, at)
    for _ in range(count - 1):
        for _ in range(2):
            _, at = compact(frame, at)
        metadata, at = compact(frame, at)
        at += 1
        keep("subscription", metadata)


def assignment(frame):
    """SyncGroup, from version 5 on."""
    at = 4 + 1 + 4 + 2
    for _ in range(2):
        _, at = compact(frame, at)
    keep("subscription", compact(frame, at)[0])


def batches(frame):
    """Anything that looks like a record batch, some of each compression."""
    at = 0
    while at + 61 <= len(frame):
        offset, length = struct.unpack_from(">qi", frame, at)
        if 0 <= offset < 1 << 32 and 49 <= length <= len(frame) - at - 12 and frame[at + 16] == 2:
            keep("batches", frame[at:at + 12 + length], 20)
            at += 12 + length
        else:
            at += 1


def look(api, version, frame):
    if api not in APIS:
        return
    target, oldest = APIS[api]
    keep(target, bytes([max(version - oldest, 0)]) + frame)
    if api == 1:
        batches(frame)
    elif api == 11 and version >= 7:
        metadata_of_members(frame)
    elif api == 14 and version >= 5:
        assignment(frame)


def frames(source):
    while True:
        head = source.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            return
        body = source.recv(struct.unpack(">i", head)[0], socket.MSG_WAITALL)
        yield head, body


def serve(client):
    broker = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    asked = {}

    def requests():
        for head, body in frames(client):
            api, version, correlation = struct.unpack_from(">hhi", body)
            asked[correlation] = (api, version)
            broker.sendall(head + body)
        broker.close()

    threading.Thread(target=requests, daemon=True).start()
    try:
        for head, body in frames(broker):
            request = asked.pop(struct.unpack_from(">i", body)[0], (None, 0))
            client.sendall(head + body)
            try:
                look(*request, body)
            except IndexError:
                pass
    except OSError:
        pass
    client.close()


listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
