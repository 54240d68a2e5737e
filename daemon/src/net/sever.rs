//! A socket that can be cut at once from outside: libp2p closes connections politely, which never ends when the
//! other side is frozen with full buffers.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures::{AsyncRead, AsyncWrite, task::AtomicWaker};

/// Cuts one connection; cloned to whoever may decide so.
#[derive(Debug, Clone, Default)]
pub(super) struct Sever(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    cut: AtomicBool,
    waker: AtomicWaker,
}

impl Sever {
    /// Makes every read and write of the socket fail from now on.
    pub(super) fn cut(&self) {
        self.0.cut.store(true, Ordering::Release);
        self.0.waker.wake();
    }

    fn check(&self, cx: &Context<'_>) -> io::Result<()> {
        self.0.waker.register(cx.waker());
        if self.0.cut.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

/// The socket under the multiplexer.
#[derive(Debug)]
pub(super) struct Severable<C> {
    socket: C,
    sever: Sever,
}

impl<C> Severable<C> {
    pub(super) fn new(socket: C, sever: Sever) -> Self {
        Self { socket, sever }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Severable<C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.sever.check(cx)?;
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Severable<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.sever.check(cx)?;
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sever.check(cx)?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sever.check(cx)?;
        Pin::new(&mut self.socket).poll_close(cx)
    }
}
