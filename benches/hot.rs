//! Microbenchmarks of the hot paths: `cargo bench`. The figures compare two versions of the code on one
//! machine; `make bench` measures the whole system.

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tbd::metrics::Metrics;
use tbd::orders::adapters::PrometheusMeter;
use tbd::orders::adapters::http::{Api, routes};
use tbd::orders::adapters::kafka::{KafkaEventBus, Topics};
use tbd::orders::adapters::memory::Memory;
use tbd::orders::app::commands::{CancelOrder, CreateOrder};
use tbd::orders::app::{DeliveryMode, Housekeeping};
use tbd::orders::domain::{AmountCents, CustomerEmail, Order, OrderEvent};
use tbd::orders::ports::{EventBus, Message, PublishError};
use tbd::wiring::observers;
use tbd_deadline::Deadline;
use tbd_deadline::StopSignal;
use tbd_http::{Router, Server, ServerConfig};
use tbd_kafka::internals::{Identity, encode_batch, next_batch};
use tbd_kafka::producer::{Compression, Producer, ProducerConfig, Record};
use tbd_kafka::{ClientConfig, Cluster};
use uuid::Uuid;

const HOUR: Duration = Duration::from_secs(3600);

/// Encodes as the real publisher does, and acknowledges at once.
struct Bus(KafkaEventBus);

impl Bus {
    fn new() -> Self {
        let topics = Topics {
            created: "order.created".into(),
            processed: "order.processed".into(),
            failed: "order.failed".into(),
            dlq: "order.dlq".into(),
        };
        // Nothing listens there, and nothing is sent.
        let cluster = Cluster::new(ClientConfig::default());
        let producer = Producer::start(cluster, ProducerConfig::default(), Arc::new(()));
        Self(KafkaEventBus::new(producer.expect("a thread"), topics))
    }
}

impl EventBus for Bus {
    fn encode(&self, event: &OrderEvent) -> Message {
        self.0.encode(event)
    }

    fn publish(&self, _: &Message, _: Deadline) -> Result<(), PublishError> {
        Ok(())
    }

    fn publish_all(&self, messages: &[Message], _: Deadline) -> Vec<Result<(), PublishError>> {
        messages.iter().map(|_| Ok(())).collect()
    }
}

fn order() -> Order {
    let email = CustomerEmail::new("user@example.com".to_owned()).expect("an address");
    let amount = AmountCents::new(1999).expect("an amount");
    Order::create(email, amount, jiff::Timestamp::now())
}

/// The api with in-memory stores, and one connection to it.
struct House {
    store: Arc<Memory>,
    _server: Server,
    connection: TcpStream,
    answer: Vec<u8>,
}

impl House {
    fn new() -> Self {
        let metrics = Metrics::new();
        let store = Arc::new(Memory::default());
        let bus: Arc<dyn EventBus> = Arc::new(Bus::new());
        let meter = Arc::new(PrometheusMeter::new(metrics.orders.clone()));
        let housekeeping = Housekeeping {
            outbox: store.clone(),
            keys: store.clone(),
            bus: bus.clone(),
            meter: meter.clone(),
            stop: StopSignal::new(),
        };
        let (delivery, _) = housekeeping
            .start(DeliveryMode::Direct)
            .expect("three threads");
        let api = Api {
            create: CreateOrder {
                store: store.clone(),
                bus,
                delivery,
                meter,
                ttl: HOUR,
            },
            cancel: CancelOrder {
                repository: store.clone(),
            },
            orders: store.clone(),
            sagas: store.clone(),
        };
        let config = ServerConfig {
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            ..ServerConfig::default()
        };
        let fatal = Box::new(|reason: &str| panic!("{reason}"));
        let workers = config.workers;
        let server = Server::start(
            config,
            routes(Router::new(), api),
            observers(metrics.http, workers),
            fatal,
        );
        let server = server.expect("a port");
        let connection = TcpStream::connect(server.local_addr()).expect("a connection");
        connection.set_nodelay(true).expect("a socket");
        Self {
            store,
            _server: server,
            connection,
            answer: vec![0; 4096],
        }
    }

    /// Sends a request and reads its answer, which comes in one piece.
    fn ask(&mut self, request: &str) -> &[u8] {
        self.connection
            .write_all(request.as_bytes())
            .expect("a server");
        let length = self.connection.read(&mut self.answer).expect("an answer");
        &self.answer[..length]
    }
}

fn requests(criterion: &mut Criterion) {
    let mut house = House::new();
    let mut group = criterion.benchmark_group("request to response");
    group.bench_function("POST /v1/orders", |bencher| {
        bencher.iter(|| {
            let body = r#"{"customer_email":"user@example.com","amount_cents":1999}"#;
            let request = format!(
                "POST /v1/orders HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n\
                 Idempotency-Key: {}\r\nContent-Length: {}\r\n\r\n{body}",
                Uuid::now_v7(),
                body.len()
            );
            assert!(house.ask(&request).starts_with(b"HTTP/1.1 202 "));
        });
    });
    let known = order();
    house.store.put(&known);
    let request = format!(
        "GET /v1/orders/{} HTTP/1.1\r\nHost: bench\r\n\r\n",
        known.id
    );
    group.bench_function("GET /v1/orders/{id}", |bencher| {
        bencher.iter(|| assert!(house.ask(&request).starts_with(b"HTTP/1.1 200 ")));
    });
}

fn events(criterion: &mut Criterion) {
    let bus = Bus::new();
    let event = OrderEvent::Created(order());
    criterion.bench_function("event encode", |bencher| {
        bencher.iter(|| bus.encode(black_box(&event)));
    });
}

fn batches(criterion: &mut Criterion) {
    let bus = Bus::new();
    let mut group = criterion.benchmark_group("record batch");
    for count in [1, 50] {
        let records: Vec<Record> = (0..count)
            .map(|_| {
                let message = bus.encode(&OrderEvent::Created(order()));
                Record {
                    topic: "order.created".into(),
                    partition: None,
                    key: Some(Bytes::from(message.order_id.to_string())),
                    value: Some(message.payload),
                    headers: Vec::new(),
                    timestamp_ms: None,
                }
            })
            .collect();
        let identity = Identity::idempotent(1, 0);
        let encode = || {
            let records = records.iter().map(|record| (record, 1_760_000_000_000));
            encode_batch(Vec::new(), records, Compression::None, identity, 0).expect("a batch")
        };
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::new("encode", count), |bencher| {
            bencher.iter(encode);
        });
        let encoded = encode();
        group.bench_function(BenchmarkId::new("decode", count), |bencher| {
            bencher.iter(|| {
                let batch = next_batch(&mut encoded.clone());
                let batch = batch.expect("whole").expect("one");
                batch.records().expect("records")
            });
        });
    }
}

criterion_group!(benches, requests, events, batches);
criterion_main!(benches);
