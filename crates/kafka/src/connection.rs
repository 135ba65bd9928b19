//! A connection to one broker: version negotiation, login, requests and responses.
//!
//! A connection belongs to one thread at a time. Several requests may be in flight; responses come
//! in the order of the requests. Any failure poisons the connection: requests in flight have an
//! unknown outcome, and later bytes could be mistaken for another request's response.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::marker::PhantomData;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::ApiKey;
use crate::ErrorCode;
use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, SaslAuthenticateRequest, SaslHandshakeRequest,
};
use kafka_protocol::protocol::{StrBytes, VersionRange};

use super::config::{ClientConfig, unit_random};
use super::error::Error;
use super::in_flight::InFlight;
use super::lock;
use super::rustls_types::TlsError;
use super::sasl::{self, Failure};
#[cfg(feature = "tls")]
use super::security::tls_failure;
use super::security::{Sasl, Security};
use super::spare::Spares;
use super::transport::Transport;
use super::wire::{self, Request};
use tbd_deadline::Deadline;

/// Room for a read of a frame's length; small frames arrive with it.
const READ_AHEAD_BYTES: usize = 16 * 1024;

/// The first room for the rest of a frame. It grows only by what arrives, so a false length alone
/// takes no memory.
const READ_BYTES_FIRST: usize = 256 * 1024;

/// Bytes of the length before each frame.
const LENGTH_BYTES: usize = 4;

/// Requests that may be in flight on one connection; more is a bug in this client.
const IN_FLIGHT_MAX: usize = 64;

/// An open connection to a broker, after version negotiation and login.
#[derive(Debug)]
pub struct Connection {
    transport: Transport,
    address: String,
    client_id: String,
    security: Security,
    /// When to log in again: brokers end expired sessions (KIP-368).
    log_in_at: Option<Instant>,
    /// Whether the broker has answered a request other than ApiVersions.
    is_proven: bool,
    versions: HashMap<i16, VersionRange>,
    /// The cluster's level of the feature `transaction.version`.
    transaction_version: i16,
    next_correlation_id: i32,
    in_flight: InFlight,
    written: BytesMut,
    /// Received, and not yet part of an answer.
    received: Vec<u8>,
    spares: Spares,
    /// Why the connection can no longer be used.
    poison: Option<Error>,
    last_used: Instant,
    /// The broker reads no request before this moment.
    muted_until: Option<Instant>,
}

/// A ticket for the response of a request in flight, see [`Connection::receive`]. Do not drop it:
/// responses come in order, so the connection could then receive no other response.
#[derive(Debug)]
#[must_use = "the response must be received"]
pub struct Sent<R> {
    correlation_id: i32,
    version: i16,
    request: PhantomData<fn() -> R>,
}

impl<R> Sent<R> {
    /// The version of the request and of its response.
    pub fn version(&self) -> i16 {
        self.version
    }
}

impl AsFd for Connection {
    /// For waiting on several connections at once: readable means that a response has begun to
    /// arrive. This holds only with at most one request in flight, because responses that arrive
    /// together are read together.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.transport.as_fd()
    }
}

/// Closes the connections of one thread from another thread. A thread that waits on its
/// connection gets [`Error::ConnectionLost`], and opens no other one.
#[derive(Debug, Default)]
pub(crate) struct Interrupts {
    /// The socket opened last.
    socket: Mutex<Option<TcpStream>>,
    is_over: AtomicBool,
}

