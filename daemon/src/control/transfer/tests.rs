//! Devices with stores of their own, over real TCP on loopback.
#![allow(clippy::disallowed_methods, clippy::wildcard_enum_match_arm)]

use std::{fs, net::SocketAddr, path::PathBuf, sync::atomic::Ordering};

use tokio::time::timeout;

use super::{
    super::rpc::{HaveCall, METHOD_HAVE, decode, encode},
    *,
};
use crate::data::UnderWay;
use crate::net::{Channel, Identity, NetConfig, NetEvent, NetEvents};

/// Far above what any step needs on a loaded machine; only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

struct Device {
    transfer: Transfer,
    folder: tempfile::TempDir,
}

/// Such as a daemon does with what concerns blobs.
async fn serve(mut events: NetEvents, transfer: Transfer) {
    while let Some(event) = events.recv().await {
        match event {
            NetEvent::PeerUp { peer, address } => transfer.peers.up(peer, address.to_string()),
            NetEvent::PeerDown { peer, .. } => transfer.peers.down(peer),
            NetEvent::Call { method: METHOD_HAVE, body, reply, .. } => {
                let call: HaveCall = decode(&body).unwrap();
                let _ = reply.send(encode(&transfer.have(&call)));
            }
            NetEvent::Stream { channel: Channel::Blob, stream, .. } => {
                let transfer = transfer.clone();
                tokio::spawn(async move { transfer.serve(stream).await });
            }
            _ => {}
        }
    }
}

impl Device {
    async fn start(peers: &[SocketAddr]) -> Self {
        let (net, events) = Net::start(NetConfig {
            identity: Identity::ephemeral(),
            cluster_name: "test".to_owned(),
            cluster_key: [7; 32],
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            mdns: false,
            peers: peers.iter().map(ToString::to_string).collect(),
            interfaces: Vec::new(),
        })
        .await
        .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let transfer = Transfer::new(
            net,
            BlobStore::open(folder.path()).unwrap(),
            Peers::default(),
            UnderWay::default(),
        );
        tokio::spawn(serve(events, transfer.clone()));
        Self { transfer, folder }
    }

    fn id(&self) -> PeerId {
        self.transfer.net.local_peer()
    }

    fn path(&self, hash: Hash) -> PathBuf {
        self.folder.path().join(hash.to_string())
    }

    /// Leaves a file as an earlier process may have, good or not.
    fn leave(&self, hash: Hash, bytes: &[u8]) {
        fs::write(self.path(hash), bytes).unwrap();
    }

    /// Spoils a blob that this process knows, as a disk does: nothing shows it.
    fn spoil(&self, hash: Hash, bytes: &[u8]) {
        assert!(self.transfer.store.is_sound(&hash));
        let path = self.path(hash);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, bytes).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        assert!(self.transfer.store.is_sound(&hash), "it cannot know");
    }

    async fn fetch(&self, blobs: &[(Hash, Option<u64>)]) -> Result<u64, FetchError> {
        let wanted: Vec<Wanted> = blobs.iter().map(|&(hash, bytes)| Wanted { hash, bytes }).collect();
        let progress = AtomicU64::new(0);
        timeout(PATIENCE, self.transfer.fetch(&wanted, &progress)).await.expect("the fetch does not end")?;
        Ok(progress.load(Ordering::Relaxed))
    }

    /// The blob is here and is what it should be.
    fn assert_good(&self, hash: Hash) {
        assert!(self.transfer.store.is_sound(&hash));
        assert_eq!(Hash::of(&fs::read(self.path(hash)).unwrap()), hash);
    }

    async fn until_gone(&self, hash: Hash) {
        let gone = async {
            while self.transfer.store.has(&hash) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, gone).await.expect("the damaged blob stays");
    }
}

