//! A client's connection as HTTP is given it: who takes nothing of an answer is cut, and what is left of a request that
//! was answered early is taken from who still sends it.
//!
//! hyper closes the connection when an answer is out before its request has been read, and a socket that is closed with
//! unread bytes resets its connection: the client would meet the reset in its next write and never read the answer.
//!
//! HTTP/2 (`grpc::connection`) has its bytes pass through here, too, but not its bodies.

use std::{
    fmt,
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// What is left of a request is taken up to this size: a larger one costs more than to be sent again.
const LEFT_MAX: usize = 64 << 20;
/// As much of it at a time.
const SCRAP: usize = 16 << 10;

/// Whether bytes have come that belong to no request which was read to its end. Shared by the two that know: the socket
/// and the bodies of its requests.
#[derive(Debug, Clone, Default)]
pub(super) struct Unread(Arc<AtomicBool>);

impl Unread {
    fn set(&self, is_so: bool) {
        self.0.store(is_so, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Reads and writes as the stream does; see the module.
pub(super) struct Socket<S> {
    stream: S,
    /// A client that takes nothing for this long is cut.
    stall_max: Duration,
    /// Time to take what is left of a request, after the answer.
    linger_max: Duration,
    unread: Unread,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    lingering: Option<Lingering>,
}

impl<S> fmt::Debug for Socket<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("unread", &self.unread).finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub(super) fn new(stream: S, stall_max: Duration, linger_max: Duration, unread: Unread) -> Self {
        Self { stream, stall_max, linger_max, unread, stalled: None, lingering: None }
    }

    /// Passes a write's outcome on, and ends the wait of one that makes no progress.
    fn unless_stalled(
        &mut self,
        context: &mut Context<'_>,
        write: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if write.is_ready() {
            self.stalled = None;
            return write;
        }
        let limit = self.stall_max;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(timer.as_mut().poll(context));
        let text = format!("the client has taken nothing of its answer for {} s", limit.as_secs());
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = target.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, target);
        if target.filled().len() > before {
            this.unread.set(true);
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let write = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.unless_stalled(context, write)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let write = Pin::new(&mut this.stream).poll_write_vectored(context, pieces);
        this.unless_stalled(context, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    /// Closes our side, so that the client sees the end of the answer at once, and then takes what it still sends.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            if !this.unread.get() {
                return Poll::Ready(Ok(()));
            }
        }
        let limit = this.linger_max;
        let lingering = this.lingering.get_or_insert_with(|| Lingering::new(limit));
        lingering.poll_end(&mut this.stream, context).map(Ok)
    }
}

/// Takes and drops what comes after the answer, until the client closes, the time is up or it was enough.
struct Lingering {
    time: Pin<Box<Sleep>>,
    left: usize,
}

impl Lingering {
    fn new(limit: Duration) -> Self {
        Self { time: Box::pin(tokio::time::sleep(limit)), left: LEFT_MAX }
    }

    fn poll_end<S: AsyncRead + Unpin>(&mut self, stream: &mut S, context: &mut Context<'_>) -> Poll<()> {
        let mut space = [MaybeUninit::uninit(); SCRAP];
        while self.left > 0 && self.time.as_mut().poll(context).is_pending() {
            let mut scrap = ReadBuf::uninit(&mut space);
            let read = ready!(Pin::new(&mut *stream).poll_read(context, &mut scrap));
            let count = scrap.filled().len();
            if read.is_err() || count == 0 {
                break;
            }
            self.left = self.left.saturating_sub(count);
        }
        Poll::Ready(())
    }
}

/// A request's body, which tells its socket when it has been read to the end.
#[derive(Debug)]
pub(super) struct Watched {
    body: Incoming,
    unread: Unread,
}

impl Watched {
    pub(super) fn new(body: Incoming, unread: Unread) -> Self {
        unread.set(!body.is_end_stream());
        Self { body, unread }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        if frame.is_none() || this.body.is_end_stream() {
            this.unread.set(false);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