impl Interrupts {
    /// Closes the connection. Does not wait.
    pub(crate) fn interrupt(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        if let Some(socket) = lock(&self.socket).take() {
            // An error means that it is closed already.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    /// The thread uses this connection from now on.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`Interrupts::interrupt`].
    fn watch(&self, transport: &Transport) -> Result<(), Error> {
        // Without a descriptor left, the thread's deadlines must do.
        *lock(&self.socket) = transport.try_clone_socket().ok();
        match self.is_over.load(Ordering::SeqCst) {
            true => {
                self.interrupt();
                Err(Error::Closed)
            }
            false => Ok(()),
        }
    }
}

impl Drop for Connection {
    /// Ends the connection although `Interrupts` may still have its socket.
    fn drop(&mut self) {
        self.transport.shutdown();
    }
}

impl Connection {
    /// Connects to `address` (`host:port`), starts TLS if configured, negotiates versions and logs
    /// in.
    ///
    /// Waits at most until the earlier of `deadline` and the configured connect time-out; name
    /// resolution has the operating system's own limits. If the name has several addresses, tries
    /// them in order until one works (KIP-302): each has a fair share of the remaining time to
    /// accept the connection, and then half of the rest to answer.
    ///
    /// # Errors
    /// The last address's: [`Error::Unreachable`] when it does not accept a connection;
    /// [`Error::Tls`] when the client does not trust the broker; [`Error::Authentication`] when the
    /// login fails; otherwise as [`Connection::call`].
    pub fn open(address: &str, config: &ClientConfig, deadline: Deadline) -> Result<Self, Error> {
        Self::open_for(None, address, config, deadline)
    }

    /// As [`Connection::open`], for a thread that another one can interrupt.
    pub(crate) fn open_for(
        interrupts: Option<&Interrupts>,
        address: &str,
        config: &ClientConfig,
        deadline: Deadline,
    ) -> Result<Self, Error> {
        let deadline = deadline.earlier_of(Deadline::after(config.connect_timeout));
        let unreachable = |error| unreachable(address, &error);
        let addresses: Vec<_> = address.to_socket_addrs().map_err(unreachable)?.collect();
        Self::open_one_of(&addresses, interrupts, address, config, deadline)
    }

    /// Opens a connection to the first of a name's addresses that works. After a failed login or a
    /// broker that is not trusted no other one is tried: all addresses are of one broker or cluster.
    fn open_one_of(
        addresses: &[SocketAddr],
        interrupts: Option<&Interrupts>,
        name: &str,
        config: &ClientConfig,
        deadline: Deadline,
    ) -> Result<Self, Error> {
        let within = |time| deadline.earlier_of(Deadline::after(time));
        let no_address = io::Error::new(ErrorKind::NotFound, "the name has no address");
        let mut failure = unreachable(name, &no_address);
        for (index, address) in addresses.iter().enumerate() {
            let untried = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
            let left = deadline.remaining();
            if index > 0 && left.is_zero() {
                break;
            }
            let dialled = Transport::dial(*address, within(left / untried));
            let opened = dialled
                .map_err(|error| unreachable(name, &error))
                .and_then(|transport| {
                    interrupts.map_or(Ok(()), |it| it.watch(&transport))?;
                    // A broker needs more time to answer than to accept, so this is no fair share:
                    // of many addresses each would have too little.
                    let share = match untried {
                        1 => deadline,
                        _ => within(deadline.remaining() / 2),
                    };
                    Self::set_up(transport, name, config, share)
                });
            match opened {
                Err(error) if error.is_transient() => failure = error,
                opened => return opened,
            }
        }
        Err(failure)
    }

    /// Starts TLS if configured, negotiates versions and logs in.
    fn set_up(
        #[cfg_attr(
            not(feature = "tls"),
            expect(unused_mut, reason = "only TLS changes it")
        )]
        mut transport: Transport,
        address: &str,
        config: &ClientConfig,
        deadline: Deadline,
    ) -> Result<Self, Error> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &config.security.tls {
            transport
                .secure(tls, address, deadline)
                .map_err(|error| handshake_failure(address, &error))?;
        }
        let mut connection = Self {
            transport,
            address: address.to_owned(),
            client_id: config.client_id.clone(),
            security: config.security.clone(),
            log_in_at: None,
            is_proven: false,
            versions: HashMap::new(),
            transaction_version: 0,
            next_correlation_id: 0,
            in_flight: InFlight::new(Arc::clone(&config.hooks)),
            written: BytesMut::new(),
            received: Vec::new(),
            spares: Spares::default(),
            poison: None,
            last_used: Instant::now(),
            muted_until: None,
        };
        connection.negotiate(deadline)?;
        if let Some(sasl) = &config.security.sasl {
            connection.log_in(sasl, deadline)?;
        }
        Ok(connection)
    }

    /// The address that was dialled.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `Err` with `code`, which this broker has answered, unless it is 0.
    pub(crate) fn check(&self, api: ApiKey, code: i16) -> Result<(), Error> {
        Error::check(api, code).map_err(|error| error.of_broker(Some(&self.address)))
    }

    /// The negotiated version of `api` on this connection.
    ///
    /// # Errors
    /// [`Error::UnsupportedVersion`] when the two sides have none in common.
    pub fn version_of(&self, api: ApiKey) -> Result<i16, Error> {
        self.versions
            .get(&api.number())
            .and_then(|range| wire::common_version(api, *range))
            .ok_or_else(|| Error::UnsupportedVersion {
                address: self.address.clone(),
                api,
            })
    }

    /// Sends a request and waits for its response, at most until `deadline`. First waits as long as
    /// the broker throttles the client (KIP-219). [`Error::Timeout`] if it does so beyond
    /// `deadline`: nothing was sent then, and the connection is fine.
    ///
    /// # Errors
    /// After any other [`Error::Timeout`], [`Error::ConnectionLost`] or [`Error::Protocol`] the request's
    /// outcome is unknown and the connection is poisoned. After [`Error::UnsupportedVersion`] and
    /// [`Error::Encode`] nothing was sent and the connection is fine. The caller must check error
    /// codes in the response.
    pub fn call<R: Request>(
        &mut self,
        request: &R,
        deadline: Deadline,
    ) -> Result<R::Response, Error> {
        let sent = self.send(request, deadline)?;
        self.receive(sent, deadline)
    }

    /// Sends a request without waiting for its response. Waits, at most until `deadline`, for the
    /// broker to throttle no longer, and for the socket to take the bytes. If nothing is in flight and the session is about to expire, also
    /// waits for a new login.
    ///
    /// # Errors
    /// As [`Connection::call`]; [`Error::Authentication`].
    pub fn send<R: Request>(&mut self, request: &R, deadline: Deadline) -> Result<Sent<R>, Error> {
        self.send_at_most(request, i16::MAX, deadline)
    }

    /// As [`Connection::send`], in no version newer than `newest`: for requests with fields that
    /// newer versions do not have.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub fn send_at_most<R: Request>(
        &mut self,
        request: &R,
        newest: i16,
        deadline: Deadline,
    ) -> Result<Sent<R>, Error> {
        self.log_in_again(deadline)?;
        self.send_without_login(request, newest, deadline)
    }

    /// As [`Connection::send_at_most`], for a caller that calls [`Connection::log_in_again`] itself.
    pub(crate) fn send_without_login<R: Request>(
        &mut self,
        request: &R,
        newest: i16,
        deadline: Deadline,
    ) -> Result<Sent<R>, Error> {
        let version = self.version_of(R::API)?.min(newest);
        self.send_as(request, version, deadline)
    }

    /// Logs in again if the session is about to expire and nothing is in flight.
    pub(crate) fn log_in_again(&mut self, deadline: Deadline) -> Result<(), Error> {
        if self.must_log_in()
            && self.in_flight.is_empty()
            && let Some(sasl) = self.security.sasl.clone()
        {
            self.check_poison()?;
            self.log_in(&sasl, deadline)?;
        }
        Ok(())
    }

    /// Waits, at most until `deadline`, for the response to the oldest request in flight. `sent`
    /// must be the ticket of that request.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn receive<R: Request>(
        &mut self,
        sent: Sent<R>,
        deadline: Deadline,
    ) -> Result<R::Response, Error> {
        let frame = self.receive_frame(&sent, deadline)?;
        self.is_proven = true;
        let response = wire::decode_response::<R>(frame, sent.version)
            .map_err(|reason| self.poison_protocol(format!("{:?}: {reason}", R::API)))?;
        if let Ok(throttle @ 1..) = u64::try_from(R::throttle_ms(&response)) {
            let until = Instant::now() + Duration::from_millis(throttle);
            self.muted_until = self.muted_until.max(Some(until));
        }
        Ok(response)
    }

    /// For how long the broker still reads no request: it throttles the client (KIP-219).
    pub(crate) fn muted_for(&self) -> Duration {
        let until = self.muted_until;
        until.map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        })
    }

    fn wait_unmuted(&self, deadline: Deadline) -> Result<(), Error> {
        let pause = self.muted_for();
        if pause.is_zero() {
            return Ok(());
        }
        let until = deadline.earlier_of(Deadline::after(pause));
        // Readable early if the connection ends, or if more answers are in flight.
        crate::wait::readable(&[self.transport.as_fd()], until);
        match deadline.is_past() {
            true => Err(Error::timeout(format!(
                "kafka broker {}, which throttles this client",
                self.address
            ))),
            false => Ok(()),
        }
    }

    /// Whether the next request logs in first, if nothing is in flight then. A caller that always
    /// keeps requests in flight should wait for all responses once this is true.
    pub fn must_log_in(&self) -> bool {
        self.log_in_at
            .is_some_and(|moment| moment <= Instant::now())
    }

    /// Whether the connection can still be used, as far as is known without a request: nothing
    /// failed on it, and the broker has neither closed it nor sent unexpected bytes. Does not wait.
    ///
    /// Brokers close connections after some idle minutes. A check before a request prevents a
    /// request of unknown outcome.
    pub fn is_usable(&mut self) -> bool {
        if self.poison.is_some() || !self.in_flight.is_empty() {
            return self.poison.is_none();
        }
        if !self.transport.is_silent() || !self.received.is_empty() {
            self.poison_lost("closed while idle".to_owned());
        }
        self.poison.is_none()
    }

    /// The connection's thread can be interrupted from now on.
    pub(crate) fn watched_by(&self, interrupts: &Interrupts) -> Result<(), Error> {
        interrupts.watch(&self.transport)
    }

    /// When the last request was sent or the last response received.
    pub fn last_used(&self) -> Instant {
        self.last_used
    }

    /// Sends ApiVersions. A broker that does not know the client's version of ApiVersions answers
    /// with code 35 in version 0; the client then repeats the request in version 0.
    fn negotiate(&mut self, deadline: Deadline) -> Result<(), Error> {
        let newest = ApiKey::ApiVersions.versions().max;
        let mut response = self.ask_versions(newest, deadline)?;
        if ErrorCode::from_code(response.error_code) == Some(ErrorCode::UnsupportedVersion) {
            response = self.ask_versions(0, deadline)?;
        }
        self.check(ApiKey::ApiVersions, response.error_code)?;
        self.versions = response
            .api_keys
            .iter()
            .map(|api| {
                let range = VersionRange {
                    min: api.min_version,
                    max: api.max_version,
                };
                (api.api_key, range)
            })
            .collect();
        let mut features = response.finalized_features.iter();
        let feature = features.find(|it| &*it.name == "transaction.version");
        self.transaction_version = feature.map_or(0, |it| it.max_version_level);
        Ok(())
    }

    /// Whether a batch adds its partition to its producer's transaction, and each transaction has an
    /// epoch of its own (KIP-890, `transaction.version` 2).
    pub(crate) fn has_implicit_transactions(&self) -> bool {
        self.transaction_version >= 2
    }

    /// Sends SaslHandshake, then SaslAuthenticate as many times as the mechanism needs.
    fn log_in(&mut self, sasl: &Sasl, deadline: Deadline) -> Result<(), Error> {
        let mechanism = sasl.mechanism();
        let request =
            SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism));
        let answer = self.exchange(&request, deadline)?;
        match ErrorCode::from_code(answer.error_code) {
            None => {}
            Some(ErrorCode::UnsupportedSaslMechanism) => {
                let offered: Vec<&str> = answer.mechanisms.iter().map(|one| &**one).collect();
                let offered = offered.join(", ");
                let reason = format!("it offers the mechanisms {offered}, not {mechanism}");
                return Err(self.poison_login(reason));
            }
            Some(ErrorCode::IllegalSaslState) => {
                let reason = "it takes no login here; use the security protocol of this listener";
                return Err(self.poison_login(reason.to_owned()));
            }
            Some(code) => return Err(self.poison_login(code.to_string())),
        }
        let mut lifetime = Duration::ZERO;
        let outcome = sasl::log_in(sasl, |message| {
            let request = SaslAuthenticateRequest::default().with_auth_bytes(message.into());
            let answer = self.exchange(&request, deadline)?;
            if let Some(code) = ErrorCode::from_code(answer.error_code) {
                let reason = answer.error_message.as_deref();
                let reason = reason.map_or_else(|| code.to_string(), str::to_owned);
                return Err(self.poison_login(reason));
            }
            lifetime = Duration::from_millis(answer.session_lifetime_ms.max(0).unsigned_abs());
            Ok(answer.auth_bytes)
        });
        match outcome {
            Ok(()) => {}
            Err(Failure::Asking(error)) => return Err(error),
            Err(Failure::Distrust(reason)) => return Err(self.poison_login(reason)),
        }
        // Before the session ends, with jitter, as the Java client does.
        let share = 0.85 + 0.1 * unit_random();
        self.log_in_at = (!lifetime.is_zero()).then(|| Instant::now() + lifetime.mul_f64(share));
        Ok(())
    }

    /// As [`Connection::call`], without the check for a new login.
    fn exchange<R: Request>(
        &mut self,
        request: &R,
        deadline: Deadline,
    ) -> Result<R::Response, Error> {
        let version = self.version_of(R::API)?;
        let sent = self.send_as(request, version, deadline)?;
        self.receive(sent, deadline)
    }

    fn ask_versions(
        &mut self,
        version: i16,
        deadline: Deadline,
    ) -> Result<ApiVersionsResponse, Error> {
        let mut request = ApiVersionsRequest::default();
        if version >= 3 {
            request.client_software_name = StrBytes::from_static_str("tbd-kafka");
            request.client_software_version = StrBytes::from_static_str(env!("CARGO_PKG_VERSION"));
        }
        let sent = self.send_as(&request, version, deadline)?;
        let mut frame = self.receive_frame(&sent, deadline)?;
        // The code is the first field in every version. A refusal of the version always comes in
        // version 0.
        let code = frame
            .get(4..6)
            .map(|code| i16::from_be_bytes([code[0], code[1]]));
        if code == Some(ErrorCode::UnsupportedVersion.code()) && version > 0 {
            frame.advance(4);
            let mut refusal = ApiVersionsResponse::default();
            refusal.error_code = ErrorCode::UnsupportedVersion.code();
            return Ok(refusal);
        }
        wire::decode_response::<ApiVersionsRequest>(frame, version)
            .map_err(|reason| self.poison_protocol(format!("ApiVersions: {reason}")))
    }

    fn send_as<R: Request>(
        &mut self,
        request: &R,
        version: i16,
        deadline: Deadline,
    ) -> Result<Sent<R>, Error> {
        self.check_poison()?;
        self.wait_unmuted(deadline)?;
        let api = R::API;
        let refuse = |reason: String| Error::Encode { api, reason };
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            return Err(refuse(format!("{IN_FLIGHT_MAX} requests are in flight")));
        }
        let correlation_id = self.next_correlation_id;
        self.written.clear();
        wire::encode_request(
            &mut self.written,
            request,
            version,
            correlation_id,
            &self.client_id,
        )
        .map_err(refuse)?;
        self.next_correlation_id = self.next_correlation_id.wrapping_add(1);
        self.write_all(deadline)?;
        self.in_flight.push(correlation_id, api);
        self.last_used = Instant::now();
        Ok(Sent {
            correlation_id,
            version,
            request: PhantomData,
        })
    }

    fn write_all(&mut self, deadline: Deadline) -> Result<(), Error> {
        self.transport
            .write_all(&self.written, deadline)
            .map_err(|error| self.io_error(&error, "to take a request"))
    }

    /// The next frame, without its length, after a check that it is the response to `sent`.
    fn receive_frame<R: Request>(
        &mut self,
        sent: &Sent<R>,
        deadline: Deadline,
    ) -> Result<Bytes, Error> {
        self.check_poison()?;
        if self.in_flight.next() != Some(sent.correlation_id) {
            return Err(self.poison_protocol("answers were taken out of order".to_owned()));
        }
        let api = R::API;
        self.receive_length(deadline)?;
        // The type and major version of a TLS record; as a length they would mean 350 MB.
        if !self.transport.is_secure() && matches!(self.received[..2], [0x15 | 0x16, 3]) {
            let reason = "it speaks TLS here; use the security protocol of this listener";
            return Err(self.poisoned(Error::Tls {
                address: self.address.clone(),
                reason: reason.to_owned(),
            }));
        }
        let length = (&self.received[..]).get_i32();
        self.received.drain(..LENGTH_BYTES);
        let length = usize::try_from(length)
            .ok()
            .filter(|length| (4..=wire::frame_bytes_max(api)).contains(length))
            .ok_or_else(|| {
                self.poison_protocol(format!("a frame of {length} bytes for {api:?}"))
            })?;
        let frame = self.receive_rest(length, deadline)?;
        self.in_flight.answered();
        if wire::correlation_id(&frame) != Some(sent.correlation_id) {
            return Err(self.poison_protocol("an answer to another request".to_owned()));
        }
        self.last_used = Instant::now();
        Ok(frame)
    }

    /// Reads until the length of the next frame is there.
    fn receive_length(&mut self, deadline: Deadline) -> Result<(), Error> {
        while self.received.len() < LENGTH_BYTES {
            self.received.reserve(READ_AHEAD_BYTES);
            let read = self.transport.read(&mut self.received, deadline);
            self.check_read(read)?;
        }
        Ok(())
    }

    /// Takes the frame of `length` bytes whose length was taken before.
    fn receive_rest(&mut self, length: usize, deadline: Deadline) -> Result<Bytes, Error> {
        let mut frame = self.spares.take(length);
        // What is free now is not needed: the next answer is small, or in use for longer.
        self.spares.trim();
        let here = self.received.len().min(length);
        frame.reserve_exact(here);
        frame.extend_from_slice(&self.received[..here]);
        self.received.drain(..here);
        while frame.len() < length {
            let step = frame.len().max(READ_BYTES_FIRST);
            frame.reserve_exact(step.min(length - frame.len()));
            let read = self.transport.read(&mut frame, deadline);
            self.check_read(read)?;
        }
        // An earlier frame's memory may have room for more than this frame.
        self.received.extend_from_slice(&frame[length..]);
        frame.truncate(length);
        let frame = Bytes::from(frame);
        self.spares.keep(&frame);
        Ok(frame)
    }

    fn check_read(&mut self, read: std::io::Result<usize>) -> Result<(), Error> {
        match read {
            Ok(0) => Err(self.poison_lost("closed by the broker".to_owned())),
            Ok(_) => Ok(()),
            Err(error) => Err(self.io_error(&error, "to answer")),
        }
    }

    fn io_error(&mut self, error: &io::Error, what: &str) -> Error {
        if error.kind() == ErrorKind::TimedOut {
            let what = format!("kafka broker {} {what}", self.address);
            return self.poisoned(Error::timeout(what));
        }
        match tls_error(error) {
            // The broker says why it ends the session; for example, it wants a client certificate.
            #[cfg(feature = "tls")]
            Some(alert @ TlsError::AlertReceived(_)) => {
                self.poisoned(tls_failure(&self.address, alert))
            }
            Some(other) => self.poison_protocol(other.to_string()),
            None => self.poison_lost(error.to_string()),
        }
    }

    fn check_poison(&self) -> Result<(), Error> {
        self.poison.clone().map_or(Ok(()), Err)
    }

    fn poison_lost(&mut self, mut reason: String) -> Error {
        if !self.is_proven {
            // Brokers close a connection whose protocol is not the listener's.
            let protocol = self.security.protocol();
            reason.push_str(&format!(
                " before it answered any request; perhaps its listener is not for {protocol}"
            ));
        }
        let address = self.address.clone();
        self.poisoned(Error::ConnectionLost { address, reason })
    }

    fn poison_login(&mut self, reason: String) -> Error {
        let address = self.address.clone();
        self.poisoned(Error::Authentication { address, reason })
    }

    fn poison_protocol(&mut self, reason: String) -> Error {
        let address = self.address.clone();
        self.poisoned(Error::Protocol { address, reason })
    }

    /// Stores the first failure. Shuts the socket down at once, so that the broker need not wait
    /// until the owner drops the connection.
    fn poisoned(&mut self, error: Error) -> Error {
        self.transport.shutdown();
        self.poison.get_or_insert(error).clone()
    }
}

