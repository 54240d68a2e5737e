//! Hands the events of a session to their owner.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use libp2p::{PeerId, Stream};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::super::{Channel, NetEvent, NetStream, link::Pulse};

/// An event of the session, with its share of the inbox.
pub(super) struct Queued {
    pub(super) event: NetEvent,
    /// Freed when the event has been handed over.
    #[expect(dead_code, reason = "held, not read")]
    pub(super) budget: Option<OwnedSemaphorePermit>,
}

/// What the heartbeats of the peer have told.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// The newest report.
    pub(super) report: Bytes,
    /// Counts reports.
    pub(super) number: u64,
    /// Round trip, smoothed.
    pub(super) rtt: Duration,
    /// Jobs that wait or run there.
    pub(super) jobs: u32,
}

/// Hands the events of one session to their owner, in order, and as slowly as the owner likes.
pub(super) struct Forwarder {
    pub(super) peer: PeerId,
    pub(super) inbox: mpsc::Receiver<Queued>,
    pub(super) streams: mpsc::Receiver<(Channel, Stream)>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) beats: watch::Receiver<Told>,
    pub(super) late: watch::Receiver<bool>,
    pub(super) events: mpsc::Sender<NetEvent>,
    pub(super) silent: Arc<AtomicBool>,
}

impl Forwarder {
    pub(super) async fn run(mut self) {
        let Some(Queued { event: up, .. }) = self.inbox.recv().await else {
            return;
        };
        let mut next = up;
        let mut reported = 0;
        // Fails only when the owner is gone.
        while self.events.send(next).await.is_ok() {
            next = tokio::select! {
                queued = self.inbox.recv() => match queued {
                    Some(queued) => queued.event,
                    None => break,
                },
                Some((channel, stream)) = self.streams.recv() => NetEvent::Stream {
                    peer: self.peer,
                    channel,
                    stream: NetStream::new(stream, self.pulse.clone()),
                },
                Ok(()) = self.late.changed() => {
                    NetEvent::Late { peer: self.peer, is_late: *self.late.borrow_and_update() }
                }
                Ok(()) = self.beats.changed() => {
                    let Told { report: body, number, rtt, jobs } = self.beats.borrow_and_update().clone();
                    if number == reported {
                        NetEvent::Jobs { peer: self.peer, jobs }
                    } else {
                        reported = number;
                        NetEvent::Report { peer: self.peer, body, rtt }
                    }
                }
            };
        }
        let silent = self.silent.load(Ordering::Acquire);
        let down = NetEvent::PeerDown { peer: self.peer, silent };
        let _ = self.events.send(down).await;
    }
}
