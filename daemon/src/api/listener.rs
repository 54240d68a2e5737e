//! Accepts a bounded number of connections, and serves HTTP on those of its port. Whoever vanishes or is idle loses its
//! place.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use axum::{Router, extract::ConnectInfo, http::Request, serve::Listener};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
    service::TowerToHyperService,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::socket::{Socket, Unread, Watched};

/// Clients that may be connected at once; more wait in the system's queue.
const CONNECTIONS_MAX: usize = 1024;
/// How long open requests may go on after shutdown was asked for.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// The kernel takes no more of an answer while so much of it waits to be sent: what a slow client leaves there is in no
/// budget, and a client that reads is seen to do so.
const UNSENT_MAX: u32 = 256 << 10;

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// A connection is closed when its next request's head is not complete this long after the last answer. A request
    /// may take any time, and so may its answer.
    pub(super) idle_max: Duration,
    /// A client that takes nothing of its answer for this long is cut: it holds the memory of the answer.
    pub(super) stall_max: Duration,
    /// To send the rest of a request that was answered before it had come.
    pub(super) linger_max: Duration,
}

pub(super) const PATIENCE: Patience = Patience {
    idle_max: Duration::from_secs(300),
    stall_max: Duration::from_secs(60),
    linger_max: Duration::from_secs(2),
};

/// A silent client's system is asked for a sign of life after this long, and given up after [`PROBES`] unanswered ones.
const PROBE_AFTER: Duration = Duration::from_secs(60);
/// Between two of these questions.
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;

/// Accepts as long as there is room.
#[derive(Debug)]
pub(super) struct Limited {
    listener: TcpListener,
    room: Arc<Semaphore>,
    patience: Patience,
}

impl Limited {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self::with_room(listener, CONNECTIONS_MAX)
    }

    /// Lets so many clients be connected at once.
    pub(super) fn with_room(listener: TcpListener, connections_max: usize) -> Self {
        Self { listener, room: Arc::new(Semaphore::new(connections_max)), patience: PATIENCE }
    }

    /// Serves HTTP until `shutdown` ends; then open requests have a few seconds to finish.
    pub(super) async fn serve(self, router: Router, shutdown: impl Future<Output = ()>) {
        let patience = self.patience;
        let serve = move |stream: TcpStream, client: Client, ending: CancellationToken| {
            let connection = connection(stream, client, router.clone(), patience);
            async move {
                if let Err(error) = drive(connection, ending.cancelled_owned()).await {
                    tracing::trace!(%error, "a connection to the API ended");
                }
            }
        };
        self.serve_each(shutdown, serve).await;
    }

    /// Hands every connection to `serve` until `shutdown` ends. Then the token that it was given is cancelled, and it has
    /// a few seconds to end.
    pub(super) async fn serve_each<F: Future<Output = ()> + Send + 'static>(
        mut self,
        shutdown: impl Future<Output = ()>,
        serve: impl Fn(TcpStream, Client, CancellationToken) -> F,
    ) {
        let (open, ending) = (TaskTracker::new(), CancellationToken::new());
        let mut shutdown = pin!(shutdown);
        loop {
            let (stream, client, place) = tokio::select! {
                accepted = self.accept() => accepted,
                () = &mut shutdown => break,
            };
            let connection = serve(stream, client, ending.clone());
            open.spawn(async move {
                connection.await;
                drop(place);
            });
        }
        drop(self.listener);
        open.close();
        ending.cancel();
        tokio::select! {
            () = open.wait() => {}
            () = tokio::time::sleep(DRAIN_LIMIT) => {
                tracing::info!("closing API connections that are still open");
            }
        }
    }

    async fn accept(&mut self) -> (TcpStream, Client, OwnedSemaphorePermit) {
        let place = self.room.clone().acquire_owned().await.expect("nobody closes this semaphore");
        // The trait's own `accept` of a `TcpListener` waits and tries again when the process is out of descriptors.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // An answer is often one small write, which Nagle's algorithm would hold back. Failing costs only latency.
        let _ = stream.set_nodelay(true);
        let probes =
            TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY).with_retries(PROBES);
        if let Err(error) = SockRef::from(&stream).set_tcp_keepalive(&probes) {
            tracing::debug!(%error, "a client that vanishes will not be noticed");
        }
        if let Err(error) = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_MAX) {
            tracing::debug!(%error, "the kernel does not bound what waits to be sent");
        }
        let client = Client::of(&stream, address);
        (stream, client, place)
    }
}

