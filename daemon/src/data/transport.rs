//! What the data plane needs of the network.

use std::{fmt, io};

use futures::future::BoxFuture;
use libp2p::PeerId;
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream to a peer.
pub trait DataStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> DataStream for S {}

/// Opens streams; inbound ones are brought by [`super::DataPlane::accept`].
pub trait Transport: Send + Sync + fmt::Debug + 'static {
    /// Opens a stream to a peer, within a time limit of its own.
    fn open(&self, peer: PeerId) -> BoxFuture<'static, io::Result<Box<dyn DataStream>>>;
}
