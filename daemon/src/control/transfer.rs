//! Moving blobs between devices: content-addressed, from several devices at once, resumed after a break, checked on
//! arrival. Weights travel on streams of their own and never touch the control link.
//!
//! On a stream the fetching side writes requests (32 bytes of hash, 8 bytes of offset, big endian) and the serving
//! side answers each with one status byte, 8 bytes of total length, and the bytes from the offset on.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_inference::blobs::{BlobError, BlobStore, Hash};
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
    task::JoinSet,
    time::timeout,
};

mod claims;
mod patience;

use claims::Claims;
use patience::{Next, Patience};

use super::{
    peers::Peers,
    rpc::{HAVE_MAX, HaveCall, HaveReply, METHOD_HAVE, decode, encode},
};
use crate::net::{Channel, Net, NetStream, PeerId};

/// Bytes moved at once; also what a stalled transfer is measured by.
const CHUNK: usize = 256 * 1024;
/// A transfer that moves nothing for this long is given up and tried elsewhere.
const STALL: Duration = Duration::from_secs(10);
/// Time for the answer to "which of these do you hold".
const HAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest blob whose length is not known before: a manifest or a profile.
const UNKNOWN_BYTES_MAX: u64 = 512 * 1024 * 1024;
const STATUS_OK: u8 = 0;
const STATUS_MISSING: u8 = 1;

/// Why blobs did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody who is up holds them.
    #[error("{missing} of {wanted} blobs are held by no device that is up (first: {first})")]
    Missing {
        /// How many are missing.
        missing: usize,
        /// How many were wanted.
        wanted: usize,
        /// One of them.
        first: Hash,
    },
    /// Devices hold them, and are too busy with others or cannot be reached on a stream.
    #[error(
        "{missing} of {wanted} blobs did not come from the devices that hold them: those are busy with others, or \
         cannot be reached (first: {first})"
    )]
    Stuck {
        /// How many are missing.
        missing: usize,
        /// How many were wanted.
        wanted: usize,
        /// One of them.
        first: Hash,
    },
    /// The store refused: disk full, disk limit, I/O error.
    #[error("cannot store a blob")]
    Store(#[source] BlobError),
}

/// Fetches blobs from peers and serves them.
#[derive(Debug, Clone)]
pub struct Transfer {
    net: Net,
    store: BlobStore,
    peers: Peers,
    claims: Claims,
}

/// A blob that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// What.
    pub hash: Hash,
    /// Bytes, where they are known: the transfer refuses another length.
    pub bytes: Option<u64>,
}

impl Transfer {
    /// On this network and store.
    pub fn new(net: Net, store: BlobStore, peers: Peers) -> Self {
        Self { net, store, peers, claims: Claims::default() }
    }

    /// The local store.
    pub fn store(&self) -> &BlobStore {
        &self.store
    }

    /// Answers which of these blobs are held here.
    pub fn have(&self, call: &HaveCall) -> HaveReply {
        HaveReply { held: call.hashes.iter().take(HAVE_MAX).map(|h| self.store.has(h)).collect() }
    }

    /// Serves one inbound stream until the peer closes it.
    pub async fn serve(&self, mut stream: NetStream) {
        if let Err(error) = self.serve_requests(&mut stream).await {
            tracing::debug!(%error, "blob stream ended");
        }
    }

    async fn serve_requests(&self, stream: &mut NetStream) -> io::Result<()> {
        loop {
            let mut request = [0u8; 40];
            match stream.read_exact(&mut request).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
            let (hash, offset) = split_request(&request);
            self.serve_one(stream, hash, offset).await?;
        }
    }

