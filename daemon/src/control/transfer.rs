//! Moving blobs between devices: content-addressed, from several devices at once, resumed after a break, checked on
//! arrival. Weights travel on streams of their own and never touch the control link.
//!
//! On a stream the fetching side writes requests (32 bytes of hash, 8 bytes of offset, big endian) and the serving
//! side answers each with one status byte, 8 bytes of total length, and the bytes from the offset on.
//!
//! No blob is served or handed out before it has been read through once since the start. One that is damaged is deleted
//! then, and comes again from another device. A device that gives wrong bytes all the same is told to look again
//! (`LOOK_AGAIN`) and is not asked for that blob any more in the same fetch.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, Instant},
};

use mesh_inference::blobs::{BlobError, BlobStore, Hash};
use tokio::{sync::Semaphore, task::JoinSet};

mod claims;
mod courtesy;
mod patience;
mod pull;
mod serve;
mod share;
#[cfg(test)]
mod tests;

use claims::Claims;
use courtesy::Courtesy;
use patience::{Next, Patience};
use share::{Faults, Holder, Round, distribute};

use super::{
    peers::Peers,
    planning::BYTES_PER_S_UNMEASURED,
    rpc::{HAVE_MAX, HaveCall, HaveReply, METHOD_HAVE, decode, encode},
};
use crate::{
    data::UnderWay,
    net::{Net, PeerId},
};

