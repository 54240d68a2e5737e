//! A link that carries little.

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::MissedTickBehavior,
};

use super::*;

/// Bytes per second: a heartbeat waits for seconds behind what sockets on the way hold.
const RATE: usize = 100_000;
/// What goes through the throttle at a time.
const PIECE: usize = 2_000;

/// Listens, and passes on to `to` what comes, so many bytes per second; answers as they come. What an idle link has not
/// carried goes through at once later, or not, as `missed` says.
async fn throttled(to: SocketAddr, rate: usize, missed: MissedTickBehavior) -> SocketAddr {
    let listener = TcpListener::bind((to.ip(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(to).await.unwrap();
            let (mut from_near, mut to_near) = near.into_split();
            let (mut from_far, mut to_far) = far.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_far, &mut to_near).await });
            tokio::spawn(async move {
                let mut tick = tokio::time::interval(Duration::from_secs(1) * PIECE as u32 / rate as u32);
                tick.set_missed_tick_behavior(missed);
                let mut piece = [0; PIECE];
                while let Ok(count @ 1..) = from_near.read(&mut piece).await {
                    tick.tick().await;
                    if to_far.write_all(&piece[..count]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_peer_whose_link_is_full_of_data_lives() {
    let mut a = Node::start(&[]).await;
    let mut b = Node::start(&[throttled(a.address(), RATE, MissedTickBehavior::Burst).await]).await;
    a.until_up(b.id()).await;
    b.until_up(a.id()).await;
    let mut out = b.net.open(a.id(), Channel::Data).await.unwrap();
    tokio::spawn(async move { while out.write_all(&[7; 50_000]).await.is_ok() {} });
    let mut stream = a
        .until(|event| match event {
            NetEvent::Stream { stream, .. } => Some(stream),
            _ => None,
        })
        .await;
    // Longer than a silent peer is waited for, three times over.
    let mut data = vec![0; RATE * 3 * link::SILENCE.as_millis() as usize / 1000];
    timeout(PATIENCE, stream.read_exact(&mut data)).await.unwrap().expect("the peer was taken for dead");
    assert!(a.net.peers().borrow().contains(&b.id()));
}

/// `doing`'s outcome, while the other node hears of `peer` all the time.
async fn while_alive<T>(node: &mut Node, peer: PeerId, doing: impl Future<Output = T>) -> T {
    let lost = node.until(|event| match event {
        NetEvent::Late { .. } | NetEvent::PeerDown { .. } => Some(event),
        _ => None,
    });
    let done = tokio::select! {
        event = lost => panic!("the peer was not heard: {event:?}"),
        done = doing => done,
    };
    assert!(node.net.peers().borrow().contains(&peer));
    done
}

#[tokio::test]
async fn a_probe_does_not_fill_a_slow_link() {
    let mut a = Node::start(&[]).await;
    let mut b = Node::start(&[throttled(a.address(), RATE, MissedTickBehavior::Delay).await]).await;
    a.until_up(b.id()).await;
    b.until_up(a.id()).await;
    let (id, to) = (b.id(), a.id());
    let probe = while_alive(&mut a, id, b.net.probe(to)).await.unwrap();
    let rate = probe.bytes_per_s / RATE as f64;
    assert!((0.7..1.1).contains(&rate) && probe.sent <= 192 * 1024, "{probe:?}");
    assert!(!probe.processor_bound, "{probe:?}");
}

#[tokio::test]
async fn a_peer_whose_link_is_full_of_a_probe_lives() {
    let mut a = Node::start(&[]).await;
    let rate = RATE / 2;
    let mut b = Node::start(&[throttled(a.address(), rate, MissedTickBehavior::Burst).await]).await;
    a.until_up(b.id()).await;
    b.until_up(a.id()).await;
    let (id, to) = (b.id(), a.id());
    // What goes through at once now deceives the probe: it fills the link for twice as long as silence is borne.
    let idle = Duration::from_secs(2);
    let probe = while_alive(&mut a, id, async {
        tokio::time::sleep(idle).await;
        let begun = Instant::now();
        let probe = b.net.probe(to).await;
        assert!(begun.elapsed() > link::SILENCE, "the link was not filled");
        probe
    });
    println!("{:?}", probe.await);
}

#[tokio::test]
async fn a_peer_whose_link_is_full_of_a_large_message_lives() {
    let mut a = Node::start(&[]).await;
    let mut b = Node::start(&[throttled(a.address(), RATE / 2, MissedTickBehavior::Burst).await]).await;
    a.until_up(b.id()).await;
    b.until_up(a.id()).await;
    let body = Bytes::from(vec![7; 400_000]);
    b.net.send(a.id(), Topic::Raft, body.clone()).unwrap();
    let come = a.until(|event| match event {
        NetEvent::Late { .. } | NetEvent::PeerDown { .. } => panic!("the peer was not heard: {event:?}"),
        NetEvent::Message { body, .. } => Some(body),
        _ => None,
    });
    assert_eq!(come.await, body);
}

/// Listens, and passes on to `to` what comes while the gate is open; answers as they come.
async fn gated(to: SocketAddr) -> (SocketAddr, watch::Sender<bool>) {
    let listener = TcpListener::bind((to.ip(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (gate, is_open) = watch::channel(true);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(to).await.unwrap();
            let (mut from_near, mut to_near) = near.into_split();
            let (mut from_far, mut to_far) = far.into_split();
            let mut is_open = is_open.clone();
            tokio::spawn(async move { tokio::io::copy(&mut from_far, &mut to_near).await });
            tokio::spawn(async move {
                let mut piece = [0; PIECE];
                while let Ok(count @ 1..) = from_near.read(&mut piece).await {
                    if is_open.wait_for(|open| *open).await.is_err()
                        || to_far.write_all(&piece[..count]).await.is_err()
                    {
                        break;
                    }
                }
            });
        }
    });
    (address, gate)
}

#[tokio::test]
async fn a_peer_is_late_before_it_is_gone() {
    let mut a = Node::start(&[]).await;
    let (address, gate) = gated(a.address()).await;
    let b = Node::start(&[address]).await;
    a.until_up(b.id()).await;
    gate.send_replace(false);
    let late = a
        .until(|event| match event {
            NetEvent::Late { peer, is_late } => Some((peer, is_late)),
            NetEvent::PeerDown { .. } => panic!("gone before it was late"),
            _ => None,
        })
        .await;
    assert_eq!(late, (b.id(), true));
    assert!(a.until_down(b.id()).await, "it fell silent");
}
