//! The serving side of blob streams.

use std::{
    io,
    time::{Duration, Instant},
};

use mesh_inference::blobs::Hash;
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    CHUNK, LOOK_AGAIN, STALL, STATUS_CHECKING, STATUS_MISSING, STATUS_OK, Transfer, split_request, stalled,
};
use crate::net::NetStream;

/// A peer waits so long for the blob that it asked for to be read through; after that it is told to ask again later,
/// before it takes this device for stuck.
const CHECK_WAIT: Duration = Duration::from_secs(5);

impl Transfer {
    /// Serves one inbound stream until the peer closes it.
    pub async fn serve(&self, mut stream: NetStream) {
        if let Err(error) = self.serve_requests(&mut stream).await {
            tracing::debug!(%error, "blob stream ended");
        }
    }

    async fn serve_requests(&self, stream: &mut NetStream) -> io::Result<()> {
        loop {
            let mut request = [0u8; 40];
            match stream.read_exact(&mut request).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
            let (hash, offset) = split_request(&request);
            self.serve_one(stream, hash, offset).await?;
        }
    }

    async fn serve_one(&self, stream: &mut NetStream, hash: Hash, offset: u64) -> io::Result<()> {
        // Not for the whole stream: a peer that leaves one open keeps nobody at work.
        let _chore = self.net.chore();
        if offset == LOOK_AGAIN {
            tracing::debug!(%hash, "a peer got other bytes than this blob's; it is read again");
            self.store.doubt(&hash);
        }
        let mut file = match self.open_sound(hash).await {
            Ok(file) => file,
            Err(status) => {
                answer(stream, status, 0).await?;
                return stream.flush().await;
            }
        };
        let total = file.metadata().await?.len();
        file.seek(io::SeekFrom::Start(offset.min(total))).await?;
        answer(stream, STATUS_OK, total).await?;
        let mut left = total.saturating_sub(offset);
        let mut chunk = vec![0u8; CHUNK];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let read = file.read_exact(&mut chunk[..want]).await;
            // Whatever the disk has lost since the check, the next request finds out.
            read.inspect_err(|_| self.store.doubt(&hash))?;
            let began = Instant::now();
            timeout(STALL, stream.write_all(&chunk[..want])).await.map_err(stalled)??;
            self.courtesy.after(began.elapsed()).await;
            left -= want as u64;
        }
        stream.flush().await
    }

    /// A blob that may be served, or the status that says why there is none.
    async fn open_sound(&self, hash: Hash) -> Result<tokio::fs::File, u8> {
        if !self.store.has(&hash) {
            return Err(STATUS_MISSING);
        }
        match timeout(CHECK_WAIT, self.check(hash)).await {
            Ok(Ok(())) => tokio::fs::File::open(self.store.path(&hash)).await.map_err(|_| STATUS_MISSING),
            Ok(Err(error)) => {
                tracing::debug!(%hash, %error, "a blob that a peer asks for is not served");
                Err(STATUS_MISSING)
            }
            // The check goes on, and the next request finds it done.
            Err(_) => Err(STATUS_CHECKING),
        }
    }
}

async fn answer(stream: &mut NetStream, status: u8, total: u64) -> io::Result<()> {
    let mut head = [0u8; 9];
    head[0] = status;
    head[1..].copy_from_slice(&total.to_be_bytes());
    stream.write_all(&head).await
}
