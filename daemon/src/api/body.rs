//! Request bodies: read in the pieces they arrive in, bounded per request and over all requests.

mod pieces;

use std::{io::Read, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, StatusCode, header},
};
use bytes::Bytes;
use futures::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

pub(super) use self::pieces::Pieces;
use super::{Api, error::ApiError};

/// A client that sends nothing for this long has gone.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How fast a body has to come. Who is slower holds room that others need.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Between two pieces.
    silence_max: Duration,
    /// Only then does `bytes_per_second` count.
    grace: Duration,
    bytes_per_second: u32,
}

const PACE: Pace =
    Pace { silence_max: SILENCE_MAX, grace: Duration::from_secs(30), bytes_per_second: 16 << 10 };

impl Pace {
    /// When the next piece must have come, and what is wrong if it has not.
    fn deadline(&self, begun: Instant, now: Instant, received: usize) -> (Instant, Late) {
        let silent = now + self.silence_max;
        let earned = Duration::from_secs_f64(received as f64 / f64::from(self.bytes_per_second));
        let slow = begun + self.grace + earned;
        if slow < silent { (slow, Late::Slow) } else { (silent, Late::Silent) }
    }
}

/// Why a body is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Late {
    Silent,
    Slow,
}

impl Late {
    fn error(self, pace: Pace) -> ApiError {
        let text = match self {
            Self::Silent => "the request's body stopped coming; send it again".to_owned(),
            Self::Slow => format!(
                "the request's body comes too slowly: after {} s it must come at {} KiB/s on average; send it \
                 compressed or in smaller batches, or use a faster link",
                pace.grace.as_secs(),
                pace.bytes_per_second >> 10
            ),
        };
        ApiError::new(StatusCode::REQUEST_TIMEOUT, text)
    }
}

/// Reads a whole body of at most `api.body_max` bytes, decompressed if the client compressed it.
pub(super) async fn read(api: &Api, headers: &HeaderMap, body: Body) -> Result<Pieces, ApiError> {
    let pieces = collect(body, headers, api.body_max, Some(&api.body_budget), PACE).await?;
    decompress(api, headers, header::CONTENT_ENCODING, pieces, api.body_max).await
}

/// Before a gRPC message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Reads the one message of a unary gRPC call, at most `max` bytes, decompressed if the client compressed it.
pub(super) async fn read_message(
    api: &Api,
    headers: &HeaderMap,
    body: Body,
    max: usize,
) -> Result<Pieces, ApiError> {
    let told =
        |pieces: &Pieces| pieces.front::<PREFIX>().map(|prefix| announced(prefix).saturating_add(PREFIX));
    let budget = Some(&api.body_budget);
    let mut pieces = collect_announced(body, headers, max.saturating_add(PREFIX), budget, PACE, told).await?;
    let Some(prefix) = pieces.front::<PREFIX>() else {
        return Err(ApiError::bad("the call has no whole message: send one"));
    };
    pieces.take_front(PREFIX);
    let (sent, length) = (pieces.len(), announced(prefix));
    if sent < length {
        return Err(ApiError::bad(format!("the message ends {} bytes before its end", length - sent)));
    }
    if sent > length {
        return Err(ApiError::bad("more comes after the message: a call takes one"));
    }
    match prefix[0] {
        0 => Ok(pieces),
        1 => decompress(api, headers, HeaderName::from_static("grpc-encoding"), pieces, max).await,
        other => Err(ApiError::bad(format!("the message's compressed-flag is {other}, not 0 or 1"))),
    }
}

/// How long the message behind a prefix is.
fn announced([_, length @ ..]: [u8; PREFIX]) -> usize {
    usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX)
}

/// Undoes the compression that a header names.
async fn decompress(
    api: &Api,
    headers: &HeaderMap,
    name: HeaderName,
    pieces: Pieces,
    max: usize,
) -> Result<Pieces, ApiError> {
    let encoding = headers.get(&name).map(|v| v.to_str().unwrap_or("?").to_ascii_lowercase());
    match encoding.as_deref() {
        None | Some("identity" | "") => Ok(pieces),
        Some("gzip") => unpack(pieces, max, api.body_budget.clone(), flate2::read::MultiGzDecoder::new).await,
        Some("deflate") => unpack(pieces, max, api.body_budget.clone(), flate2::read::ZlibDecoder::new).await,
        Some(other) => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("{name} {other} is not known here: use gzip, deflate or none"),
        )),
    }
}

/// Reads a small JSON body.
pub(super) async fn read_small(headers: &HeaderMap, body: Body, max: usize) -> Result<Bytes, ApiError> {
    let mut pieces = collect(body, headers, max, None, PACE).await?;
    let len = pieces.len();
    Ok(pieces.take_front(len))
}

async fn collect(
    body: Body,
    headers: &HeaderMap,
    max: usize,
    budget: Option<&Budget>,
    pace: Pace,
) -> Result<Pieces, ApiError> {
    collect_announced(body, headers, max, budget, pace, |_| None).await
}

