//! Two clients: tonic's, which knows gRPC from elsewhere, and one that sends whatever it is told over HTTP/2.

use std::{
    future::poll_fn,
    net::{Shutdown, SocketAddr, TcpStream},
    pin::Pin,
};

use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use hyper::{
    body::{Body as _, Bytes},
    client::conn::http2::{SendRequest, handshake},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tonic::{
    Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{
    super::Served,
    messages::{ModelInferRequest, ModelInferResponse},
};
use crate::api::ApiOptions;

/// A served API that speaks gRPC, too.
pub(super) fn serve(options: ApiOptions) -> Served {
    Served::with(ApiOptions { grpc_listen: Some(([127, 0, 0, 1], 0).into()), ..options })
}

fn path(method: &str) -> String {
    format!("/inference.GRPCInferenceService/{method}")
}

#[derive(Debug, Clone)]
pub(super) struct Client {
    channel: Channel,
    pub(super) authorization: Option<&'static str>,
}

impl Client {
    pub(super) async fn connect(served: &Served) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", served.grpc.unwrap())).unwrap();
        Self { channel: endpoint.connect().await.unwrap(), authorization: None }
    }

    pub(super) async fn call<Q, A>(&self, method: &str, message: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut request = tonic::Request::new(message);
        if let Some(value) = self.authorization {
            request.metadata_mut().insert("authorization", value.parse().unwrap());
        }
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(64 << 20);
        grpc.ready().await.unwrap();
        let path = path(method).parse().unwrap();
        Ok(grpc.unary(request, path, ProstCodec::default()).await?.into_inner())
    }

    pub(super) async fn infer(&self, request: ModelInferRequest) -> Result<ModelInferResponse, Status> {
        self.call("ModelInfer", request).await
    }
}

/// A message with what gRPC puts before it.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[0], &length.to_be_bytes()[..], message].concat()
}

pub(super) struct Raw {
    address: SocketAddr,
    sender: SendRequest<Body>,
    socket: TcpStream,
}

/// All that came as the answer to a call.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) data: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl Raw {
    pub(super) async fn connect(served: &Served) -> Self {
        let address = served.grpc.unwrap();
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let stream = tokio::net::TcpStream::from_std(socket.try_clone().unwrap()).unwrap();
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(async { drop(connection.await) });
        Self { address, sender, socket }
    }

    /// What breaks the connection.
    pub(super) fn breaker(&self) -> impl FnOnce() + use<> {
        let socket = self.socket.try_clone().unwrap();
        move || socket.shutdown(Shutdown::Both).unwrap()
    }

    /// Calls with a body as it is.
    pub(super) async fn send(&mut self, method: &str, headers: &[(&str, &str)], body: Body) -> Reply {
        let mut request = Request::post(format!("http://{}{}", self.address, path(method)));
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/grpc");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.sender.send_request(request.body(body).unwrap()).await.unwrap();
        let (head, mut body) = response.into_parts();
        let (mut data, mut trailers) = (Vec::new(), None);
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            match frame.unwrap().into_data() {
                Ok(piece) => data.extend_from_slice(&piece),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        Reply { status: head.status, headers: head.headers, data, trailers }
    }

    /// Calls `ModelInfer`.
    pub(super) async fn infer(&mut self, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        self.send("ModelInfer", headers, Body::from(body.into())).await
    }
}

impl Reply {
    /// gRPC's status, from wherever it came.
    pub(super) fn code(&self) -> u16 {
        let headers = self.trailers.as_ref().unwrap_or(&self.headers);
        let value = headers.get("grpc-status").unwrap_or_else(|| panic!("no status: {self:?}"));
        value.to_str().unwrap().parse().unwrap()
    }

    pub(super) fn message(&self) -> &str {
        self.headers.get("grpc-message").map_or("", |value| value.to_str().unwrap())
    }
}
