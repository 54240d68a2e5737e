//! A listener that holds a bounded number of connections.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// Clients that may be connected at once; more wait in the system's queue.
const CONNECTIONS_MAX: usize = 1024;

/// Accepts as long as there is room.
#[derive(Debug)]
pub(super) struct Limited {
    listener: TcpListener,
    room: Arc<Semaphore>,
}

impl Limited {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, room: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl Listener for Limited {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let permit = self.room.clone().acquire_owned().await.expect("nobody closes this semaphore");
        // The trait's own `accept` of a `TcpListener` waits and tries again when the process is out of descriptors.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // An answer is often one small write, which Nagle's algorithm would hold back. Failing costs only latency.
        let _ = stream.set_nodelay(true);
        (Connection { stream, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Where a client is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    /// On another machine than this device.
    pub(super) is_elsewhere: bool,
}

impl Connected<IncomingStream<'_, Limited>> for Client {
    fn connect_info(stream: IncomingStream<'_, Limited>) -> Self {
        let own = stream.io().stream.local_addr().map(|address| address.ip()).ok();
        Self { is_elsewhere: is_elsewhere(stream.remote_addr().ip(), own) }
    }
}

/// Whether an address is of another machine than the one that it has come to by the address `own`: the system connects
/// to an address of its own from the same one.
fn is_elsewhere(from: IpAddr, own: Option<IpAddr>) -> bool {
    let from = from.to_canonical();
    !from.is_loopback() && own.is_none_or(|own| own.to_canonical() != from)
}

/// A connection that gives its place back when it closes.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_elsewhere_unless_it_has_an_address_of_ours() {
        for (from, own, elsewhere) in [
            ("127.0.0.1", "127.0.0.1", false),
            ("127.0.0.2", "127.0.0.1", false),
            ("::ffff:127.0.0.1", "::", false),
            ("192.168.1.5", "192.168.1.5", false),
            ("::ffff:192.168.1.5", "192.168.1.5", false),
            ("192.168.1.6", "192.168.1.5", true),
            ("fe80::2", "fe80::1", true),
        ] {
            let (from, own) = (from.parse().unwrap(), own.parse().unwrap());
            assert_eq!(is_elsewhere(from, Some(own)), elsewhere, "{from} at {own}");
        }
    }
}
