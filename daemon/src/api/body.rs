//! Request bodies: read in the pieces they arrive in, bounded per request and over all requests.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use bytes::{Buf, Bytes};
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Api, error::ApiError};

/// A client that sends nothing for this long has gone.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A body as the pieces it came in, so that a tensor is copied once: from the pieces into its own memory.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    pieces: VecDeque<Bytes>,
    len: usize,
    /// Room in the budget of all bodies, given back on drop.
    _room: Option<OwnedSemaphorePermit>,
}

impl Pieces {
    /// Bytes that are left.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Takes the first `count` bytes as one run; copies only when they lie in several pieces.
    pub(super) fn take_front(&mut self, count: usize) -> Bytes {
        assert!(count <= self.len, "the caller has checked the length");
        if let Some(first) = self.pieces.front_mut()
            && first.len() >= count
        {
            self.len -= count;
            return first.split_to(count);
        }
        let mut run = vec![0; count];
        self.fill(&mut run);
        run.into()
    }

    /// Moves the first bytes into `target`, which must not be longer than what is left.
    pub(super) fn fill(&mut self, target: &mut [u8]) {
        assert!(target.len() <= self.len, "the caller has checked the length");
        self.len -= target.len();
        let mut done = 0;
        while done < target.len() {
            let piece = self.pieces.front_mut().expect("len counts the bytes of all pieces");
            let count = piece.len().min(target.len() - done);
            piece.copy_to_slice(&mut target[done..done + count]);
            done += count;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
    }

    fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        if !piece.is_empty() {
            self.pieces.push_back(piece);
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let count = target.len().min(self.len);
        self.fill(&mut target[..count]);
        Ok(count)
    }
}

/// Reads a whole body of at most `api.body_max` bytes, decompressed if the client compressed it.
pub(super) async fn read(api: &Api, headers: &HeaderMap, body: Body) -> Result<Pieces, ApiError> {
    let pieces = collect(body, headers, api.body_max, Some(&api.body_budget)).await?;
    let encoding =
        headers.get(header::CONTENT_ENCODING).map(|v| v.to_str().unwrap_or("?").to_ascii_lowercase());
    let max = api.body_max;
    match encoding.as_deref() {
        None | Some("identity" | "") => Ok(pieces),
        Some("gzip") => unpack(pieces, max, api.body_budget.clone(), flate2::read::MultiGzDecoder::new).await,
        Some("deflate") => unpack(pieces, max, api.body_budget.clone(), flate2::read::ZlibDecoder::new).await,
        Some(other) => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("Content-Encoding {other} is not known here: use gzip, deflate or none"),
        )),
    }
}

/// Reads a small JSON body.
pub(super) async fn read_small(headers: &HeaderMap, body: Body, max: usize) -> Result<Bytes, ApiError> {
    let mut pieces = collect(body, headers, max, None).await?;
    let len = pieces.len();
    Ok(pieces.take_front(len))
}

async fn collect(
    body: Body,
    headers: &HeaderMap,
    max: usize,
    budget: Option<&Arc<Semaphore>>,
) -> Result<Pieces, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|len| len > max) {
        return Err(ApiError::too_large(max));
    }
    let mut pieces = Pieces::default();
    let mut room = Room { budget: budget.cloned(), kib: 0, permit: None };
    room.grow_to(announced.unwrap_or(0))?;
    let mut stream = body.into_data_stream();
    loop {
        let next = tokio::time::timeout(SILENCE_MAX, stream.next()).await.map_err(|_| {
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request's body stopped coming; send it again")
        })?;
        let Some(piece) = next else { break };
        let piece = piece.map_err(|error| ApiError::bad(format!("the request's body broke off: {error}")))?;
        if piece.len() > max - pieces.len {
            return Err(ApiError::too_large(max));
        }
        room.grow_to(pieces.len + piece.len())?;
        pieces.push(piece);
    }
    pieces._room = room.permit;
    Ok(pieces)
}

/// What a request holds of the budget of all bodies.
struct Room {
    budget: Option<Arc<Semaphore>>,
    kib: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    fn grow_to(&mut self, bytes: usize) -> Result<(), ApiError> {
        let Some(budget) = &self.budget else { return Ok(()) };
        let kib = bytes >> 10;
        let Some(more) = kib.checked_sub(self.kib).filter(|&more| more > 0) else { return Ok(()) };
        let permit = u32::try_from(more).ok().and_then(|n| budget.clone().try_acquire_many_owned(n).ok());
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
    budget: Arc<Semaphore>,
    decoder: impl FnOnce(Pieces) -> R + Send + 'static,
) -> Result<Pieces, ApiError> {
    let work = move || {
        let mut reader = decoder(packed);
        let mut pieces = Pieces::default();
        let mut room = Room { budget: Some(budget), kib: 0, permit: None };
        loop {
            let mut piece = Vec::new();
            let read = (&mut reader).take(1 << 20).read_to_end(&mut piece);
            read.map_err(|error| ApiError::bad(format!("the body does not decompress: {error}")))?;
            if piece.is_empty() {
                break;
            }
            if piece.len() > max - pieces.len {
                return Err(ApiError::too_large(max));
            }
            room.grow_to(pieces.len + piece.len())?;
            pieces.push(piece.into());
        }
        pieces._room = room.permit;
        Ok(pieces)
    };
    match crate::background::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}
