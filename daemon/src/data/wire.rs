//! Frames over a byte stream.

use std::{
    io,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mesh_inference::{
    codec::{self, Codec, Encoded},
    tensor::Tensor,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{
    frame::{
        Body, Failure, Frame, FrameError, HEADER_MAX, Header, HeaderKind, MAGIC, Named, WireTensor,
        decode_header, encode_header, header_length,
    },
    limits::DataLimits,
    underway::UnderWay,
};

/// Frames up to this size go out in one piece.
const SMALL: usize = 64 << 10;
/// Tensors from this size on are packed and unpacked off the asynchronous threads.
pub(super) const OFF_THREAD: usize = 16 << 10;
/// [`Codec::Sparse`] is so many times faster than the others.
const SPARSE_FASTER: usize = 8;
/// A stream's buffer for packed tensors is kept for the next one up to this size.
const KEPT_MAX: usize = 4 << 20;
/// Bytes moved between two looks at the clock.
const CHUNK: usize = 256 << 10;

/// A frame ready for the stream.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// Prefix and header.
    head: Vec<u8>,
    /// The tensors as they go out; raw ones are the tensors' own memory.
    payloads: Vec<Bytes>,
    pub(super) raw_bytes: usize,
}

impl Outgoing {
    /// Prepares a frame whose tensors are packed already, with `now` to say how much time is left.
    pub(super) fn new(frame: &Frame, packed: &[Encoded], now: Instant) -> Result<Self, FrameError> {
        let kind = match &frame.body {
            Body::Activation { stage, deadline, tensors: _ } => {
                HeaderKind::Activation { stage: *stage, remaining: deadline.saturating_duration_since(now) }
            }
            Body::Result { tensors: _ } => HeaderKind::Result,
            Body::Moved { stage } => HeaderKind::Moved { stage: *stage },
            Body::Failed(failure) => HeaderKind::Failed(failure.clone()),
        };
        let tensors = frame.tensors().iter().zip(packed).map(|((name, tensor), packed)| WireTensor {
            name: name.clone(),
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            codec: packed.codec,
            length: packed.bytes.len() as u64,
        });
        let header = Header { address: frame.address.clone(), kind, tensors: tensors.collect() };
        let head = encode_header(&header)?;
        Ok(Self {
            head,
            payloads: packed.iter().map(|p| p.bytes.clone()).collect(),
            raw_bytes: frame.bytes(),
        })
    }

    /// Bytes on the wire.
    pub(super) fn wire_bytes(&self) -> usize {
        self.head.len() + self.payloads.iter().map(|p| p.len()).sum::<usize>()
    }

    /// Writes the whole frame; gives up when the stream takes nothing for `stall`.
    pub(super) async fn write(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        stall: Duration,
    ) -> io::Result<()> {
        if self.wire_bytes() <= SMALL {
            let mut all = Vec::with_capacity(self.wire_bytes());
            all.extend_from_slice(&self.head);
            for payload in &self.payloads {
                all.extend_from_slice(payload);
            }
            write_chunks(stream, &all, stall).await?;
        } else {
            write_chunks(stream, &self.head, stall).await?;
            for payload in &self.payloads {
                write_chunks(stream, payload, stall).await?;
            }
        }
        timeout(stall, stream.flush()).await.map_err(|_| stalled())?
    }
}

async fn write_chunks(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    stall: Duration,
) -> io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        let (before, end) = (written, bytes.len().min(written + CHUNK));
        let chunk = async {
            while written < end {
                match stream.write(&bytes[written..end]).await? {
                    0 => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                    more => written += more,
                }
            }
            Ok(())
        };
        match timeout(stall, chunk).await {
            Ok(done) => done?,
            // It is slow, and it takes what it can.
            Err(_) if written > before => {}
            Err(_) => return Err(stalled()),
        }
    }
    Ok(())
}

fn stalled() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer takes no data")
}

/// How much it is to pack or unpack so many bytes, to compare with [`OFF_THREAD`].
pub(super) fn work(codec: Codec, bytes: usize) -> usize {
    match codec {
        Codec::Raw => 0,
        Codec::Sparse => bytes / SPARSE_FASTER,
        Codec::Zstd | Codec::PlanesZstd => bytes,
    }
}

