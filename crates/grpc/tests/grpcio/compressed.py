"""The two cases of gRPC's interoperability suite with compression, by gRPC's Python library.

usage: compressed.py client PORT    calls the test service on that port, and ends with an error if an answer is wrong
       compressed.py server         serves UnaryCall, prints its port, and ends with its standard input

Messages are written by hand, so that no generated code is needed: SimpleRequest has response_size (2), response_compressed
(6) and expect_compressed (8), the last two as messages with a boolean.
"""

import sys
from concurrent import futures

import grpc

UNARY_CALL = "/grpc.testing.TestService/UnaryCall"
SIZE = 314159
PAYLOAD_SIZE = 271828
RESPONSE_SIZE = b"\x10\xaf\x96\x13"
RESPONSE_COMPRESSED = b"\x32\x02\x08\x01"
EXPECT_COMPRESSED = b"\x42\x02\x08\x01"


def varint(number):
    octets = b""
    while number > 0x7F:
        octets += bytes([number & 0x7F | 0x80])
        number >>= 7
    return octets + bytes([number])


def field(number, content):
    return bytes([number << 3 | 2]) + varint(len(content)) + content


RESPONSE = field(1, field(2, bytes(SIZE)))


def same(octets):
    return octets


def client(port):
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(UNARY_CALL, request_serializer=same, response_deserializer=same)
        try:
            call(EXPECT_COMPRESSED + RESPONSE_SIZE, timeout=20)
            raise SystemExit("the server did not look whether the request was compressed")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        for request in (EXPECT_COMPRESSED + RESPONSE_SIZE, EXPECT_COMPRESSED + RESPONSE_COMPRESSED + RESPONSE_SIZE):
            response = call(request, compression=grpc.Compression.Gzip, timeout=20)
            assert response == RESPONSE, len(response)
        for request in (RESPONSE_COMPRESSED + RESPONSE_SIZE, RESPONSE_SIZE):
            response = call(request, timeout=20)
            assert response == RESPONSE, len(response)


class Service(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method != UNARY_CALL:
            return None

        def answer(request, context):
            # The library does not tell how a request came, only that it could read it.
            if len(request) < PAYLOAD_SIZE:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request has lost its payload")
            if RESPONSE_COMPRESSED in request[-64:]:
                context.set_compression(grpc.Compression.Gzip)
            return RESPONSE

        return grpc.unary_unary_rpc_method_handler(answer, request_deserializer=same, response_serializer=same)


def server():
    service = grpc.server(futures.ThreadPoolExecutor(4))
    service.add_generic_rpc_handlers((Service(),))
    print(service.add_insecure_port("127.0.0.1:0"), flush=True)
    service.start()
    sys.stdin.read()
    service.stop(None)


if sys.argv[1] == "client":
    client(sys.argv[2])
else:
    server()
