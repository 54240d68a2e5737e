//! HTTP/2 on one connection. Whoever does not answer pings, asks for nothing for long, or takes nothing of an answer loses
//! its place.

use std::{collections::BTreeMap, convert::Infallible, future::Future, sync::Arc, time::Duration};

use axum::response::Response;
use hyper::{Request, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::api::{
    listener::{Patience, drive},
    socket::{Socket, Unread},
};

/// Calls that may be open at once on a connection.
const STREAMS_MAX: u32 = 128;
/// Bytes that a client may send ahead of what has been read: for one call, and for all of a connection. Nobody else
/// counts them, and a fast network needs no more.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of a call's head.
const HEAD_MAX: u32 = 16 << 10;
/// A client that is silent is sent a ping, and is gone when it does not answer it.
const PING_AFTER: Duration = Duration::from_secs(60);
const PONG_WITHIN: Duration = Duration::from_secs(20);

/// Answers the requests of a connection. From `ending` on, or when there has been none for as long as a client may be
/// idle, the client is told to go.
pub(super) async fn serve<F: Future<Output = Response> + Send + 'static>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    patience: Patience,
    ending: CancellationToken,
    answer: impl Fn(Request<Incoming>, Open) -> F + Send + 'static,
) {
    let Patience { idle_max, stall_max, linger_max } = patience;
    let (calls, open) = watch::channel(Calls::new());
    let calls = Arc::new(calls);
    let service = service_fn(move |request| {
        let answer = answer(request, Open::new(&calls));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    // A client may always have something to say on HTTP/2, such as that it has room: nobody tells this socket that all has
    // been read, so that it takes what comes behind the end.
    let socket = Socket::new(stream, stall_max, linger_max, Unread::default());
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD_MAX)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PONG_WITHIN)
        .serve_connection(TokioIo::new(socket), service);
    let told_to_go = {
        let idle = is_idle(open.clone(), idle_max);
        async move {
            tokio::select! {
                () = ending.cancelled() => {}
                () = idle => {}
            }
        }
    };
    tokio::select! {
        result = drive(connection, told_to_go) => if let Err(error) = result {
            tracing::trace!(%error, "a connection to the gRPC API ended");
        },
        // It has not gone, or has never said a word of HTTP/2.
        () = is_idle(open.clone(), idle_max + idle_max / 8) => {}
        // The socket sees only who reads nothing at all.
        () = is_stalled(open, stall_max) => {
            tracing::trace!("a client of the gRPC API has taken nothing of its answer");
        }
    }
}

/// The requests of a connection that are not answered, or whose answer is not sent. Those that are being answered have
/// the time at which the client last took some of the answer.
type Calls = BTreeMap<u64, Option<Instant>>;

/// One of them: its connection is not idle.
#[derive(Debug)]
pub(super) struct Open {
    calls: Arc<watch::Sender<Calls>>,
    number: u64,
}

impl Open {
    fn new(calls: &Arc<watch::Sender<Calls>>) -> Self {
        let mut number = 0;
        calls.send_modify(|calls| {
            number = calls.last_key_value().map_or(0, |(last, _)| last + 1);
            calls.insert(number, None);
        });
        Self { calls: calls.clone(), number }
    }

    /// The answer is there, or the client has taken some of it.
    pub(super) fn taken(&self) {
        self.calls.send_if_modified(|calls| {
            calls.insert(self.number, Some(Instant::now()));
            // Nobody waits for that.
            false
        });
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.calls.send_modify(|calls| {
            calls.remove(&self.number);
        });
    }
}

