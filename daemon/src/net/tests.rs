//! Whole nodes over real TCP on loopback.
#![expect(clippy::wildcard_enum_match_arm, reason = "a test waits for one event and lets the others pass")]

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::*;

mod slow;

const KEY: [u8; 32] = [7; 32];
/// Far above what any step needs on a loaded machine; only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(identity: &Identity, peers: &[SocketAddr]) -> NetConfig {
    NetConfig {
        identity: identity.clone(),
        cluster_name: "test".to_owned(),
        cluster_key: KEY,
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        mdns: false,
        peers: peers.iter().map(ToString::to_string).collect(),
        interfaces: Vec::new(),
    }
}

struct Node {
    net: Net,
    events: NetEvents,
}

impl Node {
    async fn start(peers: &[SocketAddr]) -> Self {
        Self::with(config(&Identity::ephemeral(), peers)).await
    }

    async fn with(config: NetConfig) -> Self {
        let (net, events) = Net::start(config).await.unwrap();
        Self { net, events }
    }

    fn id(&self) -> PeerId {
        self.net.local_peer()
    }

    fn address(&self) -> SocketAddr {
        self.net.listen_address()
    }

    /// Reads events until one fits; the others are lost.
    async fn until<T>(&mut self, mut pick: impl FnMut(NetEvent) -> Option<T>) -> T {
        timeout(PATIENCE, async {
            loop {
                let event = self.events.recv().await.expect("the network task ended");
                if let Some(found) = pick(event) {
                    return found;
                }
            }
        })
        .await
        .expect("the event did not come")
    }

    async fn until_up(&mut self, who: PeerId) -> SocketAddr {
        self.until(|event| match event {
            NetEvent::PeerUp { peer, address } if peer == who => Some(address),
            _ => None,
        })
        .await
    }

    async fn until_down(&mut self, who: PeerId) -> bool {
        self.until(|event| match event {
            NetEvent::PeerDown { peer, silent } if peer == who => Some(silent),
            _ => None,
        })
        .await
    }

    async fn until_refused(&mut self) -> (String, String) {
        self.until(|event| match event {
            NetEvent::Refused { whom, why, .. } => Some((whom, why)),
            _ => None,
        })
        .await
    }
}

async fn pair() -> (Node, Node) {
    let mut a = Node::start(&[]).await;
    let mut b = Node::start(&[a.address()]).await;
    assert_eq!(a.until_up(b.id()).await, b.address());
    assert_eq!(b.until_up(a.id()).await, a.address());
    (a, b)
}

