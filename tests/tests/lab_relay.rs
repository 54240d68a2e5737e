//! The relay between a device's namespace and a switch's. Needs root.

#![allow(clippy::print_stderr, reason = "tests say what they skip and measure")]

use std::{
    collections::HashSet,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use mesh_tests::{
    lab::relay::{Impairment, Relay, RelayHandle, RelaySpec, netem_available},
    rack::{Namespace, is_root},
};

const PATIENCE: Duration = Duration::from_secs(30);
const HERE: &str = "10.79.0.1";
const THERE: &str = "10.79.0.2";

/// A device behind a relay and one behind a plain pair of cards, on one bridge. The relay goes first.
struct Link {
    relay: Option<Relay>,
    here: Namespace,
    there: Namespace,
    switch: Namespace,
}

impl Link {
    fn new(what: &str, impairment: Impairment) -> Option<Self> {
        let mut link = Self::without_relay(what)?;
        let spec = RelaySpec { impairment, ..link.spec() };
        link.relay = Some(Relay::start(&spec).expect("the relay starts"));
        link.set_up();
        Some(link)
    }

    fn without_relay(what: &str) -> Option<Self> {
        if !is_root() || !Path::new("/dev/net/tun").exists() {
            eprintln!("SKIPPED without root and /dev/net/tun: {what}");
            return None;
        }
        let unique = format!("relay{}{}", std::process::id(), what.len());
        let make = |role: &str| Namespace::create(&format!("{unique}-{role}"));
        let (switch, here, there) = (make("sw"), make("a"), make("b"));
        switch.ip(&["link", "add", "br0", "type", "bridge", "mcast_snooping", "0"]);
        switch.ip(&["link", "set", "br0", "up"]);
        switch.plug(&there, "pb", &format!("{THERE}/24"));
        Some(Self { relay: None, here, there, switch })
    }

    fn spec(&self) -> RelaySpec {
        RelaySpec { seed: 5, ..RelaySpec::new(self.here.name(), self.switch.name(), "pa") }
    }

    fn set_up(&self) {
        self.switch.ip(&["link", "set", "pa", "master", "br0", "up"]);
        self.here.ip(&["addr", "add", &format!("{HERE}/24"), "dev", "eth0"]);
        self.here.ip(&["link", "set", "eth0", "up"]);
    }

    fn handle(&self) -> RelayHandle {
        self.relay.as_ref().expect("a relay in this process").handle()
    }

    /// Echoes datagrams, each in the order of its coming, until one that says "end".
    fn echo(&self) -> std::thread::JoinHandle<()> {
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let echo = self.there.spawn(move || {
            let socket = UdpSocket::bind((THERE, 7)).expect("a socket");
            socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
            ready.send(()).expect("somebody waits");
            let mut buffer = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                socket.send_to(&buffer[..length], from).expect("the way back is open");
                if &buffer[..length] == b"end" {
                    return;
                }
            }
        });
        is_ready.recv_timeout(PATIENCE).expect("the echo is ready");
        echo
    }

    /// Runs `work` on the device behind the relay, with a socket joined to the echo.
    fn ask<T: Send + 'static>(&self, work: impl FnOnce(&UdpSocket) -> T + Send + 'static) -> T {
        self.here.enter(move || {
            let socket = UdpSocket::bind((HERE, 0)).expect("a socket");
            socket.connect((THERE, 7)).expect("an address");
            work(&socket)
        })
    }
}

fn number(socket: &UdpSocket, limit: Duration) -> Option<u32> {
    let mut buffer = [0; 64];
    socket.set_read_timeout(Some(limit)).expect("a limit");
    let length = socket.recv(&mut buffer).ok()?;
    Some(u32::from_be_bytes(buffer[..length].try_into().ok()?))
}

