//! A scripted in-process broker for tests, for faults that a real one shows too rarely.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponsePartition, OffsetFetchResponseTopic,
};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{
    Decodable, Encodable, HeaderVersion, StrBytes, decode_request_header_from_buffer,
};

use super::lock;
use super::wire::{ApiKey, Request};

/// A request as received.
pub(crate) struct Incoming {
    pub(crate) api: ApiKey,
    pub(crate) version: i16,
    pub(crate) correlation_id: i32,
    body: Bytes,
}

/// The broker's reaction to a request.
pub(crate) enum Reply {
    /// Send these bytes.
    Bytes(Vec<u8>),
    /// Send these bytes one by one, with a pause before each.
    Drip(Vec<u8>, Duration),
    /// Send these bytes, then close the connection.
    BytesThenClose(Vec<u8>),
    /// Send nothing and keep the connection open.
    Silence,
}

impl Incoming {
    pub(crate) fn decode<R: Decodable>(&self) -> R {
        R::decode(&mut self.body.clone(), self.version).unwrap()
    }

    /// A complete frame with `response` in the request's version.
    pub(crate) fn frame<M: Encodable + HeaderVersion>(&self, response: &M) -> Vec<u8> {
        self.frame_as(response, self.version, self.correlation_id)
    }

    pub(crate) fn frame_as<M: Encodable + HeaderVersion>(
        &self,
        response: &M,
        version: i16,
        correlation_id: i32,
    ) -> Vec<u8> {
        let mut body = BytesMut::new();
        ResponseHeader::default()
            .with_correlation_id(correlation_id)
            .encode(&mut body, M::header_version(version))
            .unwrap();
        response.encode(&mut body, version).unwrap();
        framed(&body)
    }

    pub(crate) fn answer<M: Encodable + HeaderVersion>(&self, response: &M) -> Reply {
        Reply::Bytes(self.frame(response))
    }

    /// All versions that this client supports.
    pub(crate) fn versions(&self) -> ApiVersionsResponse {
        let ranges = ApiKey::ALL.iter().map(|api| {
            ApiVersion::default()
                .with_api_key(api.number())
                .with_min_version(api.versions().min)
                .with_max_version(api.versions().max)
        });
        ApiVersionsResponse::default().with_api_keys(ranges.collect())
    }

    /// The answer that a group has committed `offset` in each partition asked for; none if negative.
    pub(crate) fn committed(&self, offset: i64) -> Reply {
        let asked: OffsetFetchRequest = self.decode();
        let topics = asked.topics.unwrap_or_default().into_iter().map(|topic| {
            let partitions = topic.partition_indexes.iter().map(|&index| {
                OffsetFetchResponsePartition::default()
                    .with_partition_index(index)
                    .with_committed_offset(offset)
            });
            OffsetFetchResponseTopic::default()
                .with_name(topic.name)
                .with_partitions(partitions.collect())
        });
        self.answer(&OffsetFetchResponse::default().with_topics(topics.collect()))
    }

    /// Metadata with one broker: node 1 at `address`, the leader of `partitions` of every topic
    /// asked for.
    pub(crate) fn metadata(&self, address: SocketAddr, partitions: i32) -> MetadataResponse {
        let asked: MetadataRequest = self.decode();
        let topics = asked.topics.unwrap_or_default().into_iter().map(|topic| {
            let partitions = (0..partitions).map(|index| {
                MetadataResponsePartition::default()
                    .with_partition_index(index)
                    .with_leader_id(BrokerId(1))
                    .with_leader_epoch(0)
            });
            MetadataResponseTopic::default()
                .with_name(topic.name)
                .with_partitions(partitions.collect())
        });
        let broker = MetadataResponseBroker::default()
            .with_node_id(BrokerId(1))
            .with_host(StrBytes::from_string(address.ip().to_string()))
            .with_port(i32::from(address.port()));
        MetadataResponse::default()
            .with_brokers(vec![broker])
            .with_controller_id(BrokerId(1))
            .with_topics(topics.collect())
    }
}

/// `body` preceded by its length.
pub(crate) fn framed(body: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(body);
    frame
}

/// A listening broker; stops when dropped.
pub(crate) struct FakeBroker {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    sockets: Arc<Mutex<HashMap<u64, TcpStream>>>,
    acceptor: Option<JoinHandle<()>>,
}

impl FakeBroker {
    /// Starts a broker that answers each request as `handler` says.
    pub(crate) fn start(
        handler: impl Fn(&Incoming, SocketAddr) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stopping = Arc::new(AtomicBool::new(false));
        let sockets: Arc<Mutex<HashMap<u64, TcpStream>>> = Arc::default();
        let handler = Arc::new(handler);
        let (for_acceptor, all) = (Arc::clone(&stopping), Arc::clone(&sockets));
        let acceptor = std::thread::spawn(move || {
            let mut connections = Vec::new();
            for number in 0.. {
                let Ok((socket, _)) = listener.accept() else {
                    break;
                };
                if for_acceptor.load(Ordering::SeqCst) {
                    break;
                }
                lock(&all).insert(number, socket.try_clone().unwrap());
                let (handler, all) = (Arc::clone(&handler), Arc::clone(&all));
                connections.push(std::thread::spawn(move || {
                    serve(socket, |incoming| handler(incoming, address));
                    if let Some(socket) = lock(&all).remove(&number) {
                        let _ = socket.shutdown(std::net::Shutdown::Both);
                    }
                }));
            }
            for connection in connections {
                connection.join().unwrap();
            }
        });
        Self {
            address,
            stopping,
            sockets,
            acceptor: Some(acceptor),
        }
    }

    /// The number of open connections.
    pub(crate) fn connections(&self) -> usize {
        lock(&self.sockets).len()
    }

    /// Waits until `count` connections are open.
    pub(crate) fn wait_for_connections(&self, count: usize) {
        let give_up = Instant::now() + Duration::from_secs(10);
        while self.connections() != count {
            assert!(Instant::now() < give_up, "{:?}", lock(&self.sockets));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for FakeBroker {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        for socket in lock(&self.sockets).values() {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        if let Some(acceptor) = self.acceptor.take() {
            let joined = acceptor.join();
            assert!(joined.is_ok() || std::thread::panicking());
        }
    }
}

fn serve(mut socket: TcpStream, handler: impl Fn(&Incoming) -> Reply) {
    while let Some(incoming) = read_request(&mut socket) {
        let written = match handler(&incoming) {
            Reply::Bytes(bytes) => socket.write_all(&bytes),
            Reply::Drip(bytes, pause) => bytes.iter().try_for_each(|byte| {
                std::thread::sleep(pause);
                socket.write_all(&[*byte])
            }),
            Reply::BytesThenClose(bytes) => {
                let _ = socket.write_all(&bytes);
                return;
            }
            Reply::Silence => Ok(()),
        };
        if written.is_err() {
            return;
        }
    }
}

fn read_request(socket: &mut TcpStream) -> Option<Incoming> {
    let mut length = [0; 4];
    socket.read_exact(&mut length).ok()?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    socket.read_exact(&mut frame).ok()?;
    let mut body = Bytes::from(frame);
    let header = decode_request_header_from_buffer(&mut body).unwrap();
    Some(Incoming {
        api: *ApiKey::ALL
            .iter()
            .find(|api| api.number() == header.request_api_key)
            .unwrap(),
        version: header.request_api_version,
        correlation_id: header.correlation_id,
        body,
    })
}

/// The newest version of a request that this client supports.
pub(crate) fn newest<R: Request>() -> i16 {
    R::VERSIONS.max
}