#[tokio::test]
async fn three_nodes_meet_and_talk_in_order() {
    let mut a = Node::start(&[]).await;
    let mut b = Node::start(&[a.address()]).await;
    let mut c = Node::start(&[a.address(), b.address()]).await;
    for (node, others) in [(&mut a, [b.id(), c.id()])] {
        let mut missing = BTreeSet::from(others);
        while !missing.is_empty() {
            let up = node
                .until(|event| match event {
                    NetEvent::PeerUp { peer, .. } => Some(peer),
                    _ => None,
                })
                .await;
            assert!(missing.remove(&up), "up twice");
        }
    }
    let mut peers = b.net.peers();
    let expected = BTreeSet::from([a.id(), c.id()]);
    timeout(PATIENCE, peers.wait_for(|up| *up == expected)).await.unwrap().unwrap();
    b.until_up(c.id()).await;
    let (sender, receiver) = (c.net.clone(), b.id());
    c.until_up(b.id()).await;
    let sending = tokio::spawn(async move {
        for number in 0..2000_u32 {
            let body = Bytes::copy_from_slice(&number.to_le_bytes());
            while let Err(error) = sender.send(receiver, Topic::Raft, body.clone()) {
                assert_eq!(error, NetError::Full);
                tokio::task::yield_now().await;
            }
        }
    });
    for number in 0..2000_u32 {
        let (peer, topic, body) = b
            .until(|event| match event {
                NetEvent::Message { peer, topic, body } => Some((peer, topic, body)),
                _ => None,
            })
            .await;
        assert_eq!((peer, topic), (c.id(), Topic::Raft));
        assert_eq!(body, Bytes::copy_from_slice(&number.to_le_bytes()));
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn reports_and_round_trip() {
    let (mut a, b) = pair().await;
    b.net.set_report(Bytes::from_static(b"hello"));
    let from = a
        .until(|event| match event {
            NetEvent::Report { peer, body, .. } if body == "hello" => Some(peer),
            _ => None,
        })
        .await;
    assert_eq!(from, b.id());
    let link = a.net.link(b.id()).unwrap();
    assert_eq!(link.address, b.address());
    assert!(link.rtt.is_some_and(|rtt| rtt < Duration::from_secs(1)), "{link:?}");
}

#[tokio::test]
async fn calls_are_answered_refused_or_time_out() {
    let (mut a, b) = pair().await;
    let answering = tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (method, body, reply) = a
                .until(|event| match event {
                    NetEvent::Call { method, body, reply, .. } => Some((method, body, reply)),
                    _ => None,
                })
                .await;
            match method {
                1 => drop(reply.send(body)),
                2 => drop(reply),
                _ => kept.push(reply),
            }
        }
    });
    let a_id = *b.net.peers().borrow().first().unwrap();
    let big = Bytes::from(vec![3; MAX_CALL]);
    assert_eq!(b.net.call(a_id, 1, big.clone(), PATIENCE).await.unwrap(), big);
    let too_big = Bytes::from(vec![3; MAX_CALL + 1]);
    assert_eq!(b.net.call(a_id, 1, too_big, PATIENCE).await, Err(NetError::TooLarge));
    assert_eq!(b.net.call(a_id, 2, Bytes::new(), PATIENCE).await, Err(NetError::Closed));
    let soon = Duration::from_millis(50);
    assert_eq!(b.net.call(a_id, 3, Bytes::new(), soon).await, Err(NetError::Timeout));
    let unknown = PeerId::random();
    assert_eq!(b.net.call(unknown, 1, Bytes::new(), soon).await, Err(NetError::NotConnected));
    let waiting = tokio::spawn({
        let net = b.net.clone();
        async move { net.call(a_id, 3, Bytes::new(), PATIENCE).await }
    });
    // The answerer dies: whoever waits for it is told.
    answering.abort();
    let _ = answering.await;
    let mut down = b.net.clone().peers();
    drop(b.events);
    let call = timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert!(matches!(call, Err(NetError::Closed | NetError::NotConnected)), "{call:?}");
    timeout(PATIENCE, down.wait_for(BTreeSet::is_empty)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_carry_100_mb_there_and_back() {
    let (mut a, b) = pair().await;
    let echo = tokio::spawn(async move {
        let mut stream = a
            .until(|event| match event {
                NetEvent::Stream { channel: Channel::Data, stream, .. } => Some(stream),
                _ => None,
            })
            .await;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let read = stream.read(&mut buffer).await.unwrap();
            if read == 0 {
                break;
            }
            stream.write_all(&buffer[..read]).await.unwrap();
        }
        stream.shutdown().await.unwrap();
        a
    });
    let a_id = *b.net.peers().borrow().first().unwrap();
    let stream = b.net.open(a_id, Channel::Data).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let block: Vec<u8> = (0..1_000_003_u32).map(|i| i.to_le_bytes()[(i % 3) as usize]).collect();
    let sent = block.clone();
    let start = Instant::now();
    let sending = tokio::spawn(async move {
        for _ in 0..100 {
            writer.write_all(&sent).await.unwrap();
        }
        writer.shutdown().await.unwrap();
    });
    let mut received = vec![0; block.len()];
    for _ in 0..100 {
        timeout(PATIENCE, reader.read_exact(&mut received)).await.unwrap().unwrap();
        assert!(received == block);
    }
    assert_eq!(reader.read(&mut received).await.unwrap(), 0);
    println!("100 MB there and back in {:?}", start.elapsed());
    sending.await.unwrap();
    echo.await.unwrap();
}

#[tokio::test]
async fn many_streams_at_once_all_arrive() {
    let (mut a, b) = pair().await;
    let a_id = a.id();
    let net = b.net.clone();
    let opening = tokio::spawn(async move {
        let opens = (0..40_u8).map(|number| {
            let net = net.clone();
            async move {
                let mut stream = net.open(a_id, Channel::Blob).await.unwrap();
                stream.write_all(&[number]).await.unwrap();
                stream.shutdown().await.unwrap();
                stream
            }
        });
        futures::future::join_all(opens).await
    });
    let mut seen = BTreeSet::new();
    while seen.len() < 40 {
        let mut stream = a
            .until(|event| match event {
                NetEvent::Stream { channel: Channel::Blob, stream, .. } => Some(stream),
                _ => None,
            })
            .await;
        assert!(seen.insert(stream.read_u8().await.unwrap()));
    }
    opening.await.unwrap();
}