/// Asks until an echo comes back. Returns how long the last try took.
fn ping(socket: &UdpSocket, from: u32) -> Duration {
    let end = Instant::now() + PATIENCE;
    for id in from.. {
        assert!(Instant::now() < end, "no echo within {PATIENCE:?}");
        let start = Instant::now();
        socket.send(&id.to_be_bytes()).expect("it is sent");
        while let Some(came) = number(socket, Duration::from_millis(300)) {
            if came == id {
                return start.elapsed();
            }
        }
    }
    unreachable!("the numbers do not end")
}

fn delayed(delay_ms: f64) -> Impairment {
    Impairment { delay_ms, ..Impairment::default() }
}

#[test]
fn a_delay_is_added_and_can_be_changed_and_a_cut_healed() {
    let Some(link) = Link::new("a delay is added and can be changed", delayed(20.0)) else { return };
    let echo = link.echo();
    let handle = link.handle();
    link.ask(move |socket| {
        // Neighbours find each other first.
        ping(socket, 0);
        for delay_ms in [20.0, 50.0, 0.0] {
            handle.set(delayed(delay_ms)).expect("it is in range");
            ping(socket, 100);
            let mut times: Vec<Duration> = (0..50).map(|n| ping(socket, 1000 * (n + 1))).collect();
            times.sort();
            eprintln!(
                "delay {delay_ms} ms: round trips {:?} to {:?}, median {:?}",
                times[0], times[49], times[25]
            );
            assert!(times[0].as_secs_f64() * 1e3 >= delay_ms, "no echo comes early: {:?}", times[0]);
            // The least of many: a busy host makes some of them late, not all.
            assert!(times[0].as_secs_f64() * 1e3 < delay_ms + 6.0, "{:?}", times[0]);
        }
        handle.set(Impairment { cut: true, ..Impairment::default() }).expect("it is in range");
        socket.send(&7u32.to_be_bytes()).expect("it is sent");
        assert_eq!(number(socket, Duration::from_millis(200)), None, "nothing passes a cut");
        assert!(handle.counts().cut > 0, "{:?}", handle.counts());
        handle.set(Impairment::default()).expect("it is in range");
        ping(socket, 1_000_000);
        socket.send(b"end").expect("it is sent");
    });
    echo.join().expect("the echo ends");
}

#[test]
fn losses_doubles_and_order_are_as_asked() {
    const MANY: u32 = 2000;
    let Some(link) = Link::new("losses and doubles are as asked", Impairment::default()) else { return };
    let echo = link.echo();
    let handle = link.handle();
    let burst = move |socket: &UdpSocket, link: Impairment, base: u32| -> Vec<u32> {
        handle.set(Impairment::default()).expect("it is in range");
        ping(socket, base + MANY);
        handle.set(link).expect("it is in range");
        let mut came = Vec::new();
        for id in base..base + MANY {
            socket.send(&id.to_be_bytes()).expect("it is sent");
            // Few enough are under way that no buffer overflows.
            if id % 50 == 0 {
                came.extend(std::iter::from_fn(|| number(socket, Duration::from_millis(50))));
            }
        }
        came.extend(std::iter::from_fn(|| number(socket, Duration::from_millis(500))));
        came.retain(|id| (base..base + MANY).contains(id));
        came
    };
    link.ask(move |socket| {
        let lossy = burst(socket, Impairment { loss: 0.3, ..Impairment::default() }, 0);
        let lost = 1.0 - lossy.len() as f64 / f64::from(MANY);
        assert!((0.25..=0.35).contains(&lost), "{lost}");
        let jittery = burst(socket, Impairment { jitter_ms: 5.0, ..delayed(10.0) }, 10_000);
        assert_eq!(jittery.len(), MANY as usize, "jitter loses nothing");
        assert!(jittery.is_sorted(), "jitter keeps the order");
        let twice = burst(socket, Impairment { duplicate: 0.2, ..Impairment::default() }, 20_000);
        let distinct = twice.iter().collect::<HashSet<_>>().len();
        let doubled = twice.len() as f64 / distinct as f64 - 1.0;
        assert!(distinct == MANY as usize && (0.15..=0.25).contains(&doubled), "{distinct}, {doubled}");
        let mixed = burst(socket, Impairment { reorder: 0.2, ..delayed(10.0) }, 30_000);
        assert!(mixed.len() == MANY as usize && !mixed.is_sorted(), "{} came", mixed.len());
        eprintln!("lost {:.1} % of 30 %, doubled {:.1} % of 20 %", lost * 100.0, doubled * 100.0);
        socket.send(b"end").expect("it is sent");
    });
    echo.join().expect("the echo ends");
}

