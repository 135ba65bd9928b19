//! A client of the orders API over gRPC.

use std::time::Duration;

use tbd::proto::orders::{CreateOrderRequest, Order, order_service};
use tbd_deadline::Deadline;
use tbd_grpc::{Channel, Metadata, Status};

/// Orders once, without a repetition by this client.
pub fn create_order(channel: &Channel, key: &str) -> Result<Order, Status> {
    create_order_until(channel, key, Deadline::after(Duration::from_secs(60)))
}

/// The same, until `deadline` at most.
pub fn create_order_until(
    channel: &Channel,
    key: &str,
    deadline: Deadline,
) -> Result<Order, Status> {
    let mut metadata = Metadata::new();
    metadata
        .insert_text("idempotency-key", key)
        .expect("a key is ASCII");
    let request = CreateOrderRequest {
        customer_email: "user@example.com".to_owned(),
        amount_cents: 1299,
    };
    let call = channel.call(order_service::CREATE_ORDER).metadata(metadata);
    let answer = call.deadline(deadline).send(&request)?;
    Ok(answer.order.expect("an order"))
}