    async fn serve_one(&self, stream: &mut NetStream, hash: Hash, offset: u64) -> io::Result<()> {
        // Not for the whole stream: a peer that leaves one open keeps nobody at work.
        let _chore = self.net.chore();
        let opened = match self.store.has(&hash) {
            true => tokio::fs::File::open(self.store.path(&hash)).await.ok(),
            false => None,
        };
        let Some(mut file) = opened else {
            stream.write_all(&[STATUS_MISSING]).await?;
            stream.write_all(&0u64.to_be_bytes()).await?;
            return stream.flush().await;
        };
        let total = file.metadata().await?.len();
        file.seek(io::SeekFrom::Start(offset.min(total))).await?;
        let mut head = [0u8; 9];
        head[0] = STATUS_OK;
        head[1..].copy_from_slice(&total.to_be_bytes());
        stream.write_all(&head).await?;
        let mut left = total.saturating_sub(offset);
        let mut chunk = vec![0u8; CHUNK];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            file.read_exact(&mut chunk[..want]).await?;
            timeout(STALL, stream.write_all(&chunk[..want])).await.map_err(stalled)??;
            left -= want as u64;
        }
        stream.flush().await
    }

    /// Makes sure that all of `wanted` are in the local store. `progress` counts the bytes that have arrived.
    pub async fn fetch(&self, wanted: &[Wanted], progress: &AtomicU64) -> Result<(), FetchError> {
        let mut patience = Patience::new(Instant::now());
        loop {
            let missing = self.missing(wanted);
            let Some(first) = missing.first().map(|w| w.hash) else { return Ok(()) };
            let holders = self.holders(&missing).await;
            let queues = distribute(&missing, &holders);
            let is_held = !queues.is_empty();
            self.fetch_from_all(queues, progress).await?;
            let next = patience.next(is_held, self.arrived(wanted), Instant::now());
            let (wanted, missing) = (wanted.len(), missing.len());
            match next {
                // Not all devices at the same time.
                Next::Again(pause) => {
                    tokio::time::sleep(pause.mul_f64(1.0 + rand::random::<f64>() / 2.0)).await
                }
                Next::Missing => return Err(FetchError::Missing { missing, wanted, first }),
                Next::Stuck => return Err(FetchError::Stuck { missing, wanted, first }),
            }
        }
    }

    fn missing(&self, wanted: &[Wanted]) -> Vec<Wanted> {
        wanted.iter().filter(|w| !self.store.has(&w.hash)).copied().collect()
    }

    /// How many of these are in the store, and the bytes of others that are.
    fn arrived(&self, wanted: &[Wanted]) -> (usize, u64) {
        let missing = self.missing(wanted);
        (wanted.len() - missing.len(), missing.iter().map(|w| self.store.partial_len(&w.hash)).sum())
    }

    /// Who of the live peers holds which of the missing blobs.
    async fn holders(&self, missing: &[Wanted]) -> BTreeMap<PeerId, Vec<bool>> {
        let mut asked = JoinSet::new();
        for peer in self.peers.live() {
            let net = self.net.clone();
            let hashes: Vec<Hash> = missing.iter().take(HAVE_MAX).map(|w| w.hash).collect();
            asked.spawn(async move {
                let count = hashes.len();
                let reply =
                    net.call(peer, METHOD_HAVE, encode(&HaveCall { hashes }), HAVE_TIMEOUT).await.ok()?;
                let reply: HaveReply = decode(&reply)?;
                (reply.held.len() == count).then_some((peer, reply.held))
            });
        }
        let mut holders = BTreeMap::new();
        while let Some(answer) = asked.join_next().await {
            if let Ok(Some((peer, held))) = answer {
                holders.insert(peer, held);
            }
        }
        holders
    }

    async fn fetch_from_all(
        &self,
        queues: BTreeMap<PeerId, VecDeque<Wanted>>,
        progress: &AtomicU64,
    ) -> Result<(), FetchError> {
        let failed: Mutex<Option<BlobError>> = Mutex::new(None);
        let pulls = queues.into_iter().map(|(peer, queue)| self.fetch_from(peer, queue, progress, &failed));
        futures::future::join_all(pulls).await;
        match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(error) => Err(FetchError::Store(error)),
            None => Ok(()),
        }
    }

    /// Fetches a queue of blobs from one peer over one stream. A broken stream leaves the rest to the next round; an
    /// error of the local store ends the fetch.
    async fn fetch_from(
        &self,
        peer: PeerId,
        queue: VecDeque<Wanted>,
        progress: &AtomicU64,
        failed: &Mutex<Option<BlobError>>,
    ) {
        let Ok(mut stream) = self.net.open(peer, Channel::Blob).await else { return };
        for wanted in queue {
            match self.fetch_one(&mut stream, wanted, progress).await {
                Ok(true) => {}
                Ok(false) => tracing::debug!(%peer, hash = %wanted.hash, "the peer no longer holds the blob"),
                Err(PullError::Stream(error)) => {
                    tracing::debug!(%peer, %error, "blob transfer broke off");
                    return;
                }
                Err(PullError::Store(error)) => {
                    *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                    return;
                }
            }
        }
    }

    async fn fetch_one(
        &self,
        stream: &mut NetStream,
        wanted: Wanted,
        progress: &AtomicU64,
    ) -> Result<bool, PullError> {
        let claim = self.claims.claim(wanted.hash).await;
        if self.store.has(&wanted.hash) {
            // Another fetch brought it meanwhile.
            progress.fetch_add(wanted.bytes.unwrap_or(0), Ordering::Relaxed);
            return Ok(true);
        }
        let offset = self.store.partial_len(&wanted.hash);
        let mut request = [0u8; 40];
        request[..32].copy_from_slice(wanted.hash.as_bytes());
        request[32..].copy_from_slice(&offset.to_be_bytes());
        stream.write_all(&request).await?;
        stream.flush().await?;
        let mut head = [0u8; 9];
        timeout(STALL, stream.read_exact(&mut head)).await.map_err(stalled)??;
        if head[0] != STATUS_OK {
            return Ok(false);
        }
        let mut total = [0u8; 8];
        total.copy_from_slice(&head[1..]);
        let total = u64::from_be_bytes(total);
        let fits = wanted.bytes.map_or(total <= UNKNOWN_BYTES_MAX, |bytes| bytes == total);
        if !fits {
            return Err(PullError::Stream(io::Error::other("the peer's blob has another length")));
        }
        let mut partial = self.store.put_expected(wanted.hash, total).map_err(PullError::Store)?;
        if partial.len() != offset {
            return Err(PullError::Stream(io::Error::other("the blob is being fetched twice")));
        }
        progress.fetch_add(offset, Ordering::Relaxed);
        let mut left = total.saturating_sub(offset);
        let mut chunk = vec![0u8; CHUNK];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            timeout(STALL, stream.read_exact(&mut chunk[..want])).await.map_err(stalled)??;
            partial.append(&chunk[..want]).map_err(PullError::Store)?;
            progress.fetch_add(want as u64, Ordering::Relaxed);
            left -= want as u64;
        }
        // The claim goes along: the work ends even when nobody waits for it any more.
        let work = crate::background::spawn(move || {
            let finished = partial.finish();
            drop(claim);
            finished
        });
        work.await.map_err(io::Error::other)?.map_err(PullError::Store)?;
        Ok(true)
    }
}

