//! Names of span attributes, from OpenTelemetry's semantic conventions.
//!
//! Source: `open-telemetry/semantic-conventions` after v1.44.0. The HTTP and database names are
//! stable. The RPC and messaging names are "in development" upstream and may change, so they are defined
//! only here.

use opentelemetry::KeyValue;

/// The attributes of every span of a PostgreSQL client. The namespace is `database|schema`, as the
/// conventions demand.
pub fn postgresql(database: &str, host: &str, port: u16) -> [KeyValue; 4] {
    [
        KeyValue::new(DB_SYSTEM_NAME, POSTGRESQL),
        KeyValue::new(DB_NAMESPACE, format!("{database}|public")),
        KeyValue::new(SERVER_ADDRESS, host.to_owned()),
        KeyValue::new(SERVER_PORT, i64::from(port)),
    ]
}

/// The attributes of every span of a gRPC client that calls `method` (`package.Service/Method`) at
/// `host:port`.
pub fn grpc_call(method: &str, authority: &str) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new(RPC_SYSTEM_NAME, GRPC),
        KeyValue::new(RPC_METHOD, method.to_owned()),
    ];
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, ""));
    attributes.push(KeyValue::new(SERVER_ADDRESS, host.to_owned()));
    attributes.extend(
        port.parse()
            .ok()
            .map(|port: i64| KeyValue::new(SERVER_PORT, port)),
    );
    attributes
}

// Any span.
/// What kind of failure ended the operation; of low cardinality.
pub const ERROR_TYPE: &str = "error.type";
/// Host name or address of the server side.
pub const SERVER_ADDRESS: &str = "server.address";
/// Port of the server side.
pub const SERVER_PORT: &str = "server.port";
/// The error's text, on an `exception` event.
pub const EXCEPTION_MESSAGE: &str = "exception.message";
/// The error's type, on an `exception` event.
pub const EXCEPTION_TYPE: &str = "exception.type";

// HTTP server spans (stable). Name: `{method} {http.route}`, or the method
// alone; status 5xx is an error, 4xx is not.
/// The method, `_OTHER` if it is not a known one.
pub const HTTP_REQUEST_METHOD: &str = "http.request.method";
/// The method as sent, if it is not a known one.
pub const HTTP_REQUEST_METHOD_ORIGINAL: &str = "http.request.method_original";
/// The status code, an integer.
pub const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
/// The route's template, never the raw path.
pub const HTTP_ROUTE: &str = "http.route";
/// Path of the request's target.
pub const URL_PATH: &str = "url.path";
/// Query of the request's target.
pub const URL_QUERY: &str = "url.query";
/// `http` here.
pub const URL_SCHEME: &str = "url.scheme";
/// Address of the connection's other end.
pub const NETWORK_PEER_ADDRESS: &str = "network.peer.address";
/// Port of the connection's other end.
pub const NETWORK_PEER_PORT: &str = "network.peer.port";
/// The `User-Agent` header.
pub const USER_AGENT_ORIGINAL: &str = "user_agent.original";

// RPC spans (release candidate upstream). Name: `{rpc.method}`. Every code but OK is an error of a client; UNKNOWN,
// DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and DATA_LOSS are errors of a server.
/// [`GRPC`] here.
pub const RPC_SYSTEM_NAME: &str = "rpc.system.name";
/// Value of [`RPC_SYSTEM_NAME`].
pub const GRPC: &str = "grpc";
/// The method with its service: `package.Service/Method`.
pub const RPC_METHOD: &str = "rpc.method";
/// The name of the status code: `NOT_FOUND`.
pub const RPC_RESPONSE_STATUS_CODE: &str = "rpc.response.status_code";

// Database client spans (stable). Name: `{db.query.summary}`.
/// [`POSTGRESQL`] here.
pub const DB_SYSTEM_NAME: &str = "db.system.name";
/// Value of [`DB_SYSTEM_NAME`].
pub const POSTGRESQL: &str = "postgresql";
/// Database and schema, `tbd|public`.
pub const DB_NAMESPACE: &str = "db.namespace";
/// `INSERT`, `SELECT`, ...
pub const DB_OPERATION_NAME: &str = "db.operation.name";
/// Operation and target in a few words: `INSERT orders`.
pub const DB_QUERY_SUMMARY: &str = "db.query.summary";
/// Rows that a statement writes for several callers; absent for one.
pub const DB_OPERATION_BATCH_SIZE: &str = "db.operation.batch.size";
/// The statement, with placeholders.
pub const DB_QUERY_TEXT: &str = "db.query.text";
/// The SQLSTATE of a failure.
pub const DB_RESPONSE_STATUS_CODE: &str = "db.response.status_code";

// Messaging spans (in development upstream). Name: `{operation} {destination}`.
/// [`KAFKA`] here.
pub const MESSAGING_SYSTEM: &str = "messaging.system";
/// Value of [`MESSAGING_SYSTEM`].
pub const KAFKA: &str = "kafka";
/// What the client calls the operation: `send`, `poll`, `process`, `commit`.
pub const MESSAGING_OPERATION_NAME: &str = "messaging.operation.name";
/// The operation's kind: `create`, `send`, `receive`, `process`, `settle`.
pub const MESSAGING_OPERATION_TYPE: &str = "messaging.operation.type";
/// The topic.
pub const MESSAGING_DESTINATION_NAME: &str = "messaging.destination.name";
/// The partition, as text.
pub const MESSAGING_DESTINATION_PARTITION_ID: &str = "messaging.destination.partition.id";
/// The consumer group.
pub const MESSAGING_CONSUMER_GROUP_NAME: &str = "messaging.consumer.group.name";
/// The record's offset, an integer.
pub const MESSAGING_KAFKA_OFFSET: &str = "messaging.kafka.offset";
/// The record's key.
pub const MESSAGING_KAFKA_MESSAGE_KEY: &str = "messaging.kafka.message.key";

// Resource: who sends.
/// Version of the service.
pub const SERVICE_VERSION: &str = "service.version";
/// One running process of the service.
pub const SERVICE_INSTANCE_ID: &str = "service.instance.id";
/// The process's number.
pub const PROCESS_PID: &str = "process.pid";
/// `opentelemetry`.
pub const TELEMETRY_SDK_NAME: &str = "telemetry.sdk.name";
/// `rust`.
pub const TELEMETRY_SDK_LANGUAGE: &str = "telemetry.sdk.language";

// tbd's own.
/// The order that a span is about.
pub const ORDER_ID: &str = "tbd.order.id";