/// Serves a connection to its end. From `ending` on it takes no more requests, and ends when those it has are answered.
pub(super) async fn drive<C: GracefulConnection>(
    connection: C,
    ending: impl Future<Output = ()>,
) -> Result<(), C::Error> {
    let mut connection = pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result,
        () = ending => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// HTTP on one connection. hyper starts its timer when it waits for a request's head, and stops it when it has one.
fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    client: Client,
    router: Router,
    patience: Patience,
) -> impl GracefulConnection<Error = hyper::Error> + Send {
    let Patience { idle_max, stall_max, linger_max } = patience;
    let (router, unread) = (TowerToHyperService::new(router), Unread::default());
    let socket = Socket::new(stream, stall_max, linger_max, unread.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(client));
        router.call(request.map(|body| Watched::new(body, unread.clone())))
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle_max)
        .serve_connection(TokioIo::new(socket), service)
}

/// Where a client is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    /// On another machine than this device.
    pub(super) is_elsewhere: bool,
}

impl Client {
    fn of(stream: &TcpStream, from: SocketAddr) -> Self {
        let own = stream.local_addr().map(|address| address.ip()).ok();
        Self { is_elsewhere: is_elsewhere(from.ip(), own) }
    }
}

/// Whether an address is of another machine than the one that it has come to by the address `own`: the system connects
/// to an address of its own from the same one.
fn is_elsewhere(from: IpAddr, own: Option<IpAddr>) -> bool {
    let from = from.to_canonical();
    !from.is_loopback() && own.is_none_or(|own| own.to_canonical() != from)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::{body::Body, routing::get};
    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);
    const IDLE: Duration = Duration::from_millis(20);
    const CLIENT: Client = Client { is_elsewhere: false };
    const IMPATIENCE: Patience = Patience { idle_max: IDLE, stall_max: LIMIT, linger_max: LIMIT };

    /// Answers at once, after much more than [`IDLE`], and with a pause in the middle.
    fn router() -> Router {
        let late = || async {
            tokio::time::sleep(5 * IDLE).await;
            "late"
        };
        let paused = || async {
            let parts = futures::stream::unfold(0, |part| async move {
                let text = *["begin", "end"].get(part)?;
                tokio::time::sleep(5 * IDLE).await;
                Some((Ok::<_, Infallible>(Bytes::from(text)), part + 1))
            });
            Body::from_stream(parts)
        };
        Router::new()
            .route("/soon", get(|| async { "soon" }))
            .route("/late", get(late))
            .route("/paused", get(paused))
    }

    async fn read_all(mut stream: impl AsyncRead + Unpin) -> String {
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.expect("it is closed");
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn only_who_waits_for_a_head_is_cut() {
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        for (sent, answers) in [
            (String::new(), vec![]),
            ("GET /soon HTTP/1.1\r\nho".to_owned(), vec![]),
            (get("/soon"), vec!["soon"]),
            (get("/soon") + "GET", vec!["soon"]),
            (get("/late"), vec!["late"]),
            (get("/late") + &get("/soon"), vec!["late", "soon"]),
            (get("/paused"), vec!["begin", "end"]),
            (get("/paused") + &get("/late"), vec!["begin", "end", "late"]),
        ] {
            let (mut mine, theirs) = tokio::io::duplex(1 << 16);
            mine.write_all(sent.as_bytes()).await.unwrap();
            tokio::spawn(connection(theirs, CLIENT, router(), IMPATIENCE));
            let mut got = &*read_all(mine).await;
            for answer in &answers {
                let at = got.find(answer).unwrap_or_else(|| panic!("{sent:?}: no {answer} in {got:?}"));
                got = &got[at..];
            }
            assert_eq!(answers.is_empty(), got.is_empty(), "{sent:?}: {got:?}");
        }
    }

    #[tokio::test]
    async fn an_idle_client_makes_room_for_others_and_shutdown_waits_for_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let limited = Limited { patience: IMPATIENCE, ..Limited::with_room(listener, 1) };
        let serving = tokio::spawn(limited.serve(router(), async { drop(stopped.await) }));
        let silent = TcpStream::connect(address).await.unwrap();
        let mut other = TcpStream::connect(address).await.unwrap();
        other.write_all(b"GET /paused HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut first = [0; 1];
        tokio::time::timeout(LIMIT, other.read_exact(&mut first)).await.unwrap().unwrap();
        assert_eq!(read_all(silent).await, "");
        drop(stop);
        assert!(read_all(other).await.ends_with("end\r\n0\r\n\r\n"));
        tokio::time::timeout(LIMIT, serving).await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    /// By what a client announces and sends behind a head that is answered at once, whether it closes then, and whether
    /// the connection goes on for as long as it may.
    #[tokio::test]
    async fn what_is_left_of_an_answered_request_is_taken_for_a_while() {
        for (announced, sent, closes, waits) in [
            (0, 0, false, false),
            (1 << 20, 1 << 20, true, false),
            (1 << 20, 1000, true, false),
            (1 << 20, 1000, false, true),
        ] {
            let (mut mine, theirs) = tokio::io::duplex(1 << 10);
            let linger_max = if waits { 10 * IDLE } else { LIMIT };
            let patience = Patience { idle_max: LIMIT, linger_max, ..IMPATIENCE };
            let begun = tokio::time::Instant::now();
            let serving = tokio::spawn(connection(theirs, CLIENT, router(), patience));
            let head =
                format!("GET /soon HTTP/1.1\r\nconnection: close\r\ncontent-length: {announced}\r\n\r\n");
            mine.write_all(head.as_bytes()).await.unwrap();
            tokio::time::timeout(LIMIT, mine.write_all(&vec![b' '; sent])).await.unwrap().unwrap();
            let mut answer = String::new();
            tokio::time::timeout(LIMIT, mine.read_to_string(&mut answer)).await.unwrap().unwrap();
            assert!(answer.ends_with("soon"), "{announced} {sent}: {answer}");
            if closes {
                drop(mine);
            }
            let ended = tokio::time::timeout(LIMIT, serving).await.unwrap().unwrap();
            assert!(ended.is_ok(), "{announced} {sent}: {ended:?}");
            assert!(!waits || begun.elapsed() >= linger_max, "{announced} {sent}");
        }
    }

    #[tokio::test]
    async fn only_who_takes_nothing_of_an_answer_is_cut() {
        let large = Router::new().route("/", get(|| async { vec![b'x'; 64 << 10] }));
        for (stall_max, reads) in [(IDLE, false), (LIMIT, true)] {
            let (mut mine, theirs) = tokio::io::duplex(1 << 10);
            let patience = Patience { idle_max: LIMIT, stall_max, ..IMPATIENCE };
            let serving = tokio::spawn(connection(theirs, CLIENT, large.clone(), patience));
            mine.write_all(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n").await.unwrap();
            if reads {
                let answer = read_all(&mut mine).await;
                assert!(answer.ends_with(&"x".repeat(64 << 10)));
            }
            let ended = tokio::time::timeout(LIMIT, serving).await.unwrap().unwrap();
            assert_eq!(ended.is_ok(), reads, "{ended:?}");
        }
    }

    #[tokio::test]
    async fn a_vanished_client_is_looked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, client, _place) = Limited::new(listener).accept().await;
        let socket = SockRef::from(&stream);
        assert!(!client.is_elsewhere && socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), PROBE_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), PROBE_EVERY);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), PROBES);
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT_MAX);
    }

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
