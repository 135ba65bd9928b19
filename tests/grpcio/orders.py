"""The orders API by gRPC's Python library, which knows no .proto file: reflection tells it everything.

usage: orders.py calls ADDRESS [CA-PEM]   every method, replays, pages, errors with their details; over TLS with a CA
       orders.py blocked ADDRESS          a deadline and a cancellation, while no order can be written
       orders.py watch ADDRESS            prints each health status, until the stream ends
Ends with an error if an answer is wrong.
"""

import pathlib
import sys
import uuid

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

TIMEOUT = 30


class Service:
    """The methods of a service, as the server describes them."""

    def __init__(self, channel, name):
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        self.channel = channel
        self.description = pool.FindServiceByName(name)

    def method(self, name, **fields):
        """The method's callable and its request."""
        method = self.description.methods_by_name[name]
        types = (method.input_type, method.output_type)
        request, response = (message_factory.GetMessageClass(kind) for kind in types)
        kind = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        path = f"/{self.description.full_name}/{name}"
        callable = kind(path, request_serializer=request.SerializeToString, response_deserializer=response.FromString)
        return callable, request(**fields)

    def call(self, name, metadata=(), **fields):
        """The response and its header metadata."""
        callable, request = self.method(name, **fields)
        response, call = callable.with_call(request, metadata=metadata, timeout=TIMEOUT)
        return response, dict(call.initial_metadata())

    def refused(self, name, metadata=(), **fields):
        """The code, the reason and the faulty fields of a call that fails."""
        try:
            self.call(name, metadata, **fields)
        except grpc.RpcError as error:
            info, fields = error_details_pb2.ErrorInfo(), []
            for detail in rpc_status.from_call(error).details:
                bad_request = error_details_pb2.BadRequest()
                detail.Unpack(info)
                if detail.Unpack(bad_request):
                    fields = [violation.field for violation in bad_request.field_violations]
            trailers = dict(error.trailing_metadata())
            assert info.domain == "tbd" and trailers["x-request-id"] == info.metadata["trace_id"], (info, trailers)
            return error.code().name, info.reason, fields
        raise SystemExit(f"{name} did not fail")


def order(service, key=None, **fields):
    fields = {"customer_email": "a@b.co", "amount_cents": 5, **fields}
    return service.call("CreateOrder", [("idempotency-key", key or uuid.uuid4().hex)], **fields)


def calls(service):
    key = uuid.uuid4().hex
    created, headers = order(service, key)
    assert "idempotent-replayed" not in headers and headers["x-request-id"], headers
    replayed, headers = order(service, key)
    assert headers["idempotent-replayed"] == "true" and replayed == created, headers
    assert service.call("GetOrder", id=created.order.id)[0].order == created.order

    orders = [created.order] + [order(service)[0].order for _ in range(4)]
    listed, token = [], ""
    while len(listed) < len(orders):
        page, _ = service.call("ListOrders", page_size=2, page_token=token)
        assert 1 <= len(page.orders) <= 2, page
        listed, token = listed + list(page.orders), page.next_page_token
    assert listed[: len(orders)] == orders[::-1], listed

    canceled, _ = service.call("CancelOrder", id=created.order.id, etag=created.order.etag)
    assert canceled.order.updated_at.ToDatetime() >= created.order.updated_at.ToDatetime()

    keyed = [("idempotency-key", key)]
    missing = service.refused("CreateOrder")
    assert missing == ("INVALID_ARGUMENT", "IDEMPOTENCY_KEY_MISSING", ["idempotency-key"]), missing
    empty = service.refused("CreateOrder", keyed)
    assert empty == ("INVALID_ARGUMENT", "VALIDATION_FAILED", ["customer_email", "amount_cents"]), empty
    reused = service.refused("CreateOrder", keyed, customer_email="a@b.co", amount_cents=6)
    assert reused == ("INVALID_ARGUMENT", "IDEMPOTENCY_KEY_REUSED", []), reused
    absent = service.refused("GetOrder", id=str(uuid.uuid4()))
    assert absent == ("NOT_FOUND", "ORDER_NOT_FOUND", []), absent
    large = service.refused("CreateOrder", keyed, customer_email="x" * 70_000)
    assert large == ("RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED", []), large


def blocked(service):
    key = [("idempotency-key", uuid.uuid4().hex)]
    callable, request = service.method("CreateOrder", customer_email="a@b.co", amount_cents=5)
    late = callable.future(request, metadata=key, timeout=0.3)
    assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED, late
    canceled = callable.future(request, metadata=key, timeout=TIMEOUT)
    assert canceled.cancel() and canceled.code() == grpc.StatusCode.CANCELLED, canceled


def watch(channel):
    health = Service(channel, "grpc.health.v1.Health")
    callable, request = health.method("Watch", service="tbd.orders.v1.OrderService")
    try:
        for response in callable(request, timeout=2 * TIMEOUT):
            print(response.DESCRIPTOR.enum_types_by_name["ServingStatus"].values_by_number[response.status].name, flush=True)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error


def main(what, address, *ca):
    roots = [pathlib.Path(path).read_bytes() for path in ca]
    channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(*roots)) if ca else grpc.insecure_channel(address)
    with channel:
        if what == "watch":
            watch(channel)
        else:
            {"calls": calls, "blocked": blocked}[what](Service(channel, "tbd.orders.v1.OrderService"))


main(*sys.argv[1:])
