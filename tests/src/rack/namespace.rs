//! Network namespaces: made, joined, entered, removed.

use std::{fs::File, os::fd::AsFd as _, process::Command, thread::JoinHandle};

/// Whether this process may make network namespaces.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A network namespace; one that was made here goes away on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    is_made_here: bool,
}

impl Namespace {
    /// Makes one, with its loopback up.
    pub fn create(name: &str) -> Self {
        run("ip", &["netns", "add", name]);
        let namespace = Self { name: name.to_owned(), is_made_here: true };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    /// One that somebody else has made and will remove.
    pub fn existing(name: &str) -> Self {
        Self { name: name.to_owned(), is_made_here: false }
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` inside it; panics when that fails.
    pub fn ip(&self, args: &[&str]) {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend_from_slice(args);
        run("ip", &all);
    }

    /// Joins `device` to this namespace's bridge `br0` by a pair of virtual cards: `port` here, `eth0` there.
    pub fn plug(&self, device: &Self, port: &str, address: &str) {
        self.ip(&["link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", device.name()]);
        self.ip(&["link", "set", port, "master", "br0", "up"]);
        device.ip(&["addr", "add", address, "dev", "eth0"]);
        device.ip(&["link", "set", "eth0", "up"]);
        device.ip(&["route", "add", "224.0.0.0/4", "dev", "eth0"]);
    }

    /// Runs `work` inside the namespace and waits for it.
    pub fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self.spawn(work).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs `work` on a thread of its own inside the namespace.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let name = self.name.clone();
        let thread = std::thread::Builder::new().name("in-namespace".into()).spawn(move || {
            move_into(&name).expect("entering the namespace");
            work()
        });
        thread.expect("a thread")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.is_made_here {
            let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
        }
    }
}

/// Moves the calling thread, for good, into the network namespace that `ip netns` knows by this name.
pub fn move_into(name: &str) -> std::io::Result<()> {
    let file = File::open(format!("/run/netns/{name}"))?;
    let kind = rustix::thread::LinkNameSpaceType::Network;
    rustix::thread::move_into_link_name_space(file.as_fd(), Some(kind)).map_err(Into::into)
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().expect("iproute2 is installed");
    assert!(
        output.status.success(),
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}