#[tokio::test]
async fn wrong_key_is_refused_on_both_sides_without_a_hot_loop() {
    let mut a = Node::start(&[]).await;
    let stranger = NetConfig { cluster_key: [8; 32], ..config(&Identity::ephemeral(), &[a.address()]) };
    let mut b = Node::with(stranger).await;
    let (whom, why) = a.until_refused().await;
    assert!(whom.contains(&b.id().to_string()), "{whom}");
    assert!(why.contains("cluster key"), "{why}");
    let (whom, why) = b.until_refused().await;
    assert!(whom.contains(&a.id().to_string()), "{whom}");
    assert!(why.contains("cluster key"), "{why}");
    assert!(a.net.peers().borrow().is_empty() && b.net.peers().borrow().is_empty());
}

#[tokio::test]
async fn wrong_name_is_refused() {
    let mut a = Node::start(&[]).await;
    let stranger =
        NetConfig { cluster_name: "other".to_owned(), ..config(&Identity::ephemeral(), &[a.address()]) };
    let _b = Node::with(stranger).await;
    let (_, why) = a.until_refused().await;
    assert!(why.contains("another name"), "{why}");
}

#[tokio::test]
async fn removed_peer_is_disconnected_and_refused() {
    let (mut a, mut b) = pair().await;
    a.net.set_removed(BTreeSet::from([b.id()]));
    a.until_down(b.id()).await;
    b.until_down(a.id()).await;
    let (_, why) = b.until_refused().await;
    assert!(why.contains("this device was removed"), "{why}");
    let (_, why) = a.until_refused().await;
    assert!(why.contains("was removed"), "{why}");
    // Taken back, it is admitted again.
    a.net.set_removed(BTreeSet::new());
    a.until_up(b.id()).await;
}

#[tokio::test]
async fn a_dead_peer_is_noticed_and_its_restart_on_another_port_too() {
    let mut a = Node::start(&[]).await;
    let identity = Identity::ephemeral();
    let peers = [a.address()];
    let first = Runtime::start(config(&identity, &peers));
    let b = identity.peer_id();
    a.until_up(b).await;
    first.kill();
    assert!(!a.until_down(b).await);
    let second = Runtime::start(config(&identity, &peers));
    a.until_up(b).await;
    second.kill();
    a.until_down(b).await;
}

#[tokio::test]
async fn a_known_address_is_dialled() {
    let mut a = Node::start(&[]).await;
    let mut b = Node::start(&[]).await;
    a.net.set_known(vec![(b.id(), b.address())]);
    b.until_up(a.id()).await;
    a.until_up(b.id()).await;
}

#[tokio::test]
async fn shutdown_ends_events_and_tells_peers() {
    let (mut a, mut b) = pair().await;
    b.net.shutdown().await;
    let a_id = a.id();
    assert!(!a.until_down(b.id()).await);
    assert!(!b.until_down(a_id).await);
    timeout(PATIENCE, async { while b.events.recv().await.is_some() {} }).await.unwrap();
    assert_eq!(b.net.send(a_id, Topic::Raft, Bytes::new()), Err(NetError::NotConnected));
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let a = Node::start(&[]).await;
    let taken = NetConfig { listen: a.address(), ..config(&Identity::ephemeral(), &[]) };
    let error = Net::start(taken).await.unwrap_err();
    assert!(matches!(error, NetStartError::PortTaken { .. }), "{error}");
    assert!(error.to_string().contains(&a.address().to_string()), "{error}");
}

/// A node on a runtime of its own, which can be killed or frozen like a process.
struct Runtime {
    thread: std::thread::JoinHandle<()>,
    freeze: std::sync::mpsc::SyncSender<Option<Duration>>,
}

impl Runtime {
    fn start(config: NetConfig) -> Self {
        let (freeze, orders) = std::sync::mpsc::sync_channel::<Option<Duration>>(1);
        let node = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (_net, mut events) = runtime.block_on(Net::start(config)).unwrap();
            loop {
                runtime.block_on(async {
                    let _ = timeout(Duration::from_millis(10), events.recv()).await;
                });
                match orders.try_recv() {
                    // A current-thread runtime stands still while nobody drives it.
                    Ok(Some(pause)) => std::thread::sleep(pause),
                    Ok(None) | Err(std::sync::mpsc::TryRecvError::Disconnected) => break,
                    Err(std::sync::mpsc::TryRecvError::Empty) => {}
                }
            }
        };
        let thread = std::thread::Builder::new().name("node".to_owned()).spawn(node).unwrap();
        Self { thread, freeze }
    }

    fn freeze(&self, pause: Duration) {
        self.freeze.send(Some(pause)).unwrap();
    }

    fn kill(self) {
        self.freeze.send(None).unwrap();
        self.thread.join().unwrap();
    }
}

