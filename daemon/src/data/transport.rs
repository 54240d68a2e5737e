//! What the data plane needs of the network.

use std::{fmt, io};

use futures::future::BoxFuture;
use libp2p::PeerId;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::net::{Channel, Net};

/// A byte stream to a peer.
pub trait DataStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> DataStream for S {}

/// Opens streams; inbound ones are brought by [`super::DataPlane::accept`].
pub trait Transport: Send + Sync + fmt::Debug + 'static {
    /// Opens a stream to a peer, within a time limit of its own.
    fn open(&self, peer: PeerId) -> BoxFuture<'static, io::Result<Box<dyn DataStream>>>;
}

impl Transport for Net {
    fn open(&self, peer: PeerId) -> BoxFuture<'static, io::Result<Box<dyn DataStream>>> {
        let net = self.clone();
        Box::pin(async move {
            let stream = Net::open(&net, peer, Channel::Data).await.map_err(io::Error::other)?;
            Ok(Box::new(stream) as Box<dyn DataStream>)
        })
    }
}
