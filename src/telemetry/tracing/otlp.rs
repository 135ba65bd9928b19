//! The part of OTLP's trace messages that tbd sends, and their making from
//! finished spans.
//!
//! Field numbers and types are those of `opentelemetry-proto` 1.x
//! (`trace/v1/trace.proto`, `common/v1/common.proto`,
//! `resource/v1/resource.proto`, `collector/trace/v1/trace_service.proto`).
//! The messages are written here because the crate that generates them leads
//! to an async gRPC stack.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanId, SpanKind, Status as SpanStatus, TraceFlags};
use opentelemetry_sdk::trace::SpanData;

/// `ExportTraceServiceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    pub resource_spans: Vec<ResourceSpans>,
}

/// `ExportTraceServiceResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    pub partial_success: Option<PartialSuccess>,
}

/// `ExportTracePartialSuccess`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PartialSuccess {
    #[prost(int64, tag = "1")]
    pub rejected_spans: i64,
    #[prost(string, tag = "2")]
    pub error_message: String,
}

/// The spans of one process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub scope_spans: Vec<ScopeSpans>,
}

/// Who sends.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

/// The spans of one library.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    pub scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    pub spans: Vec<Span>,
}

/// `InstrumentationScope`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Scope {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub version: String,
}

/// One finished span.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    pub trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    pub parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub name: String,
    /// 1 internal, 2 server, 3 client, 4 producer, 5 consumer.
    #[prost(int32, tag = "6")]
    pub kind: i32,
    #[prost(fixed64, tag = "7")]
    pub start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    pub end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    pub attributes: Vec<KeyValue>,
    #[prost(uint32, tag = "10")]
    pub dropped_attributes_count: u32,
    #[prost(message, repeated, tag = "11")]
    pub events: Vec<Event>,
    #[prost(uint32, tag = "12")]
    pub dropped_events_count: u32,
    #[prost(message, repeated, tag = "13")]
    pub links: Vec<Link>,
    #[prost(uint32, tag = "14")]
    pub dropped_links_count: u32,
    #[prost(message, optional, tag = "15")]
    pub status: Option<Status>,
    /// W3C trace flags, and whether the parent is in another process.
    #[prost(fixed32, tag = "16")]
    pub flags: u32,
}

/// Something that happened within a span.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {
    #[prost(fixed64, tag = "1")]
    pub time_unix_nano: u64,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "3")]
    pub attributes: Vec<KeyValue>,
    #[prost(uint32, tag = "4")]
    pub dropped_attributes_count: u32,
}

/// A span this one has to do with.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Link {
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    pub trace_state: String,
    #[prost(message, repeated, tag = "4")]
    pub attributes: Vec<KeyValue>,
    #[prost(uint32, tag = "5")]
    pub dropped_attributes_count: u32,
    #[prost(fixed32, tag = "6")]
    pub flags: u32,
}

/// How a span ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Status {
    #[prost(string, tag = "2")]
    pub message: String,
    /// 0 unset, 1 ok, 2 error.
    #[prost(int32, tag = "3")]
    pub code: i32,
}

/// One attribute.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

/// An attribute's value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AnyValue {
    #[prost(oneof = "Any", tags = "1, 2, 3, 4, 5")]
    pub value: Option<Any>,
}

/// The kinds of value that spans have here.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Any {
    #[prost(string, tag = "1")]
    String(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(int64, tag = "3")]
    Int(i64),
    #[prost(double, tag = "4")]
    Double(f64),
    #[prost(message, tag = "5")]
    Array(ArrayValue),
}

/// Several values.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ArrayValue {
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<AnyValue>,
}

/// The request that carries `spans` of the process that `resource` describes.
pub fn export_request(resource: &Resource, scope: &Scope, spans: &[SpanData]) -> ExportRequest {
    ExportRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource.clone()),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope.clone()),
                spans: spans.iter().map(span).collect(),
            }],
        }],
    }
}