/// Ends when no request has been open for `limit`.
async fn is_idle(mut open: watch::Receiver<Calls>, limit: Duration) {
    loop {
        if open.wait_for(Calls::is_empty).await.is_err() {
            return;
        }
        match tokio::time::timeout(limit, open.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// Ends when the client has taken nothing of an answer for `limit`: it holds the answer's memory.
async fn is_stalled(open: watch::Receiver<Calls>, limit: Duration) {
    loop {
        let now = Instant::now();
        let oldest = open.borrow().values().flatten().min().copied();
        let end = oldest.unwrap_or(now) + limit;
        if end <= now {
            return;
        }
        tokio::time::sleep_until(end).await;
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use hyper::client::conn::http2 as client;
    use tokio::{io::AsyncReadExt, sync::Semaphore, time::timeout};

    use super::{super::call, *};
    use crate::api::body::Pieces;

    const LIMIT: Duration = Duration::from_secs(20);
    const IDLE: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(200);
    const PATIENCE: Patience = Patience { idle_max: LONG, stall_max: LONG, linger_max: LIMIT };
    const IMPATIENCE: Patience = Patience { idle_max: IDLE, ..PATIENCE };

    /// Answers after much more than [`IDLE`].
    async fn late(_: Request<Incoming>, open: Open) -> Response {
        tokio::time::sleep(3 * IDLE).await;
        drop(open);
        Response::new(Body::from("late"))
    }

    #[tokio::test]
    async fn who_never_speaks_is_cut() {
        let (mut mine, theirs) = tokio::io::duplex(1 << 16);
        let serving = tokio::spawn(serve(theirs, IMPATIENCE, CancellationToken::new(), late));
        timeout(LIMIT, serving).await.unwrap().unwrap();
        let mut got = Vec::new();
        timeout(LIMIT, mine.read_to_end(&mut got)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_asks_for_nothing_is_cut_and_who_waits_for_an_answer_is_not() {
        for calls in [0, 1, 2] {
            let (mine, theirs) = tokio::io::duplex(1 << 16);
            let serving = tokio::spawn(serve(theirs, IMPATIENCE, CancellationToken::new(), late));
            let (sender, connection) =
                client::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(mine)).await.unwrap();
            let client = tokio::spawn(connection);
            let ask = || sender.clone().send_request(Request::get("http://a/").body(Body::empty()).unwrap());
            let answers: Vec<_> = (0..calls).map(|_| ask()).collect();
            for answer in futures::future::join_all(answers).await {
                let body = Body::new(answer.unwrap().into_body());
                assert_eq!(axum::body::to_bytes(body, 100).await.unwrap(), "late");
            }
            timeout(LIMIT, serving).await.unwrap().unwrap();
            let _ = timeout(LIMIT, client).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn open_calls_are_answered_when_all_ends() {
        let (mine, theirs) = tokio::io::duplex(1 << 16);
        let ending = CancellationToken::new();
        let serving = tokio::spawn(serve(theirs, PATIENCE, ending.clone(), late));
        let (mut sender, connection) =
            client::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(mine)).await.unwrap();
        let client = tokio::spawn(connection);
        let request = Request::get("http://a/").body(Body::empty()).unwrap();
        let answer = sender.send_request(request);
        let end = async {
            tokio::time::sleep(IDLE).await;
            ending.cancel();
        };
        let (answer, ()) = futures::future::join(timeout(LIMIT, answer), end).await;
        let body = Body::new(answer.unwrap().unwrap().into_body());
        assert_eq!(axum::body::to_bytes(body, 100).await.unwrap(), "late");
        timeout(LIMIT, serving).await.unwrap().unwrap();
        let _ = timeout(LIMIT, client).await.unwrap().unwrap();
    }

    const LARGE: usize = 1 << 20;

    async fn large(_: Request<Incoming>, open: Open) -> Response {
        let mut message = Pieces::default();
        message.push(vec![b'x'; LARGE].into());
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        call::answer(message, open, place)
    }

    #[tokio::test]
    async fn only_who_takes_nothing_of_an_answer_is_cut() {
        let stall = Patience { stall_max: IDLE, ..PATIENCE };
        // Who reads nothing at all.
        let (_mine, theirs) = tokio::io::duplex(16);
        let serving = tokio::spawn(serve(theirs, stall, CancellationToken::new(), large));
        timeout(LIMIT, serving).await.unwrap().unwrap();
        // Who reads, but gives an answer less room than it takes, or more than all but its last piece takes.
        for (room, patience, reads) in
            [(1 << 10, stall, false), (LARGE as u32 - 1000, stall, false), (1 << 10, PATIENCE, true)]
        {
            let (mine, theirs) = tokio::io::duplex(1 << 16);
            let serving = tokio::spawn(serve(theirs, patience, CancellationToken::new(), large));
            let mut builder = client::Builder::new(TokioExecutor::new());
            let builder = builder.initial_stream_window_size(room).initial_connection_window_size(1 << 22);
            let (mut sender, connection) = builder.handshake::<_, Body>(TokioIo::new(mine)).await.unwrap();
            let client = tokio::spawn(connection);
            let request = Request::get("http://a/").body(Body::empty()).unwrap();
            let answer = timeout(LIMIT, sender.send_request(request)).await.unwrap().unwrap();
            if reads {
                let body = timeout(LIMIT, axum::body::to_bytes(Body::new(answer.into_body()), 2 * LARGE));
                assert_eq!(body.await.unwrap().unwrap().len(), 5 + LARGE);
                drop(sender);
                timeout(LIMIT, serving).await.unwrap().unwrap();
            } else {
                timeout(LIMIT, serving).await.unwrap().unwrap();
                drop(answer);
            }
            let _ = timeout(LIMIT, client).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn the_time_since_something_was_taken_counts() {
        let (calls, open) = watch::channel(Calls::new());
        let calls = Arc::new(calls);
        let (waiting, call) = (Open::new(&calls), Open::new(&calls));
        assert!(timeout(2 * IDLE, is_stalled(open.clone(), IDLE)).await.is_err(), "none is being answered");
        call.taken();
        let takes = async {
            tokio::time::sleep(IDLE / 2).await;
            let last = Instant::now();
            call.taken();
            last
        };
        let (last, ()) = futures::future::join(takes, is_stalled(open.clone(), IDLE)).await;
        assert!(last.elapsed() >= IDLE);
        drop(call);
        assert!(timeout(2 * IDLE, is_stalled(open.clone(), IDLE)).await.is_err(), "its answer was sent");
        drop(waiting);
        assert!(open.borrow().is_empty());
    }
}
