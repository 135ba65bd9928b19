//! Sockets that tiny_http opened and does not hand out, found by their addresses among the
//! process's descriptors (`/proc/self/fd`).

use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::RawFd;

use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};

/// An internet socket of the process.
pub(crate) struct Found {
    /// The descriptor's number. It is valid only while its owner keeps it open.
    pub(crate) fd: RawFd,
    /// The local address.
    pub(crate) local: SocketAddr,
    /// The peer's address, while there is one.
    pub(crate) peer: Option<SocketAddr>,
}

/// The process's internet sockets. Takes about a millisecond per thousand descriptors; does not
/// block.
pub(crate) fn all() -> io::Result<impl Iterator<Item = Found>> {
    let descriptors = std::fs::read_dir("/proc/self/fd")?;
    Ok(descriptors
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(look_at))
}

/// The lowest descriptor number of a connected socket whose addresses (local, peer) satisfy `wanted`.
pub(crate) fn connected(mut wanted: impl FnMut(SocketAddr, SocketAddr) -> bool) -> Option<RawFd> {
    all()
        .ok()?
        .filter(|found| found.peer.is_some_and(|peer| wanted(found.local, peer)))
        .map(|found| found.fd)
        .min()
}

/// The socket that `fd` names, if it is an internet socket.
pub(crate) fn look_at(fd: RawFd) -> Option<Found> {
    Some(Found {
        fd,
        local: to_std(&getsockname::<SockaddrStorage>(fd).ok()?)?,
        peer: getpeername::<SockaddrStorage>(fd)
            .ok()
            .and_then(|peer| to_std(&peer)),
    })
}

fn to_std(addr: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = addr.as_sockaddr_in() {
        return Some(SocketAddrV4::from(*v4).into());
    }
    addr.as_sockaddr_in6()
        .map(|v6| SocketAddrV6::from(*v6).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd as _;

    #[test]
    fn a_socket_is_found_by_its_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_accepted, address) = listener.accept().unwrap();
        let found = connected(|local, _| local == address);
        assert_eq!(found, Some(client.as_raw_fd()));
    }
}