enum PullError {
    Stream(io::Error),
    Store(BlobError),
}

impl From<io::Error> for PullError {
    fn from(error: io::Error) -> Self {
        Self::Stream(error)
    }
}

fn stalled(_: tokio::time::error::Elapsed) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "nothing moved for 10 s")
}

fn split_request(request: &[u8; 40]) -> (Hash, u64) {
    let mut hash = [0u8; 32];
    hash.copy_from_slice(&request[..32]);
    let mut offset = [0u8; 8];
    offset.copy_from_slice(&request[32..]);
    (Hash::from_bytes(hash), u64::from_be_bytes(offset))
}

/// Gives each missing blob to the holder with the fewest bytes so far, largest blobs first.
fn distribute(
    missing: &[Wanted],
    holders: &BTreeMap<PeerId, Vec<bool>>,
) -> BTreeMap<PeerId, VecDeque<Wanted>> {
    let mut order: Vec<usize> = (0..missing.len().min(HAVE_MAX)).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(missing[i].bytes.unwrap_or(0)));
    let mut load: BTreeMap<PeerId, u64> = BTreeMap::new();
    let mut queues: BTreeMap<PeerId, VecDeque<Wanted>> = BTreeMap::new();
    for i in order {
        let best = holders
            .iter()
            .filter(|(_, held)| held[i])
            .min_by_key(|(peer, _)| load.get(*peer).copied().unwrap_or(0))
            .map(|(peer, _)| *peer);
        if let Some(peer) = best {
            *load.entry(peer).or_default() += missing[i].bytes.unwrap_or(1);
            queues.entry(peer).or_default().push_back(missing[i]);
        }
    }
    queues
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every missing blob that somebody holds is asked of exactly one holder, and of a real one.
        #[test]
        fn each_blob_is_asked_of_one_holder(sizes in prop::collection::vec(0u64..1000, 1..40), held in prop::collection::vec(any::<u8>(), 40)) {
            let missing: Vec<Wanted> = sizes
                .iter()
                .enumerate()
                .map(|(i, bytes)| Wanted { hash: Hash::of(&i.to_be_bytes()), bytes: Some(*bytes) })
                .collect();
            let peers: Vec<PeerId> = (0..3).map(|_| PeerId::random()).collect();
            let holders: BTreeMap<PeerId, Vec<bool>> = peers
                .iter()
                .enumerate()
                .map(|(p, peer)| (*peer, (0..missing.len()).map(|i| held[i] & (1 << p) != 0).collect()))
                .collect();
            let queues = distribute(&missing, &holders);
            for (i, wanted) in missing.iter().enumerate() {
                let asked: Vec<&PeerId> =
                    queues.iter().filter(|(_, q)| q.iter().any(|w| w.hash == wanted.hash)).map(|(p, _)| p).collect();
                let anybody = holders.values().any(|h| h[i]);
                prop_assert_eq!(asked.len(), usize::from(anybody));
                prop_assert!(asked.iter().all(|p| holders[p][i]));
            }
        }
    }
}