fn span(data: &SpanData) -> Span {
    let context = &data.span_context;
    Span {
        trace_id: context.trace_id().to_bytes().to_vec(),
        span_id: context.span_id().to_bytes().to_vec(),
        trace_state: context.trace_state().header(),
        parent_span_id: match data.parent_span_id {
            SpanId::INVALID => Vec::new(),
            id => id.to_bytes().to_vec(),
        },
        name: data.name.clone().into_owned(),
        kind: match data.span_kind {
            SpanKind::Internal => 1,
            SpanKind::Server => 2,
            SpanKind::Client => 3,
            SpanKind::Producer => 4,
            SpanKind::Consumer => 5,
        },
        start_time_unix_nano: unix_nanos(data.start_time),
        end_time_unix_nano: unix_nanos(data.end_time),
        attributes: attributes(&data.attributes),
        dropped_attributes_count: data.dropped_attributes_count,
        events: data.events.iter().map(event).collect(),
        dropped_events_count: data.events.dropped_count,
        links: data.links.iter().map(link).collect(),
        dropped_links_count: data.links.dropped_count,
        status: status(&data.status),
        flags: flags(context.trace_flags(), data.parent_span_is_remote),
    }
}

fn event(event: &opentelemetry::trace::Event) -> Event {
    Event {
        time_unix_nano: unix_nanos(event.timestamp),
        name: event.name.clone().into_owned(),
        attributes: attributes(&event.attributes),
        dropped_attributes_count: event.dropped_attributes_count,
    }
}

fn link(link: &opentelemetry::trace::Link) -> Link {
    let context = &link.span_context;
    Link {
        trace_id: context.trace_id().to_bytes().to_vec(),
        span_id: context.span_id().to_bytes().to_vec(),
        trace_state: context.trace_state().header(),
        attributes: attributes(&link.attributes),
        dropped_attributes_count: link.dropped_attributes_count,
        flags: flags(context.trace_flags(), context.is_remote()),
    }
}

fn status(status: &SpanStatus) -> Option<Status> {
    let (code, message) = match status {
        SpanStatus::Unset => return None,
        SpanStatus::Ok => (1, String::new()),
        SpanStatus::Error { description } => (2, description.clone().into_owned()),
    };
    Some(Status { message, code })
}

/// `SpanFlags`: bit 8 says that bit 9, "is remote", means something.
fn flags(flags: TraceFlags, is_remote: bool) -> u32 {
    u32::from(flags.to_u8()) | 0x100 | if is_remote { 0x200 } else { 0 }
}

/// The messages of a list of attributes.
pub fn attributes(attributes: &[opentelemetry::KeyValue]) -> Vec<KeyValue> {
    attributes
        .iter()
        .map(|attribute| KeyValue {
            key: attribute.key.as_str().to_owned(),
            value: Some(any_value(&attribute.value)),
        })
        .collect()
}

fn any_value(value: &opentelemetry::Value) -> AnyValue {
    use opentelemetry::{Array, Value};

    fn array<T>(values: &[T], any: impl Fn(&T) -> Any) -> Any {
        let value = |value| AnyValue {
            value: Some(any(value)),
        };
        Any::Array(ArrayValue {
            values: values.iter().map(value).collect(),
        })
    }

    let any = match value {
        Value::Bool(value) => Any::Bool(*value),
        Value::I64(value) => Any::Int(*value),
        Value::F64(value) => Any::Double(*value),
        Value::String(value) => Any::String(value.as_str().to_owned()),
        Value::Array(Array::Bool(values)) => array(values, |value| Any::Bool(*value)),
        Value::Array(Array::I64(values)) => array(values, |value| Any::Int(*value)),
        Value::Array(Array::F64(values)) => array(values, |value| Any::Double(*value)),
        Value::Array(Array::String(values)) => {
            array(values, |value| Any::String(value.as_str().to_owned()))
        }
        // Both enums may grow; what they grow by can at least be read.
        other => Any::String(other.as_str().into_owned()),
    };
    AnyValue { value: Some(any) }
}

fn unix_nanos(time: SystemTime) -> u64 {
    let nanos = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    u64::try_from(nanos).unwrap_or(u64::MAX)
}
