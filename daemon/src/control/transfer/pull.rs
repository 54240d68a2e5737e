//! The fetching side of blob streams.

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_inference::blobs::{BlobError, Hash};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    CHUNK, LOOK_AGAIN, STALL, STATUS_CHECKING, STATUS_OK, Transfer, UNKNOWN_BYTES_MAX, Wanted, request,
    share::{Fault, Round},
    stalled,
};
use crate::net::{Channel, Net, NetStream, PeerId};

/// Smaller blobs tell the delay of a link, not its rate.
const TELLING_BYTES: u64 = 256 * 1024;

/// A blob that takes longer than this, and will for as long again, is asked of another holder that is far faster.
const SLOW: Duration = Duration::from_secs(2);

/// What came of the requests to one peer.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    /// Blobs that it did not give.
    pub(super) faults: Vec<(Hash, Fault)>,
    /// The local store failed, and no other peer would help.
    pub(super) failed: Option<BlobError>,
}

/// What came of one request.
enum Pulled {
    /// The blob is in the store.
    Here,
    /// Another peer is far faster than this one, which gives so many bytes per second.
    Slow(f64),
    /// The peer does not give it now, for this reason.
    Refused(&'static str),
    /// Other bytes than the blob's; they are deleted. `is_theirs`: all of them came from this peer.
    Damaged { is_theirs: bool },
}

/// Why a stream cannot be used any further.
enum PullError {
    Stream(io::Error),
    /// The peer's copy has another length.
    Length,
    Store(BlobError),
}

impl From<io::Error> for PullError {
    fn from(error: io::Error) -> Self {
        Self::Stream(error)
    }
}

/// Bytes of a fetch that count as arrived, until it fails.
struct Counted<'a> {
    progress: &'a AtomicU64,
    bytes: u64,
}