fn unreachable(address: &str, error: &io::Error) -> Error {
    Error::Unreachable {
        address: address.to_owned(),
        reason: error.to_string(),
    }
}

/// The TLS session's error inside an I/O error.
fn tls_error(error: &io::Error) -> Option<&TlsError> {
    error.get_ref()?.downcast_ref()
}

/// The error of a failed TLS handshake.
#[cfg(feature = "tls")]
fn handshake_failure(address: &str, error: &io::Error) -> Error {
    if let Some(error) = tls_error(error) {
        return tls_failure(address, error);
    }
    let address = address.to_owned();
    match error.kind() {
        ErrorKind::TimedOut => Error::timeout(format!(
            "kafka broker {address} to answer the TLS handshake"
        )),
        ErrorKind::InvalidInput => Error::Tls {
            address,
            reason: error.to_string(),
        },
        // A broker that is stopping does this too.
        _ => Error::ConnectionLost {
            address,
            reason: format!(
                "it ended the TLS handshake ({error}); perhaps its listener does not speak TLS"
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kafka_protocol::messages::api_versions_response::ApiVersion;
    use kafka_protocol::messages::{MetadataRequest, MetadataResponse};

    use super::*;
    use crate::fake_broker::{FakeBroker, Incoming, Reply, framed, newest};

    /// A broker that negotiates well and answers everything else with `reply`.
    fn broker(reply: impl Fn(&Incoming) -> Reply + Send + Sync + 'static) -> FakeBroker {
        FakeBroker::start(move |incoming, _| match incoming.api {
            ApiKey::ApiVersions => incoming.answer(&incoming.versions()),
            _ => reply(incoming),
        })
    }

    fn in_ms(ms: u64) -> Deadline {
        Deadline::after(Duration::from_millis(ms))
    }

    fn connect(broker: &FakeBroker) -> Connection {
        Connection::open(&broker.address(), &ClientConfig::default(), in_ms(5000)).unwrap()
    }

    fn ask(connection: &mut Connection, deadline: Deadline) -> Result<MetadataResponse, Error> {
        connection.call(&MetadataRequest::default(), deadline)
    }

    /// Sends one more request and expects the first error again.
    fn assert_poisoned(connection: &mut Connection, first: &Error) {
        let again = ask(connection, in_ms(1000)).unwrap_err();
        assert_eq!(again.to_string(), first.to_string());
        assert!(!connection.is_usable());
    }

    #[test]
    fn versions_are_agreed_on_and_answers_come_in_order() {
        let broker = broker(|incoming| {
            assert_eq!(incoming.version, newest::<MetadataRequest>());
            let answer = MetadataResponse::default();
            incoming.answer(&answer.with_throttle_time_ms(incoming.correlation_id))
        });
        let mut connection = connect(&broker);
        let request = MetadataRequest::default();
        let first = connection.send(&request, in_ms(1000)).unwrap();
        let second = connection.send(&request, in_ms(1000)).unwrap();
        let first = connection.receive(first, in_ms(1000)).unwrap();
        let second = connection.receive(second, in_ms(1000)).unwrap();
        assert_eq!(first.throttle_time_ms + 1, second.throttle_time_ms);
        assert!(connection.is_usable());
    }

    #[test]
    fn a_broker_that_does_not_know_our_negotiation_is_asked_in_the_oldest_form() {
        let broker = FakeBroker::start(|incoming, _| {
            assert_eq!(incoming.api, ApiKey::ApiVersions);
            if incoming.version > 0 {
                let refusal = ApiVersionsResponse::default()
                    .with_error_code(ErrorCode::UnsupportedVersion.code());
                return Reply::Bytes(incoming.frame_as(&refusal, 0, incoming.correlation_id));
            }
            let old = ApiVersion::default()
                .with_api_key(ApiKey::Produce.number())
                .with_min_version(0)
                .with_max_version(7);
            incoming.answer(&ApiVersionsResponse::default().with_api_keys(vec![old]))
        });
        let mut connection = connect(&broker);
        assert_eq!(connection.version_of(ApiKey::Produce).unwrap(), 7);
        let error = ask(&mut connection, in_ms(1000)).unwrap_err();
        assert!(matches!(error, Error::UnsupportedVersion { .. }), "{error}");
        assert!(connection.is_usable(), "nothing was sent");
    }

    #[test]
    fn a_throttled_client_waits_before_its_next_request() {
        let broker = broker(|incoming| {
            incoming.answer(&MetadataResponse::default().with_throttle_time_ms(300))
        });
        let mut connection = connect(&broker);
        ask(&mut connection, in_ms(5000)).unwrap();
        let started = Instant::now();
        let error = ask(&mut connection, in_ms(50)).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert!(connection.is_usable(), "nothing was sent");
        ask(&mut connection, in_ms(5000)).unwrap();
        assert!(started.elapsed() >= Duration::from_millis(290));
    }

    #[test]
    fn a_hanging_broker_costs_no_more_than_the_deadline() {
        let broker = broker(|_| Reply::Silence);
        let mut connection = connect(&broker);
        let started = Instant::now();
        let error = ask(&mut connection, in_ms(200)).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert!(started.elapsed() >= Duration::from_millis(200));
        assert!(started.elapsed() < Duration::from_secs(2));
        assert_poisoned(&mut connection, &error);
    }

    #[test]
    fn a_dripping_broker_does_not_outlive_the_deadline() {
        let broker = broker(|incoming| {
            let frame = incoming.frame(&MetadataResponse::default());
            Reply::Drip(frame, Duration::from_millis(60))
        });
        let mut connection = connect(&broker);
        let started = Instant::now();
        let error = ask(&mut connection, in_ms(300)).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert!(started.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn a_broker_that_hangs_in_the_negotiation_does_not_hold_us() {
        let broker = FakeBroker::start(|_, _| Reply::Silence);
        let config = ClientConfig::default();
        let error = Connection::open(&broker.address(), &config, in_ms(200)).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }

    #[test]
    fn half_a_frame_and_a_close_is_a_lost_connection() {
        let broker = broker(|incoming| {
            let frame = incoming.frame(&MetadataResponse::default());
            Reply::BytesThenClose(frame[..frame.len() / 2].to_vec())
        });
        let mut connection = connect(&broker);
        let error = ask(&mut connection, in_ms(2000)).unwrap_err();
        assert!(matches!(error, Error::ConnectionLost { .. }), "{error}");
        assert!(error.is_transient());
        assert_poisoned(&mut connection, &error);
    }

    #[test]
    fn a_close_instead_of_an_answer_is_a_lost_connection() {
        let broker = broker(|_| Reply::BytesThenClose(Vec::new()));
        let mut connection = connect(&broker);
        let error = ask(&mut connection, in_ms(2000)).unwrap_err();
        assert!(matches!(error, Error::ConnectionLost { .. }), "{error}");
    }

    #[test]
    fn an_answer_to_another_request_is_refused() {
        let broker = broker(|incoming| {
            let other = incoming.correlation_id + 1;
            let answer = MetadataResponse::default();
            Reply::Bytes(incoming.frame_as(&answer, incoming.version, other))
        });
        let mut connection = connect(&broker);
        let error = ask(&mut connection, in_ms(2000)).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
        assert_poisoned(&mut connection, &error);
    }

    #[test]
    fn hostile_bytes_are_an_error() {
        let hostile: [&[u8]; 5] = [
            // Lengths that no response has.
            &[0xff, 0xff, 0xff, 0xff],
            &[0x7f, 0xff, 0xff, 0xff],
            &[0, 0, 0, 0],
            // Another protocol.
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            // The right correlation id, then invalid bytes.
            &[
                0, 0, 0, 12, 0, 0, 0, 1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            ],
        ];
        for bytes in hostile {
            let broker = broker(|_| Reply::Bytes(bytes.to_vec()));
            let error = ask(&mut connect(&broker), in_ms(2000)).unwrap_err();
            assert!(matches!(error, Error::Protocol { .. }), "{error}");
        }
    }

    #[test]
    fn a_claimed_length_alone_takes_no_memory_and_a_large_frame_arrives_whole() {
        let name = "x".repeat(2_000_000);
        let broker = broker(move |incoming| {
            if incoming.decode::<MetadataRequest>().topics.is_none() {
                // The length is 16 MiB, and four bytes come.
                return Reply::BytesThenClose(vec![1, 0, 0, 0, 0, 0, 0, 1]);
            }
            let name = Some(StrBytes::from_string(name.clone()));
            incoming.answer(&MetadataResponse::default().with_cluster_id(name))
        });
        let mut connection = connect(&broker);
        let some = MetadataRequest::default().with_topics(Some(Vec::new()));
        let answer = connection.call(&some, in_ms(5000)).unwrap();
        assert_eq!(answer.cluster_id.unwrap().len(), 2_000_000);
        let error = connection
            .call(&some.with_topics(None), in_ms(2000))
            .unwrap_err();
        assert!(matches!(error, Error::ConnectionLost { .. }), "{error}");
    }

    #[test]
    fn an_unasked_for_answer_makes_an_idle_connection_unusable() {
        let broker = broker(|incoming| {
            let mut frames = incoming.frame(&MetadataResponse::default());
            frames.extend_from_slice(&framed(&[0, 0, 0, 9]));
            Reply::Bytes(frames)
        });
        let mut connection = connect(&broker);
        ask(&mut connection, in_ms(2000)).unwrap();
        // The rest may not have arrived yet.
        let until = in_ms(2000);
        while connection.is_usable() && !until.is_past() {}
        assert!(!connection.is_usable());
    }

    #[test]
    fn another_thread_can_break_off_a_wait() {
        let broker = broker(|_| Reply::Silence);
        let mut connection = connect(&broker);
        let interrupts = Interrupts::default();
        connection.watched_by(&interrupts).unwrap();
        let started = Instant::now();
        let request = MetadataRequest::default();
        let sent = connection.send(&request, in_ms(1000)).unwrap();
        let error = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| connection.receive(sent, in_ms(20_000)).unwrap_err());
            interrupts.interrupt();
            waiting.join().unwrap()
        });
        assert!(matches!(error, Error::ConnectionLost { .. }), "{error}");
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn an_address_that_hangs_does_not_hide_the_next_one_of_its_name() {
        let mute = FakeBroker::start(|_, _| Reply::Silence);
        let closing = FakeBroker::start(|_, _| Reply::BytesThenClose(Vec::new()));
        let good = broker(|incoming| incoming.answer(&MetadataResponse::default()));
        let addresses = [&mute, &closing, &good].map(|one| one.address().parse().unwrap());
        let config = ClientConfig::default();
        let open =
            |addresses| Connection::open_one_of(addresses, None, "k:1", &config, in_ms(2000));
        ask(&mut open(&addresses).unwrap(), in_ms(2000)).unwrap();
        let error = open(&addresses[..1]).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        let error = open(&[]).unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    }

    #[test]
    fn a_port_where_nobody_listens_is_unreachable() {
        let address = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().to_string()
        };
        let config = ClientConfig::default();
        let error = Connection::open(&address, &config, in_ms(2000)).unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        let error = Connection::open("no-port", &config, in_ms(2000)).unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    }
}