/// Reads the next frame, which counts as `under_way` meanwhile; tells also how many bytes it was on the wire. `None` when
/// the stream ended between frames. `buffer` is for packed tensors; giving the same again for the next frame saves the work
/// of getting fresh memory.
pub(super) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    limits: &DataLimits,
    under_way: &UnderWay,
) -> Result<Option<(Frame, u64)>, FrameError> {
    let mut prefix = [0u8; 8];
    // Between frames the wait is as long as the peer is silent; its connection is watched elsewhere.
    if stream.read(&mut prefix[..1]).await? == 0 {
        return Ok(None);
    }
    if prefix[0] != MAGIC[0] {
        return Err(FrameError::Magic);
    }
    fill(stream, &mut prefix[1..], limits.stall_max).await?;
    let length = header_length(prefix)?;
    debug_assert!(length <= HEADER_MAX, "header_length has checked it");
    let mut head = vec![0u8; length];
    fill(stream, &mut head, limits.stall_max).await?;
    let header = decode_header(&head, limits)?;
    let arrived = now();
    let packed: u64 = header.tensors.iter().map(|tensor| tensor.length).sum();
    let bytes = (prefix.len() + length) as u64 + packed;
    let _crossing = under_way.begin(packed);
    let mut tensors = Vec::with_capacity(header.tensors.len());
    for wire in header.tensors {
        tensors.push(read_tensor(stream, buffer, wire, limits).await?);
    }
    let body = match header.kind {
        HeaderKind::Activation { stage, remaining } => {
            Body::Activation { stage, deadline: arrived + remaining, tensors }
        }
        HeaderKind::Result => Body::Result { tensors },
        HeaderKind::Moved { stage } => Body::Moved { stage },
        HeaderKind::Failed(Failure { kind, stage, blame, message }) => {
            Body::Failed(Failure { kind, stage, blame, message })
        }
    };
    Ok(Some((Frame { address: header.address, body }, bytes)))
}

/// Reads one tensor straight into its place.
async fn read_tensor(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    wire: WireTensor,
    limits: &DataLimits,
) -> Result<Named, FrameError> {
    let WireTensor { name, dtype, shape, codec, length } = wire;
    if codec == Codec::Raw {
        let mut tensor = Tensor::builder(dtype, &shape)?;
        fill(stream, tensor.bytes_mut(), limits.stall_max).await?;
        return Ok((name, tensor.finish()?));
    }
    // Grows with what has come, whatever the header promises.
    let length = length as usize;
    let mut filled = 0;
    while filled < length {
        let end = length.min(filled + CHUNK);
        if buffer.len() < end {
            buffer.resize(end, 0);
        }
        fill(stream, &mut buffer[filled..end], limits.stall_max).await?;
        filled = end;
    }
    let tensor = if work(codec, length) < OFF_THREAD {
        codec::decode(codec, dtype, &shape, &buffer[..length])?
    } else {
        let packed = std::mem::take(buffer);
        let decoding = crate::background::spawn(move || {
            let tensor = codec::decode(codec, dtype, &shape, &packed[..length]);
            (tensor, packed)
        });
        let (tensor, packed) = decoding.await.map_err(io::Error::other)?;
        *buffer = packed;
        tensor?
    };
    if buffer.len() > KEPT_MAX {
        *buffer = Vec::new();
    }
    Ok((name, tensor))
}

/// Fills `target`; gives up when no byte comes for `stall`.
async fn fill(
    stream: &mut (impl AsyncRead + Unpin),
    target: &mut [u8],
    stall: Duration,
) -> Result<(), FrameError> {
    let mut filled = 0;
    while filled < target.len() {
        let end = target.len().min(filled + CHUNK);
        let got = timeout(stall, stream.read(&mut target[filled..end]))
            .await
            .map_err(|_| FrameError::Stalled(stall))??;
        if got == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        filled += got;
    }
    Ok(())
}

/// The time as the runtime has it, so that tests can stop the clock.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use super::*;

    /// Takes so many bytes, then nothing until it is asked anew.
    struct Slow {
        takes: usize,
        has_taken: bool,
        taken: usize,
    }

    impl AsyncWrite for Slow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.has_taken = !self.has_taken && self.takes > 0;
            if !self.has_taken {
                return Poll::Pending;
            }
            let takes = self.takes.min(bytes.len());
            self.taken += takes;
            Poll::Ready(Ok(takes))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A link that carries little is no link that carries nothing.
    #[tokio::test]
    async fn a_slow_stream_is_given_its_time() {
        let bytes = vec![7; 300];
        for (takes, is_enough) in [(30, true), (0, false)] {
            let mut stream = Slow { takes, has_taken: false, taken: 0 };
            let result = write_chunks(&mut stream, &bytes, Duration::from_millis(10)).await;
            assert_eq!((result.is_ok(), stream.taken), (is_enough, if is_enough { 300 } else { 0 }));
        }
    }
}
