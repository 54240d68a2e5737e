//! Frames of the control link: a length, a kind, a body. Everything read here is hostile until it is checked.

use std::{io, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{AsyncRead, AsyncReadExt};

use super::link::Pulse;

/// The control link has one stream per direction for each of these, so that neither a large message nor a slow
/// owner of events holds back heartbeats or answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    /// Heartbeats with reports.
    Beat,
    /// Messages.
    Message,
    /// Requests of calls.
    Request,
    /// Answers to calls.
    Reply,
}

impl Lane {
    pub(super) const ALL: [Self; 4] = [Self::Beat, Self::Message, Self::Request, Self::Reply];

    fn code(self) -> u8 {
        match self {
            Self::Beat => 0,
            Self::Message => 1,
            Self::Request => 2,
            Self::Reply => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.code() == code)
    }

    /// Longest frame, without its length field.
    fn max_frame(self) -> usize {
        match self {
            Self::Beat => MAX_REPORT + 64,
            Self::Message => MAX_MESSAGE + 64,
            Self::Request | Self::Reply => MAX_CALL + 64,
        }
    }
}

/// Longest report.
pub(super) const MAX_REPORT: usize = 256 * 1024;
/// Longest message: Raft snapshots are the largest, and are kilobytes.
pub(super) const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// Longest body of a call or an answer.
pub(super) const MAX_CALL: usize = 8 * 1024 * 1024;
/// A body is allocated in steps of this, as it arrives.
const ALLOCATE: usize = 64 * 1024;

/// Opens a lane: which one, and of which session of the opener.
pub(super) const PREFACE_BYTES: usize = 9;

pub(super) fn preface(lane: Lane, session: u64) -> [u8; PREFACE_BYTES] {
    let mut bytes = [0; PREFACE_BYTES];
    bytes[0] = lane.code();
    bytes[1..].copy_from_slice(&session.to_le_bytes());
    bytes
}

pub(super) fn read_preface(bytes: [u8; PREFACE_BYTES]) -> Option<(Lane, u64)> {
    let [code, session @ ..] = bytes;
    Some((Lane::from_code(code)?, u64::from_le_bytes(session)))
}

/// Head of a heartbeat: clocks in microseconds of the sender's and of the receiver's own time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Beat {
    /// When it was sent, by the sender's clock.
    pub(super) sent: u64,
    /// `sent` of the newest heartbeat that the sender has received; 0 for none.
    pub(super) echo: u64,
    /// How long ago the sender received that one.
    pub(super) held: u64,
    /// Jobs that wait or run in the sender's stages.
    pub(super) jobs: u32,
}

/// How a call was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// With a body.
    Given,
    /// Nobody wanted to answer.
    None,
    /// Too many calls wait already.
    Busy,
}

/// A frame of any lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// An empty report says that the newest one still holds.
    Beat {
        beat: Beat,
        report: Bytes,
    },
    Message {
        topic: u8,
        body: Bytes,
    },
    Request {
        id: u64,
        method: u16,
        patience: Duration,
        body: Bytes,
    },
    Reply {
        id: u64,
        answer: Answer,
        body: Bytes,
    },
}

impl Frame {
    fn body(&self) -> &Bytes {
        match self {
            Self::Beat { report, .. } => report,
            Self::Message { body, .. } | Self::Request { body, .. } | Self::Reply { body, .. } => body,
        }
    }

    /// Bytes that it holds in a queue.
    pub(super) fn weight(&self) -> usize {
        self.body().len() + 64
    }

    /// Everything before the body, with the length field; then the body.
    pub(super) fn encode(self, head: &mut Vec<u8>) -> Bytes {
        let start = head.len();
        head.put_u32_le(0);
        match &self {
            Self::Beat { beat, .. } => {
                head.put_u64_le(beat.sent);
                head.put_u64_le(beat.echo);
                head.put_u64_le(beat.held);
                head.put_u32_le(beat.jobs);
            }
            Self::Message { topic, .. } => head.put_u8(*topic),
            Self::Request { id, method, patience, .. } => {
                head.put_u64_le(*id);
                head.put_u16_le(*method);
                head.put_u32_le(u32::try_from(patience.as_millis()).unwrap_or(u32::MAX));
            }
            Self::Reply { id, answer, .. } => {
                head.put_u64_le(*id);
                head.put_u8(match answer {
                    Answer::Given => 0,
                    Answer::None => 1,
                    Answer::Busy => 2,
                });
            }
        }
        let body = match self {
            Self::Beat { report, .. } => report,
            Self::Message { body, .. } | Self::Request { body, .. } | Self::Reply { body, .. } => body,
        };
        // Bodies are capped far below 4 GiB where they are queued.
        let length = u32::try_from(head.len() - start - 4 + body.len()).unwrap_or(u32::MAX);
        head[start..start + 4].copy_from_slice(&length.to_le_bytes());
        body
    }

