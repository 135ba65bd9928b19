//! Sockets of this process that a library opened and does not hand out.
//!
//! The HTTP library and the database driver hide their sockets, yet a wait on them must be ended.
//! So this crate finds a socket by its addresses among the process's descriptors (`/proc/self/fd`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{
    ControlMessage, MsgFlags, SockaddrStorage, getpeername, getsockname, sendmsg,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// An internet socket of the process.
pub struct Found {
    /// The descriptor's number. It is valid only while its owner keeps it open. A caller that
    /// cannot be sure of that takes a [`duplicate`] and checks again.
    pub fd: RawFd,
    /// The local address.
    pub local: SocketAddr,
    /// The peer's address, while there is one.
    pub peer: Option<SocketAddr>,
}

/// The process's internet sockets. Takes about a millisecond per thousand descriptors; does not
/// block.
pub fn all() -> io::Result<impl Iterator<Item = Found>> {
    let descriptors = std::fs::read_dir("/proc/self/fd")?;
    Ok(descriptors
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(look_at))
}

/// The descriptor numbers of connected sockets whose addresses (local, peer) satisfy `wanted`,
/// lowest first.
pub fn connected(mut wanted: impl FnMut(SocketAddr, SocketAddr) -> bool) -> io::Result<Vec<RawFd>> {
    let mut found: Vec<RawFd> = all()?
        .filter(|found| found.peer.is_some_and(|peer| wanted(found.local, peer)))
        .map(|found| found.fd)
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// The socket that `fd` names, if it is an internet socket.
pub fn look_at(fd: RawFd) -> Option<Found> {
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

/// A new descriptor for the file that `fd` names at this moment.
///
/// `dup` requires proof that the number stays open, which only its owner has. When the number is
/// sent through a Unix socket, the kernel looks it up and duplicates it in one step. If it was
/// closed, that is an error; a descriptor of another owner is never closed by mistake. Does not
/// block.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    let (sender, receiver) = UnixStream::pair()?;
    sendmsg::<()>(
        sender.as_raw_fd(),
        &[IoSlice::new(&[0])],
        &[ControlMessage::ScmRights(&[fd])],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        &receiver,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        // The kernel omits the descriptor when the process has reached its limit.
        .ok_or_else(|| io::Error::other("out of file descriptors"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_socket_is_found_by_its_addresses_and_a_duplicate_outlives_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut accepted, address) = listener.accept().unwrap();
        let found = connected(|local, _| local == address).unwrap();
        assert_eq!(found, [client.as_raw_fd()]);

        let mut duplicate = TcpStream::from(duplicate(found[0]).unwrap());
        drop(client);
        duplicate.write_all(b"still here").unwrap();
        drop(duplicate);
        let mut received = String::new();
        accepted.read_to_string(&mut received).unwrap();
        assert_eq!(received, "still here");
    }

    #[test]
    fn a_number_that_names_nothing_cannot_be_duplicated() {
        assert!(duplicate(RawFd::MAX).is_err());
        assert!(duplicate(-1).is_err());
    }
}