#[tokio::test]
async fn a_frozen_peer_is_silent_and_comes_back() {
    let mut a = Node::start(&[]).await;
    let identity = Identity::ephemeral();
    let b = Runtime::start(config(&identity, &[a.address()]));
    a.until_up(identity.peer_id()).await;
    b.freeze(Duration::from_secs(5));
    assert!(a.until_down(identity.peer_id()).await);
    a.until_up(identity.peer_id()).await;
    b.kill();
}

#[tokio::test]
async fn our_own_stall_is_not_taken_for_their_silence() {
    let mut a = Node::start(&[]).await;
    let identity = Identity::ephemeral();
    let b = Runtime::start(config(&identity, &[a.address()]));
    a.until_up(identity.peer_id()).await;
    // The other side rightly calls us silent after 2.5 s, so stall for less than that in the sum of what it sees,
    // and for longer than our own limit in two parts.
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(1800));
        let quiet = timeout(Duration::from_millis(600), a.until_down(identity.peer_id())).await;
        assert!(quiet.is_err(), "declared down after our own stall");
    }
    b.kill();
}

#[tokio::test]
async fn a_slow_owner_causes_no_death_and_fills_queues_to_a_bound() {
    let (mut a, b) = pair().await;
    let a_id = a.id();
    // Nobody reads a's events: queues fill up to the sender's.
    let body = Bytes::from(vec![1; 100_000]);
    let mut sent = 0_u32;
    let full = timeout(PATIENCE, async {
        let mut fulls = 0;
        while fulls < 50 {
            match b.net.send(a_id, Topic::Raft, body.clone()) {
                Ok(()) => sent += 1,
                Err(NetError::Full) => {
                    fulls += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(other) => panic!("{other}"),
            }
        }
    });
    full.await.unwrap();
    assert!(b.net.peers().borrow().contains(&a_id));
    assert!(a.net.peers().borrow().contains(&b.id()));
    let link = b.net.link(a_id).unwrap();
    assert!(link.rtt.is_some_and(|rtt| rtt < Duration::from_secs(2)), "{link:?}");
    // Every message that was taken arrives once the owner reads.
    for _ in 0..sent {
        a.until(|event| match event {
            NetEvent::Message { .. } => Some(()),
            NetEvent::PeerDown { .. } => panic!("died"),
            _ => None,
        })
        .await;
    }
}

#[tokio::test]
async fn hostile_bytes_on_the_control_link_end_only_that_session() {
    let (mut a, b) = pair().await;
    let a_id = a.id();
    for bytes in [&[0xFF; 64][..], &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF][..]] {
        let mut stream = b.net.open_raw(a_id, streams::CONTROL).await.unwrap();
        let _ = futures::AsyncWriteExt::write_all(&mut stream, bytes).await;
        let _ = futures::AsyncWriteExt::close(&mut stream).await;
        // The second claims a new session of b: a drops the old one, finds the rest missing, and starts again.
    }
    timeout(PATIENCE, async {
        let body = Bytes::from_static(b"still here");
        loop {
            if b.net.send(a_id, Topic::Founding, body.clone()).is_ok() {
                let got = timeout(
                    Duration::from_secs(1),
                    a.until(|event| match event {
                        NetEvent::Message { body, .. } => Some(body),
                        _ => None,
                    }),
                )
                .await;
                if got.is_ok_and(|got| got == body) {
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_full_queue_says_so_at_once() {
    let (_a, b) = pair().await;
    let a_id = *b.net.peers().borrow().first().unwrap();
    let mut full = false;
    // Without an await in between nothing leaves the queue.
    for _ in 0..1000 {
        full |= b.net.send(a_id, Topic::Raft, Bytes::new()) == Err(NetError::Full);
    }
    assert!(full);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bandwidth_is_probed_with_a_limit() {
    let (_a, b) = pair().await;
    let a_id = *b.net.peers().borrow().first().unwrap();
    let rate = b.net.probe(a_id).await.unwrap().bytes_per_s;
    println!("probe: {:.0} MB/s", rate / 1e6);
    assert!(rate > 1e5, "{rate}");
    assert_eq!(b.net.probe(a_id).await.unwrap_err(), NetError::Full);
    let sent = b.net.costs_per_byte().0.expect("a probe shows what sending costs");
    assert!(sent > 0.0 && sent < 1e-3, "{sent} s per byte");
}