    fn decode(lane: Lane, mut bytes: Bytes) -> Option<Self> {
        match lane {
            Lane::Beat => Some(Self::Beat {
                beat: Beat {
                    sent: bytes.try_get_u64_le().ok()?,
                    echo: bytes.try_get_u64_le().ok()?,
                    held: bytes.try_get_u64_le().ok()?,
                    jobs: bytes.try_get_u32_le().ok()?,
                },
                report: bytes,
            }),
            Lane::Message => Some(Self::Message { topic: bytes.try_get_u8().ok()?, body: bytes }),
            Lane::Request => Some(Self::Request {
                id: bytes.try_get_u64_le().ok()?,
                method: bytes.try_get_u16_le().ok()?,
                patience: Duration::from_millis(bytes.try_get_u32_le().ok()?.into()),
                body: bytes,
            }),
            Lane::Reply => Some(Self::Reply {
                id: bytes.try_get_u64_le().ok()?,
                answer: match bytes.try_get_u8().ok()? {
                    0 => Answer::Given,
                    1 => Answer::None,
                    2 => Answer::Busy,
                    _ => return None,
                },
                body: bytes,
            }),
        }
    }
}

/// Reads the length field of the next frame.
pub(super) async fn read_length<R: AsyncRead + Unpin>(reader: &mut R, lane: Lane) -> io::Result<usize> {
    let mut length = [0; 4];
    reader.read_exact(&mut length).await?;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > lane.max_frame() {
        return Err(invalid("a frame over the limit"));
    }
    Ok(length)
}

/// Reads the rest of a frame. Each read is a sign of life to `pulse`: heartbeats wait behind a large frame.
pub(super) async fn read_body<R: AsyncRead + Unpin>(
    reader: &mut R,
    lane: Lane,
    length: usize,
    pulse: &Pulse,
) -> io::Result<Frame> {
    let mut bytes = BytesMut::new();
    let mut filled = 0;
    while filled < length {
        if filled == bytes.len() {
            bytes.resize(length.min(filled + ALLOCATE), 0);
        }
        let read = reader.read(&mut bytes[filled..]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        pulse.alive();
        filled += read;
    }
    Frame::decode(lane, bytes.freeze()).ok_or_else(|| invalid("a frame that makes no sense"))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{executor::block_on, io::Cursor};
    use proptest::prelude::*;

    fn read(lane: Lane, bytes: &[u8]) -> io::Result<Frame> {
        let mut reader = Cursor::new(bytes);
        block_on(async {
            let length = read_length(&mut reader, lane).await?;
            read_body(&mut reader, lane, length, &Pulse::new()).await
        })
    }

    fn frames() -> impl Strategy<Value = (Lane, Frame)> {
        let body = || prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        prop_oneof![
            (any::<[u64; 3]>(), any::<u32>(), body()).prop_map(|([sent, echo, held], jobs, report)| {
                (Lane::Beat, Frame::Beat { beat: Beat { sent, echo, held, jobs }, report })
            }),
            (any::<u8>(), body()).prop_map(|(topic, body)| (Lane::Message, Frame::Message { topic, body })),
            (any::<u64>(), any::<u16>(), any::<u32>(), body()).prop_map(|(id, method, ms, body)| {
                let patience = Duration::from_millis(ms.into());
                (Lane::Request, Frame::Request { id, method, patience, body })
            }),
            (any::<u64>(), 0..3_u8, body()).prop_map(|(id, answer, body)| {
                let answer = [Answer::Given, Answer::None, Answer::Busy][usize::from(answer)];
                (Lane::Reply, Frame::Reply { id, answer, body })
            }),
        ]
    }

    proptest! {
        #[test]
        fn frames_come_back((lane, frame) in frames()) {
            let mut bytes = Vec::new();
            let body = frame.clone().encode(&mut bytes);
            bytes.extend_from_slice(&body);
            prop_assert_eq!(read(lane, &bytes).unwrap(), frame);
        }

        #[test]
        fn any_bytes_are_read_or_refused(lane in 0..4_usize, bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = read(Lane::ALL[lane], &bytes);
        }
    }

    #[test]
    fn lengths_over_the_limit_are_refused_before_allocation() {
        for lane in Lane::ALL {
            let error = read(lane, &u32::MAX.to_le_bytes()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