/// Bytes moved at once; also what a stalled transfer is measured by.
const CHUNK: usize = 256 * 1024;
/// A transfer that moves nothing for this long is given up and tried elsewhere.
const STALL: Duration = Duration::from_secs(10);
/// Time for the answer to "which of these do you hold".
const HAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest blob whose length is not known before: a manifest or a profile.
const UNKNOWN_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Blobs that are read through at a time: a disk gives hardly more to more of them, and a small one need not wait for a
/// large one.
const CHECKS: usize = 2;
/// The bytes follow.
const STATUS_OK: u8 = 0;
/// There is no such blob here.
const STATUS_MISSING: u8 = 1;
/// The blob is being read through, which takes longer than the asker waits: ask again later.
const STATUS_CHECKING: u8 = 2;
/// The offset of a request that wants no bytes: what came was not the blob, so that the device should look again.
const LOOK_AGAIN: u64 = u64::MAX;

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
    /// Devices hold them, and are too busy or cannot be reached on a stream.
    #[error(
        "{missing} of {wanted} blobs did not come from the devices that hold them: those are busy with others or \
         still read their copies through, or cannot be reached (first: {first})"
    )]
    Stuck {
        /// How many are missing.
        missing: usize,
        /// How many were wanted.
        wanted: usize,
        /// One of them.
        first: Hash,
    },
    /// What devices hold is damaged.
    #[error(
        "{missing} of {wanted} blobs are not to be had: the copy of {first} on {peer} is damaged, and no other device \
         that is up has one; start a device that has the model, or deploy the model again"
    )]
    Damaged {
        /// How many are missing.
        missing: usize,
        /// How many were wanted.
        wanted: usize,
        /// One that came damaged.
        first: Hash,
        /// From this device (PeerId as text).
        peer: String,
    },
    /// The store refused: disk full, disk limit, I/O error.
    #[error("cannot store a blob")]
    Store(#[source] BlobError),
    /// A blob that is here can neither be read through nor deleted.
    #[error("cannot check a blob that is here")]
    Check(#[source] BlobError),
}

/// Fetches blobs from peers and serves them.
#[derive(Debug, Clone)]
pub struct Transfer {
    net: Net,
    store: BlobStore,
    peers: Peers,
    claims: Claims,
    /// Who in this process reads which blob through.
    checks: Claims,
    turns: Arc<Semaphore>,
    courtesy: Courtesy,
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
    /// On this network and store. On slow links, activations `under_way` go first.
    pub fn new(net: Net, store: BlobStore, peers: Peers, under_way: UnderWay) -> Self {
        let (claims, checks) = (Claims::default(), Claims::default());
        Self {
            net,
            store,
            peers,
            claims,
            checks,
            turns: Arc::new(Semaphore::new(CHECKS)),
            courtesy: Courtesy::new(under_way),
        }
    }

    /// The local store.
    pub fn store(&self) -> &BlobStore {
        &self.store
    }

    /// Answers which of these blobs are held here.
    pub fn have(&self, call: &HaveCall) -> HaveReply {
        HaveReply { held: call.hashes.iter().take(HAVE_MAX).map(|h| self.store.has(h)).collect() }
    }

    /// Makes sure that a blob that is here fits its name, before it is used. One that does not is gone afterwards.
    pub async fn check(&self, hash: Hash) -> Result<(), BlobError> {
        if self.store.is_sound(&hash) {
            return Ok(());
        }
        // Whoever waited for another one's check finds it done below, and reads nothing.
        let claim = self.checks.claim(hash).await;
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let (store, chore) = (self.store.clone(), self.net.chore());
        // All of these go along: the work ends even when nobody waits for it any more.
        let work = crate::background::spawn(move || {
            let found = store.check(&hash);
            drop((claim, turn, chore));
            found
        });
        work.await.map_err(|error| BlobError::Source(io::Error::other(error)))?
    }

    /// Checks those of the blobs that are here. What is damaged is missing afterwards.
    pub async fn check_held(&self, wanted: &[Wanted]) -> Result<(), FetchError> {
        for hash in wanted.iter().map(|wanted| wanted.hash).filter(|hash| self.store.has(hash)) {
            match self.check(hash).await {
                Ok(())
                | Err(BlobError::Mismatch { .. } | BlobError::Unreadable { .. } | BlobError::Missing(_)) => {}
                Err(error) => return Err(FetchError::Check(error)),
            }
        }
        Ok(())
    }

    /// Makes sure that all of `wanted` are in the local store, and sound. `progress` counts the bytes that have arrived.
    pub async fn fetch(&self, wanted: &[Wanted], progress: &AtomicU64) -> Result<(), FetchError> {
        let mut patience = Patience::new(Instant::now());
        let (mut faults, mut rates) = (Faults::default(), BTreeMap::new());
        loop {
            self.check_held(wanted).await?;
            let missing = self.missing(wanted);
            let Some(first) = missing.first().map(|w| w.hash) else { return Ok(()) };
            let mut holders = self.holders(&missing).await;
            for (peer, holder) in &mut holders {
                holder.bytes_per_s = rates.get(peer).copied().unwrap_or(holder.bytes_per_s);
            }
            let round = distribute(&missing, &holders, &faults);
            let is_held = !round.is_empty();
            rates.extend(self.fetch_from_all(round, progress, &mut faults).await?);
            let next = patience.next(is_held, self.arrived(wanted), Instant::now());
            let damaged = faults.first_damaged(&missing);
            let (wanted, missing) = (wanted.len(), missing.len());
            match (next, damaged) {
                // Not all devices at the same time.
                (Next::Again(pause), _) => {
                    tokio::time::sleep(pause.mul_f64(1.0 + rand::random::<f64>() / 2.0)).await
                }
                (Next::Missing, Some((peer, first))) => {
                    let peer = peer.to_string();
                    return Err(FetchError::Damaged { missing, wanted, first, peer });
                }
                (Next::Missing, None) => return Err(FetchError::Missing { missing, wanted, first }),
                (Next::Stuck, _) => return Err(FetchError::Stuck { missing, wanted, first }),
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
    async fn holders(&self, missing: &[Wanted]) -> BTreeMap<PeerId, Holder> {
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
                holders.insert(peer, Holder { held, bytes_per_s: self.rate_from(peer) });
            }
        }
        holders
    }

    /// Bytes per second of the way from a peer to this device, as the peer has measured it.
    fn rate_from(&self, peer: PeerId) -> f64 {
        let report = self.peers.get(&peer).and_then(|peer| peer.report);
        let link = report.and_then(|report| report.links.get(&self.net.local_peer().to_string()).copied());
        link.map_or(BYTES_PER_S_UNMEASURED, |link| link.bytes_per_s)
    }

    /// Plays a round: bytes per second of each holder, as seen in it or known before.
    async fn fetch_from_all(
        &self,
        round: Round,
        progress: &AtomicU64,
        faults: &mut Faults,
    ) -> Result<Vec<(PeerId, f64)>, FetchError> {
        let peers = round.peers();
        let round = &Mutex::new(round);
        let pulls =
            peers.into_iter().map(|peer| async move { (peer, self.fetch_from(peer, round, progress).await) });
        let mut failed = None;
        for (peer, pulls) in futures::future::join_all(pulls).await {
            for (hash, fault) in pulls.faults {
                faults.note(peer, hash, fault);
            }
            failed = failed.or(pulls.failed);
        }
        match failed {
            Some(error) => Err(FetchError::Store(error)),
            None => Ok(round.lock().unwrap_or_else(PoisonError::into_inner).rates().collect()),
        }
    }
}

fn stalled(_: tokio::time::error::Elapsed) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "nothing moved for 10 s")
}

fn request(hash: Hash, offset: u64) -> [u8; 40] {
    let mut request = [0u8; 40];
    request[..32].copy_from_slice(hash.as_bytes());
    request[32..].copy_from_slice(&offset.to_be_bytes());
    request
}

fn split_request(request: &[u8; 40]) -> (Hash, u64) {
    let mut hash = [0u8; 32];
    hash.copy_from_slice(&request[..32]);
    let mut offset = [0u8; 8];
    offset.copy_from_slice(&request[32..]);
    (Hash::from_bytes(hash), u64::from_be_bytes(offset))
}