/// Sends for a while by TCP and returns bits per second, counted where they arrive.
fn tcp_rate(from: &Namespace, to: &Namespace, address: &'static str) -> f64 {
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    let sink = to.spawn(move || {
        let listener = TcpListener::bind((address, 9)).expect("a socket");
        ready.send(()).expect("somebody waits");
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let (start, mut bytes, mut buffer) = (Instant::now(), 0, vec![0; 1 << 16]);
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            bytes += length;
        }
        bytes as f64 * 8.0 / start.elapsed().as_secs_f64()
    });
    is_ready.recv_timeout(PATIENCE).expect("the sink is ready");
    from.enter(move || {
        let mut stream = TcpStream::connect((address, 9)).expect("a connection");
        let (end, block) = (Instant::now() + Duration::from_millis(1500), vec![0; 1 << 16]);
        while Instant::now() < end {
            stream.write_all(&block).expect("it is sent");
        }
    });
    sink.join().expect("the sink ends")
}

#[test]
fn tcp_passes_and_tbf_limits_both_directions() {
    let Some(link) = Link::new("tcp passes and tbf limits", Impairment::default()) else { return };
    let both = || {
        let up = tcp_rate(&link.here, &link.there, THERE) / 1e6;
        (up, tcp_rate(&link.there, &link.here, HERE) / 1e6)
    };
    let (up, down) = both();
    eprintln!("TCP through the relay: {up:.0} Mbit/s from the device, {down:.0} Mbit/s to it");
    link.handle().set(delayed(20.0)).expect("it is in range");
    let (up, down) = both();
    eprintln!(
        "with 20 ms: {up:.0} Mbit/s from the device, {down:.0} Mbit/s to it; {:?}",
        link.handle().counts()
    );
    link.handle().set(Impairment::default()).expect("it is in range");
    for (namespace, card) in [(&link.here, "eth0"), (&link.switch, "pa")] {
        let limit = ["-n", namespace.name(), "qdisc", "add", "dev", card, "root", "tbf"];
        let rate = ["rate", "20mbit", "burst", "32k", "latency", "100ms"];
        let output = Command::new("tc").args(limit).args(rate).output().expect("tc runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let (up, down) = both();
    eprintln!("with tbf of 20 Mbit/s on both ends: {up:.1} and {down:.1} Mbit/s");
    assert!(up < 21.0 && down < 21.0, "the rate is kept");
    assert!(up > 0.0 && down > 0.0);
}

#[test]
fn netem_is_found_or_not_and_nothing_is_left() {
    let found = netem_available();
    eprintln!("netem: {found}");
    let list = Command::new("ip").args(["netns", "list"]).output();
    let left = list.map(|o| String::from_utf8_lossy(&o.stdout).contains("mesh-netem-")).unwrap_or_default();
    assert!(!left, "the namespace of the probe is gone");
    if is_root() {
        let spec = RelaySpec::new("no-such-namespace", "nor-such", "p1");
        let error = Relay::start(&spec).expect_err("no namespace");
        assert!(error.to_string().contains("no-such-namespace"), "{error}");
    }
    let spec = RelaySpec { queue_frames: 0, ..RelaySpec::new("a", "b", "c") };
    assert!(Relay::start(&spec).is_err(), "a queue of none");
    let impossible = Impairment { loss: 1.5, ..Impairment::default() };
    assert!(Relay::start(&RelaySpec { impairment: impossible, ..RelaySpec::new("a", "b", "c") }).is_err());
}
