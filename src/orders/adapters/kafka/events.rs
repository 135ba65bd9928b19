//! Encoding of events as CloudEvents 1.0 in JSON, structured mode: the whole event is the record's
//! value (CloudEvents Kafka protocol binding, section 3.3).

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::orders::adapters::wire::{OrderJson, Rfc3339, json};
use crate::orders::domain::{EventKind, OrderEvent, OrderId};
use crate::orders::ports::Message;
use tbd_kafka::producer::Record;
use tbd_telemetry::tracing;

/// `content-type` of every event's record.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";
const SPEC_VERSION: &str = "1.0";
/// Together with `id` it identifies an event. The api and the worker share it.
const SOURCE: &str = "/tbd/orders";

/// The names of the topics. They are also the types of the events.
#[derive(Clone, Debug)]
pub struct Topics {
    /// KAFKA_TOPIC_ORDER_CREATED
    pub created: Arc<str>,
    /// KAFKA_TOPIC_ORDER_PROCESSED
    pub processed: Arc<str>,
    /// KAFKA_TOPIC_ORDER_FAILED
    pub failed: Arc<str>,
    /// KAFKA_TOPIC_ORDER_DLQ
    pub dlq: Arc<str>,
}

impl Topics {
    /// The topic of a kind of event.
    pub fn of(&self, kind: EventKind) -> &Arc<str> {
        match kind {
            EventKind::Created => &self.created,
            EventKind::Processed => &self.processed,
            EventKind::Failed => &self.failed,
        }
    }

    /// All four.
    pub fn all(&self) -> [&str; 4] {
        [&self.created, &self.processed, &self.failed, &self.dlq]
    }

    /// The message that announces `event`, caused by the current trace.
    pub fn message(&self, event: &OrderEvent) -> Message {
        let kind = event.kind();
        Message {
            kind,
            order_id: event.order().id,
            payload: encode(event, self.of(kind)).into(),
            trace_context: tracing::serialize(&tracing::Context::current()),
        }
    }

    /// The record that carries `message`.
    pub fn record(&self, message: &Message) -> Record {
        let content_type = Bytes::from_static(CONTENT_TYPE.as_bytes());
        Record {
            topic: self.of(message.kind).clone(),
            partition: None,
            key: Some(Bytes::from(message.order_id.to_string())),
            value: Some(message.payload.clone()),
            headers: vec![("content-type".to_owned(), Some(content_type))],
            timestamp_ms: None,
        }
    }
}

/// The JSON of `event`, whose type is `event_type`.
pub fn encode(event: &OrderEvent, event_type: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct CloudEvent<'a> {
        specversion: &'static str,
        id: Uuid,
        source: &'static str,
        #[serde(rename = "type")]
        event_type: &'a str,
        subject: Uuid,
        time: Rfc3339,
        datacontenttype: &'static str,
        data: Data<'a>,
    }
    #[derive(Serialize)]
    struct Data<'a> {
        #[serde(flatten)]
        order: OrderJson<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
    }
    let order = event.order();
    let reason = match event {
        OrderEvent::Failed { reason, .. } => Some(reason.as_str()),
        OrderEvent::Created(_) | OrderEvent::Processed(_) => None,
    };
    json(&CloudEvent {
        specversion: SPEC_VERSION,
        // Every repetition of an event has the same id, so consumers can recognize it.
        id: Uuid::new_v5(&order.id.0, event_type.as_bytes()),
        source: SOURCE,
        event_type,
        subject: order.id.0,
        time: Rfc3339(order.updated_at),
        datacontenttype: "application/json",
        data: Data {
            order: OrderJson::from(order),
            reason,
        },
    })
}

/// The order id in a record of order.created.
///
/// A tolerant reader: it reads the fields it needs, and ignores others.
///
/// # Errors
/// Why the record cannot be decoded, without anything from the value itself.
pub fn created_order(value: Option<&[u8]>, event_type: &str) -> Result<OrderId, String> {
    #[derive(Deserialize)]
    struct CloudEvent {
        specversion: String,
        #[serde(rename = "type")]
        event_type: String,
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        id: Uuid,
    }
    let value = value.ok_or("the record has no value")?;
    let event: CloudEvent = serde_json::from_slice(value)
        // Place and kind of the fault, but nothing from the value itself.
        .map_err(|error| {
            let fault = match error.is_data() {
                true => "not an event of an order",
                false => "not JSON",
            };
            format!("{fault} (line {}, column {})", error.line(), error.column())
        })?;
    if event.specversion != SPEC_VERSION {
        return Err("not CloudEvents 1.0".to_owned());
    }
    if event.event_type != event_type {
        return Err(format!("not an event of type {event_type}"));
    }
    Ok(OrderId(event.data.id))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::orders::domain::{AmountCents, CustomerEmail, Order};

    fn order() -> Order {
        let email = CustomerEmail::new("a@b.co".into()).unwrap();
        Order::create(email, AmountCents::new(5).unwrap(), jiff::Timestamp::now())
    }

    #[test]
    fn an_event_has_the_attributes_of_cloudevents() {
        let order = order();
        let event = OrderEvent::Failed {
            order: order.clone(),
            reason: "because".into(),
        };
        let json: Value = serde_json::from_slice(&encode(&event, "order.failed")).unwrap();
        assert_eq!(json["specversion"], "1.0");
        assert_eq!(json["type"], "order.failed");
        assert_eq!(json["subject"], order.id.to_string());
        assert_eq!(json["datacontenttype"], "application/json");
        assert_eq!(json["data"]["amount_cents"], 5);
        assert_eq!(json["data"]["reason"], "because");
    }

    #[test]
    fn an_event_is_the_same_at_every_repetition_and_differs_between_types() {
        let created = OrderEvent::Created(order());
        assert_eq!(encode(&created, "t"), encode(&created, "t"));
        let id = |event_type| -> Value {
            let json: Value = serde_json::from_slice(&encode(&created, event_type)).unwrap();
            json["id"].clone()
        };
        assert_ne!(id("order.created"), id("order.processed"));
    }

    #[test]
    fn a_created_event_is_read_back() {
        let order = order();
        let id = order.id;
        let value = encode(&OrderEvent::Created(order), "order.created");
        assert_eq!(created_order(Some(&value), "order.created"), Ok(id));
    }

    #[test]
    fn a_value_that_is_no_created_event_is_refused_without_repeating_its_content() {
        for value in [
            &b""[..],
            b"\xff\xfe",
            b"secret",
            b"{}",
            br#"{"specversion":"1.0","type":"order.created","data":{"id":"secret"}}"#,
            br#"{"specversion":"0.3","type":"order.created","data":{"id":"00000000-0000-0000-0000-000000000000"}}"#,
            br#"{"specversion":"1.0","type":"other","data":{"id":"00000000-0000-0000-0000-000000000000"}}"#,
        ] {
            let reason = created_order(Some(value), "order.created").unwrap_err();
            assert!(!reason.contains("secret"), "{reason}");
        }
        assert!(created_order(None, "order.created").is_err());
    }
}
