//! How fast is the link to a peer? Sends for a short while on a stream of its own; the receiver counts and times.

use std::{
    io,
    time::{Duration, Instant},
};

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::Stream;

/// Sends at most this much...
const MAX_BYTES: usize = 1024 * 1024;
/// ...and at most for this long.
const MAX_SENDING: Duration = Duration::from_millis(200);
/// Time for what is under way to arrive on a slow link.
const SETTLE: Duration = Duration::from_secs(5);
const CHUNK: usize = 16 * 1024;
/// Probes that are served at a time: more would measure each other.
pub(super) const MAX_SERVED: usize = 2;

/// Bytes per second towards the peer behind `stream`.
pub(super) async fn measure(mut stream: Stream) -> io::Result<f64> {
    tokio::time::timeout(MAX_SENDING + SETTLE, async {
        let chunk = vec![0; CHUNK];
        let start = Instant::now();
        let mut sent = 0;
        while sent < MAX_BYTES && start.elapsed() < MAX_SENDING {
            stream.write_all(&chunk).await?;
            sent += CHUNK;
        }
        stream.close().await?;
        let mut answer = [0; 16];
        stream.read_exact(&mut answer).await?;
        let [bytes, micros] = [0, 8].map(|at| {
            let mut number = [0; 8];
            number.copy_from_slice(&answer[at..at + 8]);
            u64::from_le_bytes(number)
        });
        // Fewer bytes than make a rate, or a time of nothing: the peer does not measure.
        if bytes == 0 || micros == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
        let rate = bytes as f64 / (micros as f64 / 1e6);
        Ok(rate)
    })
    .await
    .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// The receiving side. Counts from the end of the first read, which starts the clock.
pub(super) async fn serve(mut stream: Stream) {
    let serving = async {
        let mut buffer = vec![0; CHUNK];
        let mut limit = 2 * MAX_BYTES;
        limit -= stream.read(&mut buffer).await?;
        let start = Instant::now();
        let mut counted: u64 = 0;
        let mut last = start;
        while limit > 0 {
            let read = stream.read(&mut buffer).await?;
            if read == 0 {
                break;
            }
            limit = limit.saturating_sub(read);
            counted += u64::try_from(read).unwrap_or(0);
            last = Instant::now();
        }
        let micros = u64::try_from((last - start).as_micros()).unwrap_or(u64::MAX).max(1);
        stream.write_all(&counted.to_le_bytes()).await?;
        stream.write_all(&micros.to_le_bytes()).await?;
        stream.close().await
    };
    let outcome: Result<io::Result<()>, _> = tokio::time::timeout(MAX_SENDING + SETTLE, serving).await;
    if !matches!(outcome, Ok(Ok(()))) {
        tracing::debug!("a bandwidth probe of a peer broke off");
    }
}