impl Counted<'_> {
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.progress.fetch_add(bytes, Ordering::Relaxed);
    }

    fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.progress.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Transfer {
    /// Fetches blobs from one peer over one stream, as the round deals them out. A broken stream leaves the rest to the
    /// other peers, or to the next round; an error of the local store ends the fetch.
    pub(super) async fn fetch_from(&self, peer: PeerId, round: &Mutex<Round>, progress: &AtomicU64) -> Pulls {
        let round = || round.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pulls = Pulls::default();
        let mut stream = match self.net.open(peer, Channel::Blob).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%peer, %error, "no stream for blobs");
                pulls.faults.extend(round().left(peer).map(|hash| (hash, Fault::Passing)));
                return pulls;
            }
        };
        loop {
            let Some(wanted) = round().next(peer) else { return pulls };
            let hash = wanted.hash;
            let began = Instant::now();
            let is_slow = |rate: f64| round().is_far_faster_elsewhere(peer, hash, rate);
            match self.fetch_one(&mut stream, wanted, progress, is_slow).await {
                Ok(Pulled::Here) => {
                    if let Some(bytes) = wanted.bytes.filter(|bytes| *bytes >= TELLING_BYTES) {
                        round().seen(peer, bytes as f64 / began.elapsed().as_secs_f64().max(1e-6));
                    }
                }
                // What has come stays: the rest comes from the other one in the next round.
                Ok(Pulled::Slow(bytes_per_s)) => {
                    tracing::debug!(%peer, %hash, bytes_per_s, "the peer has become slow");
                    round().seen(peer, bytes_per_s);
                    return pulls;
                }
                Ok(Pulled::Refused(reason)) => {
                    tracing::debug!(%peer, %hash, reason, "the peer does not give the blob");
                    pulls.faults.push((hash, Fault::Passing));
                }
                // What another peer or an earlier run left may be what was wrong.
                Ok(Pulled::Damaged { is_theirs: false }) => {
                    tracing::debug!(%peer, %hash, "a blob in parts did not fit; it is fetched from its start");
                }
                Ok(Pulled::Damaged { is_theirs: true }) => {
                    self.complain(peer, hash);
                    pulls.faults.push((hash, Fault::Damaged));
                }
                Err(PullError::Length) => {
                    self.complain(peer, hash);
                    pulls.faults.push((hash, Fault::Damaged));
                    return pulls;
                }
                Err(PullError::Stream(error)) => {
                    tracing::debug!(%peer, %error, "blob transfer broke off");
                    pulls.faults.push((hash, Fault::Passing));
                    return pulls;
                }
                Err(PullError::Store(error)) => {
                    pulls.failed = Some(error);
                    return pulls;
                }
            }
        }
    }

    async fn fetch_one(
        &self,
        stream: &mut NetStream,
        wanted: Wanted,
        progress: &AtomicU64,
        is_slow: impl Fn(f64) -> bool,
    ) -> Result<Pulled, PullError> {
        let claim = self.claims.claim(wanted.hash).await;
        if self.store.has(&wanted.hash) {
            // Another fetch brought it meanwhile.
            progress.fetch_add(wanted.bytes.unwrap_or(0), Ordering::Relaxed);
            return Ok(Pulled::Here);
        }
        let offset = self.store.partial_len(&wanted.hash);
        let total = match ask(stream, wanted.hash, offset).await? {
            (STATUS_OK, total) => total,
            (STATUS_CHECKING, _) => return Ok(Pulled::Refused("it still reads it through")),
            _ => return Ok(Pulled::Refused("it no longer holds it")),
        };
        if !wanted.bytes.map_or(total <= UNKNOWN_BYTES_MAX, |bytes| bytes == total) {
            return Err(PullError::Length);
        }
        let mut partial = self.store.put_expected(wanted.hash, total).map_err(PullError::Store)?;
        if partial.len() != offset {
            return Err(PullError::Stream(io::Error::other("the blob is being fetched twice")));
        }
        let mut counted = Counted { progress, bytes: 0 };
        counted.add(offset);
        let mut left = total.saturating_sub(offset);
        let mut chunk = vec![0u8; CHUNK];
        let began_all = Instant::now();
        while left > 0 {
            let took = began_all.elapsed();
            if took > SLOW {
                let rate = (total - offset - left) as f64 / took.as_secs_f64();
                if left as f64 > rate * SLOW.as_secs_f64() && is_slow(rate) {
                    return Ok(Pulled::Slow(rate));
                }
            }
            let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let began = Instant::now();
            timeout(STALL, stream.read_exact(&mut chunk[..want])).await.map_err(stalled)??;
            self.courtesy.after(began.elapsed()).await;
            partial.append(&chunk[..want]).map_err(PullError::Store)?;
            counted.add(want as u64);
            left -= want as u64;
        }
        // The claim goes along: the work ends even when nobody waits for it any more.
        let work = crate::background::spawn(move || {
            let finished = partial.finish();
            drop(claim);
            finished
        });
        match work.await.map_err(io::Error::other)? {
            Ok(()) => {
                counted.keep();
                Ok(Pulled::Here)
            }
            Err(BlobError::Mismatch { .. }) => Ok(Pulled::Damaged { is_theirs: offset == 0 }),
            Err(error) => Err(PullError::Store(error)),
        }
    }

    /// Tells a peer that its copy of a blob is damaged, so that it looks and nobody gets it any more. Nobody waits for
    /// that: an earlier version, or a peer that is gone, changes nothing here.
    fn complain(&self, peer: PeerId, hash: Hash) {
        tracing::warn!(%peer, %hash, "the copy of a blob that a device holds is damaged; others are asked");
        let net = self.net.clone();
        tokio::spawn(async move {
            if let Err(error) = ask_to_look(&net, peer, hash).await {
                tracing::debug!(%peer, %hash, %error, "the device cannot be told of its damaged blob");
            }
        });
    }
}

async fn ask_to_look(net: &Net, peer: PeerId, hash: Hash) -> io::Result<()> {
    let mut stream = net.open(peer, Channel::Blob).await.map_err(io::Error::other)?;
    ask(&mut stream, hash, LOOK_AGAIN).await?;
    Ok(())
}

/// Asks for a blob from an offset on: the status, and the blob's length.
async fn ask(stream: &mut NetStream, hash: Hash, offset: u64) -> io::Result<(u8, u64)> {
    stream.write_all(&request(hash, offset)).await?;
    stream.flush().await?;
    let mut head = [0u8; 9];
    timeout(STALL, stream.read_exact(&mut head)).await.map_err(stalled)??;
    let [status, total @ ..] = head;
    Ok((status, u64::from_be_bytes(total)))
}
