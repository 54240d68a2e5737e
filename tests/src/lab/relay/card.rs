//! TAP cards: network cards whose other end is this process.

use std::{os::fd::AsFd as _, time::Duration};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::RelayError;
use crate::rack::move_into;

/// Frames that the kernel holds for this process to read.
const KERNEL_QUEUE: u32 = 4096;

/// Room for the largest frame that a card can carry.
pub(super) fn buffer() -> Vec<u8> {
    vec![0; (1 << 16) + 18]
}

/// A TAP card. It is gone when this is dropped.
pub(super) struct Card {
    device: SyncDevice,
}

impl std::fmt::Debug for Card {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Card").field("fd", &self.device.as_fd()).finish()
    }
}

impl Card {
    /// Makes a card in a namespace, down and without an address.
    pub(super) fn make(namespace: &str, name: &str) -> Result<Self, RelayError> {
        let (inside, card) = (namespace.to_owned(), name.to_owned());
        // A card lives in the namespace of the thread that makes it; its handle can be used from anywhere.
        let thread = std::thread::Builder::new().name("tap".to_owned()).spawn(move || {
            move_into(&inside)?;
            let builder = DeviceBuilder::new().name(card).layer(Layer::L2).enable(false);
            let device = builder.offload(false).tx_queue_len(KERNEL_QUEUE).build_sync()?;
            device.set_nonblocking(true)?;
            Ok(device)
        });
        let made = thread.map_err(RelayError::Thread)?.join();
        let made = made.unwrap_or_else(|_| Err(std::io::Error::other("the thread that makes it panicked")));
        let (card, namespace) = (name.to_owned(), namespace.to_owned());
        Ok(Self { device: made.map_err(|source| RelayError::Card { card, namespace, source })? })
    }

    /// The next frame that the kernel sends through the card, if one is there.
    pub(super) fn read<'a>(&self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        // Anything else than "not now" is a card that is down: it may come up again.
        let length = self.device.recv(buffer).ok()?;
        buffer.get(..length)
    }

    /// Hands the kernel a frame as if it had come by wire. False when the card is down or the kernel has no room.
    pub(super) fn write(&self, frame: &[u8]) -> bool {
        self.device.send(frame).is_ok()
    }

    /// Waits until there is a frame to read or the time is up.
    pub(super) fn wait(&self, most: Duration) {
        let timeout = Timespec {
            tv_sec: i64::try_from(most.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: most.subsec_nanos().into(),
        };
        let mut waiting = [PollFd::new(&self.device, PollFlags::IN)];
        let woken = poll(&mut waiting, Some(&timeout));
        // A card that is down reports an error at once: do not spin on it.
        let readable = waiting[0].revents() == PollFlags::IN || waiting[0].revents().is_empty();
        if woken.is_err() || !readable {
            std::thread::sleep(most.min(Duration::from_millis(1)));
        }
    }
}
