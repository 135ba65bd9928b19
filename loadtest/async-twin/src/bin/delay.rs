//! TCP proxy that delays a server's answers by some milliseconds, as a long line would.
//!
//! usage: delay LISTEN-PORT SERVER-PORT MILLISECONDS     (all on 127.0.0.1; ends with SIGTERM)

use std::error::Error;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// One thread, to take as little CPU from the measured programs as possible.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<u64> = std::env::args()
        .skip(1)
        .map(|argument| argument.parse())
        .collect::<Result<_, _>>()?;
    let [listen, server, milliseconds] = arguments[..] else {
        return Err("usage: delay LISTEN-PORT SERVER-PORT MILLISECONDS".into());
    };
    let (listen, server) = (u16::try_from(listen)?, u16::try_from(server)?);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, listen)).await?;
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(async move {
            // A refused client sees its connection end, as it would without the proxy.
            if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await {
                pass(client, server, Duration::from_millis(milliseconds));
            }
        });
    }
}

fn pass(client: TcpStream, server: TcpStream, delay: Duration) {
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
    }
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    tokio::spawn(async move { copy(&mut from_client, &mut to_server).await });
    let (due, pieces) = mpsc::unbounded_channel();
    tokio::spawn(hold(from_server, due, delay));
    tokio::spawn(let_go(pieces, to_client));
}

/// Reads the server's bytes and notes when they are due.
async fn hold(
    mut server: OwnedReadHalf,
    due: mpsc::UnboundedSender<(Instant, Bytes)>,
    delay: Duration,
) {
    let mut buffer = BytesMut::with_capacity(65_536);
    while let Ok(1..) = server.read_buf(&mut buffer).await {
        if due
            .send((Instant::now() + delay, buffer.split().freeze()))
            .is_err()
        {
            return;
        }
        buffer.reserve(65_536);
    }
}

async fn let_go(mut pieces: mpsc::UnboundedReceiver<(Instant, Bytes)>, mut client: OwnedWriteHalf) {
    while let Some((due, piece)) = pieces.recv().await {
        sleep_until(due).await;
        if client.write_all(&piece).await.is_err() {
            return;
        }
    }
}