/// `told` gives the whole length when what has come says so, which counts as one in the head does.
async fn collect_announced(
    body: Body,
    headers: &HeaderMap,
    max: usize,
    budget: Option<&Budget>,
    pace: Pace,
    told: impl Fn(&Pieces) -> Option<usize>,
) -> Result<Pieces, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|len| len > max) {
        return Err(ApiError::too_large(max));
    }
    let mut pieces = Pieces::default();
    let mut room = Room::new(budget.cloned());
    room.grow_to(announced.unwrap_or(0))?;
    let mut stream = body.into_data_stream();
    let (begun, mut is_told) = (Instant::now(), false);
    loop {
        let (deadline, late) = pace.deadline(begun, Instant::now(), pieces.len());
        let next = tokio::time::timeout_at(deadline, stream.next()).await.map_err(|_| late.error(pace))?;
        let Some(piece) = next else { break };
        let piece = piece.map_err(|error| ApiError::bad(format!("the request's body broke off: {error}")))?;
        if piece.len() > max - pieces.len() {
            return Err(ApiError::too_large(max));
        }
        room.grow_to(pieces.len() + piece.len())?;
        pieces.push(piece);
        if !is_told && let Some(length) = told(&pieces) {
            if length > max {
                return Err(ApiError::too_large(max));
            }
            room.grow_to(length)?;
            is_told = true;
        }
    }
    pieces.hold(room);
    Ok(pieces)
}

/// Bytes that the bodies of all requests together may take.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    kib: usize,
    free_kib: Arc<Semaphore>,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        let kib = (bytes >> 10).clamp(1, Semaphore::MAX_PERMITS);
        Self { kib, free_kib: Arc::new(Semaphore::new(kib)) }
    }
}

/// What a request holds of the budget, if it is under one.
#[derive(Debug, Default)]
struct Room {
    budget: Option<Budget>,
    kib: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    fn new(budget: Option<Budget>) -> Self {
        Self { budget, ..Self::default() }
    }

    fn grow_by(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.grow_to((self.kib << 10).saturating_add(bytes))
    }

    fn grow_to(&mut self, bytes: usize) -> Result<(), ApiError> {
        let Some(budget) = &self.budget else { return Ok(()) };
        let kib = bytes >> 10;
        let Some(more) = kib.checked_sub(self.kib).filter(|&more| more > 0) else { return Ok(()) };
        if kib > budget.kib {
            return Err(ApiError::inputs_too_large(budget.kib << 10));
        }
        let free = budget.free_kib.clone();
        let permit = u32::try_from(more).ok().and_then(|n| free.try_acquire_many_owned(n).ok());
        let Some(permit) = permit else {
            return Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "this device holds as many request bodies as it can: try again soon, or use another device",
            )
            .retry_after(1));
        };
        match &mut self.permit {
            Some(held) => held.merge(permit),
            None => self.permit = Some(permit),
        }
        self.kib = kib;
        Ok(())
    }
}

/// Decompresses on a blocking thread into pieces of 1 MiB; a bomb is stopped at the limit.
async fn unpack<R: Read>(
    packed: Pieces,
    max: usize,
    budget: Budget,
    decoder: impl FnOnce(Pieces) -> R + Send + 'static,
) -> Result<Pieces, ApiError> {
    let work = move || {
        let mut reader = decoder(packed);
        let mut pieces = Pieces::default();
        let mut room = Room::new(Some(budget));
        loop {
            let mut piece = Vec::new();
            let read = (&mut reader).take(1 << 20).read_to_end(&mut piece);
            read.map_err(|error| ApiError::bad(format!("the body does not decompress: {error}")))?;
            if piece.is_empty() {
                break;
            }
            if piece.len() > max - pieces.len() {
                return Err(ApiError::too_large(max));
            }
            room.grow_to(pieces.len() + piece.len())?;
            pieces.push(piece.into());
        }
        pieces.hold(room);
        Ok(pieces)
    };
    match crate::background::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::response::IntoResponse;

    use super::*;

    #[test]
    fn a_body_has_to_come_at_a_pace() {
        const KIB: usize = 1 << 10;
        // Seconds since the start, what has come, seconds from the start to the deadline, and why.
        for (now, received, deadline, why) in [
            (0, 0, 30, Late::Silent),
            (1, 1, 30, Late::Slow),
            (1, 16 * KIB, 31, Late::Silent),
            (1, 64 << 20, 31, Late::Silent),
            (29, 16 * KIB, 31, Late::Slow),
            (60, 480 * KIB, 60, Late::Slow),
            (60, 960 * KIB, 90, Late::Silent),
            (60, 944 * KIB, 89, Late::Slow),
            (3600, 64 << 20, 3630, Late::Silent),
        ] {
            let begun = Instant::now();
            let (at, late) = PACE.deadline(begun, begun + Duration::from_secs(now), received);
            assert_eq!(((at - begun).as_secs(), late), (deadline, why), "{received} B after {now} s");
        }
    }

    #[tokio::test]
    async fn a_body_that_trickles_is_given_up() {
        let ms = Duration::from_millis;
        let pace = Pace { silence_max: Duration::from_secs(20), grace: ms(200), bytes_per_second: 16 << 10 };
        // What each piece has, how many there are, and the answer; each comes after 2 ms.
        for (size, count, slow) in [(1, usize::MAX, true), (1, 2, false), (4096, 40, false)] {
            let parts = futures::stream::unfold(0, move |part| async move {
                tokio::time::sleep(ms(2)).await;
                (part < count).then(|| (Ok::<_, Infallible>(Bytes::from(vec![0; size])), part + 1))
            });
            let headers = HeaderMap::new();
            let got = collect(Body::from_stream(parts), &headers, 1 << 20, None, pace);
            let got = tokio::time::timeout(Duration::from_secs(20), got).await.unwrap();
            match got {
                Ok(pieces) => assert!(!slow && pieces.len() == size * count, "{size} {count}"),
                Err(error) => {
                    assert!(slow, "{size} {count}: {error:?}");
                    assert!(format!("{error:?}").contains("must come at 16 KiB/s on average"), "{error:?}");
                    assert_eq!(error.into_response().status(), StatusCode::REQUEST_TIMEOUT);
                }
            }
        }
    }
}
