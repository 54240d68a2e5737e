//! The lanes of the control link: opening them, and writing to them.

use std::{io, time::Duration};

use futures::{AsyncWriteExt, future::try_join_all};
use libp2p::{PeerId, Stream, swarm::ConnectionId};
use tokio::sync::{mpsc, oneshot};

use super::super::{
    frames::{self, Frame, Lane},
    link::OutboxReader,
    streams::{CONTROL, OpenStream},
    swarm::Internal,
};

/// Time for both sides to open their lanes.
const OPENING: Duration = Duration::from_secs(5);
/// Small frames are written together up to this size.
const GATHER: usize = 16 * 1024;

/// What is needed to open the lanes.
pub(super) struct Opening {
    pub(super) peer: PeerId,
    pub(super) id: u64,
    pub(super) home: ConnectionId,
    pub(super) internal: mpsc::Sender<Internal>,
    pub(super) lanes: mpsc::Receiver<(Lane, Stream)>,
}

impl Opening {
    async fn open(&self, lane: Lane) -> io::Result<Stream> {
        let (reply, stream) = oneshot::channel();
        let request = Internal::Open {
            peer: self.peer,
            connection: self.home,
            request: OpenStream { protocol: CONTROL, reply },
        };
        self.internal.send(request).await.map_err(|_| closed())?;
        let mut stream = stream.await.map_err(|_| closed())?;
        stream.write_all(&frames::preface(lane, self.id)).await?;
        stream.flush().await?;
        Ok(stream)
    }

    /// All lanes: outgoing, then incoming, each in the order of [`Lane::ALL`].
    pub(super) async fn all(mut self) -> io::Result<([Stream; 4], [Stream; 4])> {
        let mut arrived = std::mem::replace(&mut self.lanes, mpsc::channel(1).1);
        let collect = async {
            let mut found: [Option<Stream>; 4] = Default::default();
            while found.iter().any(Option::is_none) {
                let (lane, stream) = arrived.recv().await.ok_or_else(closed)?;
                let index = Lane::ALL.iter().position(|l| *l == lane).ok_or_else(closed)?;
                if found[index].replace(stream).is_some() {
                    return Err(io::Error::other("a lane was opened twice"));
                }
            }
            found.into_iter().collect::<Option<Vec<_>>>().ok_or_else(closed)
        };
        let open = try_join_all(Lane::ALL.map(|lane| self.open(lane)));
        let both = async { tokio::try_join!(open, collect) };
        let (outgoing, incoming) = tokio::time::timeout(OPENING, both)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let four = |streams: Vec<Stream>| <[Stream; 4]>::try_from(streams).map_err(|_| closed());
        Ok((four(outgoing)?, four(incoming)?))
    }
}

/// The other side is gone.
pub(super) fn closed() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// Writes what handles have queued.
pub(super) async fn write_queue(mut lane: Stream, mut queue: OutboxReader) -> io::Result<()> {
    while let Some(first) = queue.receiver.recv().await {
        let weight = write_gathered(&mut lane, first, &mut queue.receiver).await?;
        queue.done(weight);
    }
    Err(closed())
}

/// Writes answers to calls.
pub(super) async fn write_replies(mut lane: Stream, queue: &mut mpsc::Receiver<Frame>) -> io::Result<()> {
    while let Some(first) = queue.recv().await {
        write_gathered(&mut lane, first, queue).await?;
    }
    Err(closed())
}

/// Writes `first` and, with it, the small frames that wait behind it; returns their weight.
async fn write_gathered(
    lane: &mut Stream,
    first: Frame,
    queue: &mut mpsc::Receiver<Frame>,
) -> io::Result<usize> {
    let mut buffer = Vec::new();
    let mut weight = 0;
    let mut next = Some(first);
    while let Some(frame) = next.take() {
        weight += frame.weight();
        let body = frame.encode(&mut buffer);
        if buffer.len() + body.len() > GATHER {
            lane.write_all(&buffer).await?;
            buffer.clear();
            lane.write_all(&body).await?;
        } else {
            buffer.extend_from_slice(&body);
            next = queue.try_recv().ok();
        }
    }
    lane.write_all(&buffer).await?;
    lane.flush().await?;
    Ok(weight)
}