/// So many devices that see each other, by peer id: of holders with as much to do, the first is asked first.
async fn devices(count: usize) -> Vec<Device> {
    let mut devices: Vec<Device> = Vec::new();
    for _ in 0..count {
        let peers: Vec<SocketAddr> = devices.iter().map(|d| d.transfer.net.listen_address()).collect();
        devices.push(Device::start(&peers).await);
    }
    for device in &devices {
        let met = async {
            while device.transfer.peers.live().len() + 1 < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, met).await.expect("the devices do not meet");
    }
    devices.sort_by_key(Device::id);
    devices
}

/// A blob of some chunks, and the same with one bit flipped in the last.
fn blob() -> (Hash, Vec<u8>, Vec<u8>) {
    let good: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    (Hash::of(&good), good, bad)
}

#[tokio::test]
async fn a_damaged_copy_is_never_served_and_comes_again() {
    let devices = devices(3).await;
    let [p, q, r] = &devices[..] else { panic!() };
    let (hash, good, bad) = blob();
    p.leave(hash, &bad);
    q.leave(hash, &good);
    let wanted = [(hash, Some(good.len() as u64))];
    assert_eq!(r.fetch(&wanted).await.unwrap(), good.len() as u64);
    r.assert_good(hash);
    assert!(!p.transfer.store.has(&hash), "p was asked first, and found it");
    p.fetch(&wanted).await.unwrap();
    p.assert_good(hash);
}

#[tokio::test]
async fn a_shortened_copy_is_never_served_either() {
    let devices = devices(3).await;
    let [p, q, r] = &devices[..] else { panic!() };
    let (hash, good, _) = blob();
    p.leave(hash, &good[..1000]);
    q.leave(hash, &good);
    r.fetch(&[(hash, None)]).await.unwrap();
    r.assert_good(hash);
    assert!(!p.transfer.store.has(&hash));
}

#[tokio::test]
async fn who_gives_wrong_bytes_is_told_and_others_are_asked() {
    let devices = devices(3).await;
    let [p, q, r] = &devices[..] else { panic!() };
    let (hash, good, bad) = blob();
    for device in [p, q] {
        device.transfer.store.put(good.as_slice()).unwrap();
    }
    p.spoil(hash, &bad);
    let small = q.transfer.store.put(&b"small"[..]).unwrap().0;
    assert_eq!(
        r.fetch(&[(hash, Some(good.len() as u64)), (small, Some(5))]).await.unwrap(),
        good.len() as u64 + 5
    );
    r.assert_good(hash);
    r.assert_good(small);
    p.until_gone(hash).await;
}

#[tokio::test]
async fn who_gives_another_length_is_not_asked_again() {
    let devices = devices(2).await;
    let [p, r] = &devices[..] else { panic!() };
    let (short, _) = p.transfer.store.put(&b"short"[..]).unwrap();
    let error = r.fetch(&[(short, Some(1000))]).await.unwrap_err();
    let FetchError::Damaged { missing: 1, wanted: 1, first, peer } = error else { panic!("{error}") };
    assert_eq!((first, peer), (short, p.id().to_string()));
    assert_eq!(r.transfer.store.used_bytes(), 0);
    assert!(p.transfer.store.has(&short), "whoever looks again keeps what is good");
}

/// Longer than a device that asks may be kept waiting.
#[tokio::test]
async fn a_copy_that_is_read_through_for_long_is_asked_for_again() {
    let devices = devices(2).await;
    let [p, r] = &devices[..] else { panic!() };
    let (hash, good, _) = blob();
    p.leave(hash, &good);
    let checking = p.transfer.checks.claim(hash).await;
    let slow = async {
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert!(!r.transfer.store.has(&hash));
        drop(checking);
    };
    let wanted = [(hash, Some(good.len() as u64))];
    let (fetched, ()) = futures::future::join(r.fetch(&wanted), slow).await;
    assert_eq!(fetched.unwrap(), good.len() as u64);
    r.assert_good(hash);
}

