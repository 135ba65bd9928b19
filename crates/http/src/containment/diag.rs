//! The kernel's byte counts of this server's connections (`sock_diag`, as `ss -ti` shows).
//!
//! The fault: tiny_http reads a request's head, and a short body, on its own threads and reports
//! nothing before it has all of it. A client that drips bytes or never ends its head stays
//! invisible.
//!
//! Skip this file if this suffices: it lists the established connections with the bytes that the
//! kernel received and the bytes that the process read.
//!
//! Layouts: `linux/inet_diag.h`, `linux/netlink.h`, `linux/tcp.h`.

use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_AND_DUMP: u16 = 0x301;
const NLMSG_DONE: u16 = 3;
const NLMSG_ERROR: u16 = 2;
const INET_DIAG_INFO: u16 = 2;
const IPPROTO_TCP: u8 = 6;
const TCP_ESTABLISHED: u32 = 1;
/// Length of `struct inet_diag_msg`, after which the attributes start.
const MESSAGE: usize = 72;
/// Where `struct tcp_info` has `tcpi_last_data_recv` (ms) and
/// `tcpi_bytes_received`; the latter exists since Linux 4.1.
const LAST_DATA_RECV: usize = 52;
const BYTES_RECEIVED: usize = 128;

/// How long the kernel may take for an answer. It normally answers at once.
const TIMEOUT: Duration = Duration::from_secs(1);

/// One established connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) peer: SocketAddr,
    /// Bytes received that the process has not read yet.
    pub(crate) unread: u64,
    /// Bytes that the process has read.
    pub(crate) consumed: u64,
    /// Time since the last byte arrived, exact to some 10 ms.
    pub(crate) silent: Duration,
}

/// A socket for querying the kernel.
pub(crate) struct Diag {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Diag {
    pub(crate) fn open() -> io::Result<Diag> {
        let socket = Socket::new(
            Domain::from(AF_NETLINK),
            Type::RAW,
            Some(Protocol::from(NETLINK_SOCK_DIAG)),
        )?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        Ok(Diag {
            socket,
            // The kernel packs its answer into pieces of 32 KiB at most.
            buffer: vec![0; 64 * 1024],
        })
    }

    /// The established connections of the local port `local.port()`.
    pub(crate) fn connections(&mut self, local: SocketAddr) -> io::Result<Vec<Seen>> {
        self.socket.send(&request(local))?;
        let mut seen = Vec::new();
        loop {
            let length = self.socket.read(&mut self.buffer)?;
            let mut messages = &self.buffer[..length];
            if messages.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            while let (Some(size), Some(kind)) = (u32_at(messages, 0), u16_at(messages, 4)) {
                let Some(body) = messages.get(16..size as usize) else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                match kind {
                    NLMSG_DONE => return Ok(seen),
                    NLMSG_ERROR => return Err(io::ErrorKind::Unsupported.into()),
                    SOCK_DIAG_BY_FAMILY => seen.extend(parse(body)),
                    _ => {}
                }
                messages = messages
                    .get((size as usize).next_multiple_of(4)..)
                    .unwrap_or_default();
            }
        }
    }
}

/// `nlmsghdr` and `inet_diag_req_v2`: all established TCP connections of a port.
fn request(local: SocketAddr) -> Vec<u8> {
    let family: u8 = if local.is_ipv4() { 2 } else { 10 };
    let mut bytes = Vec::with_capacity(72);
    bytes.extend_from_slice(&72u32.to_ne_bytes());
    bytes.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend_from_slice(&NLM_F_REQUEST_AND_DUMP.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[family, IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0]);
    bytes.extend_from_slice(&(1u32 << TCP_ESTABLISHED).to_ne_bytes());
    bytes.extend_from_slice(&local.port().to_be_bytes());
    bytes.resize(72, 0);
    bytes
}

/// Reads `inet_diag_msg` and its `tcp_info`.
fn parse(message: &[u8]) -> Option<Seen> {
    let port = u16::from_be_bytes(message.get(6..8)?.try_into().ok()?);
    let address = message.get(24..40)?;
    let ip: IpAddr = if message[0] == 2 {
        Ipv4Addr::from(<[u8; 4]>::try_from(&address[..4]).ok()?).into()
    } else {
        Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into()
    };
    let unread = u64::from(u32_at(message, 56)?);
    let mut attributes = message.get(MESSAGE..)?;
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(4..length)?;
        if u16_at(attributes, 2)? == INET_DIAG_INFO {
            let received = value.get(BYTES_RECEIVED..BYTES_RECEIVED + 8)?;
            let received = u64::from_ne_bytes(received.try_into().ok()?);
            return Some(Seen {
                peer: SocketAddr::new(ip, port),
                unread,
                consumed: received.saturating_sub(unread),
                silent: Duration::from_millis(u32_at(value, LAST_DATA_RECV)?.into()),
            });
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_kernel_tells_what_was_received_and_what_was_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(local).unwrap();
        let (mut accepted, peer) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        accepted.read_exact(&mut [0; 2]).unwrap();
        let seen = Diag::open().unwrap().connections(local).unwrap();
        assert_eq!(seen.len(), 1);
        assert_eq!(
            (seen[0].peer, seen[0].unread, seen[0].consumed),
            (peer, 3, 2)
        );
        assert!(seen[0].silent < Duration::from_secs(5));
    }

    #[test]
    fn broken_messages_are_not_read_beyond_their_end() {
        for length in 0..MESSAGE + 8 {
            assert!(parse(&vec![2; length]).is_none());
        }
    }
}