#[tokio::test]
async fn nobody_waits_for_a_copy_that_is_read_through_while_there_is_another() {
    let devices = devices(3).await;
    let [p, q, r] = &devices[..] else { panic!() };
    let (hash, good, _) = blob();
    p.leave(hash, &good);
    q.leave(hash, &good);
    let _checking = p.transfer.checks.claim(hash).await;
    r.fetch(&[(hash, Some(good.len() as u64))]).await.unwrap();
    r.assert_good(hash);
    assert!(q.transfer.store.is_sound(&hash) && !p.transfer.store.is_sound(&hash), "it came from q");
}

#[tokio::test]
async fn a_fetch_says_that_the_only_copy_is_damaged() {
    let devices = devices(2).await;
    let [p, r] = &devices[..] else { panic!() };
    let (hash, good, bad) = blob();
    p.transfer.store.put(good.as_slice()).unwrap();
    p.spoil(hash, &bad);
    let small = p.transfer.store.put(&b"small"[..]).unwrap().0;
    let wanted = [(hash, Some(good.len() as u64)), (small, Some(5))];
    let error = r.fetch(&wanted).await.unwrap_err();
    assert!(
        matches!(error, FetchError::Damaged { missing: 1, wanted: 2, first, ref peer } if first == hash && *peer == p.id().to_string()),
        "{error}"
    );
    assert!(error.to_string().contains("deploy the model again"), "{error}");
    r.assert_good(small);
    p.until_gone(hash).await;
    assert!(matches!(r.fetch(&wanted).await, Err(FetchError::Missing { missing: 1, .. })));
    assert_eq!(r.transfer.store.used_bytes(), 5, "nothing is left of it");

    p.transfer.store.put(good.as_slice()).unwrap();
    r.fetch(&wanted).await.unwrap();
    r.assert_good(hash);
}

#[tokio::test]
async fn nobody_is_blamed_for_what_was_there_before() {
    let devices = devices(2).await;
    let [p, r] = &devices[..] else { panic!() };
    let (hash, good, _) = blob();
    p.transfer.store.put(good.as_slice()).unwrap();
    let mut left = r.transfer.store.put_expected(hash, good.len() as u64).unwrap();
    left.append(&[9; 5000]).unwrap();
    drop(left);
    assert_eq!(r.fetch(&[(hash, Some(good.len() as u64))]).await.unwrap(), good.len() as u64);
    r.assert_good(hash);
    assert_eq!(r.transfer.store.used_bytes(), good.len() as u64);
}

#[tokio::test]
async fn a_damaged_blob_of_its_own_is_fetched_again() {
    let devices = devices(2).await;
    let [p, r] = &devices[..] else { panic!() };
    let (hash, good, bad) = blob();
    p.transfer.store.put(good.as_slice()).unwrap();
    r.leave(hash, &bad);
    r.fetch(&[(hash, Some(good.len() as u64))]).await.unwrap();
    r.assert_good(hash);
    let wanted = Wanted { hash, bytes: None };
    r.leave(hash, &good[1..]);
    r.transfer.check_held(&[wanted]).await.unwrap();
    assert!(!r.transfer.store.has(&hash));
    let models = crate::control::models::Models::new(r.transfer.clone());
    let error = models.ensure(&hash.to_string()).await.unwrap_err();
    assert!(
        matches!(error, crate::control::models::ModelsError::Unreadable { what: "manifest", .. }),
        "{error}"
    );
    r.assert_good(hash);
}

#[tokio::test]
async fn many_who_need_a_blob_at_once_share_its_check() {
    let devices = devices(1).await;
    let (hash, good, bad) = blob();
    devices[0].leave(hash, &bad);
    let ask = || {
        let transfer = devices[0].transfer.clone();
        async move { transfer.check(hash).await }
    };
    let found = futures::future::join_all((0..20).map(|_| ask())).await;
    let mismatches = found.iter().filter(|found| matches!(found, Err(BlobError::Mismatch { .. }))).count();
    let missing = found.iter().filter(|found| matches!(found, Err(BlobError::Missing(_)))).count();
    assert_eq!((mismatches, missing), (1, 19), "one has read it");
    devices[0].leave(hash, &good);
    assert!(futures::future::join_all((0..20).map(|_| ask())).await.iter().all(Result::is_ok));
}
