//! Peers that send what they should not.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Sends bytes as a peer's stream and waits until the data plane has closed it.
async fn send_to(plane: &DataPlane, bytes: &[u8]) {
    let (mut ours, theirs) = tokio::io::duplex(1 << 16);
    plane.accept(PeerId::random(), theirs);
    // The reader may close before all is written.
    let _ = ours.write_all(bytes).await;
    let _ = ours.shutdown().await;
    let mut rest = Vec::new();
    let _ = ours.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
}

#[test]
fn no_bytes_stop_the_data_plane() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (plane, peers) = runtime.block_on(async {
        let (_rack, peers, planes) = Rack::new(1);
        host_all(1, &[vec![peers[0]]], &peers, &planes);
        planes[0].set_routes(route(1, &[vec![peers[0]]]));
        (planes[0].clone(), peers)
    });
    let bytes = prop::collection::vec(any::<u8>(), 0..300);
    proptest!(ProptestConfig::with_cases(200), |(bytes in bytes, framed: bool)| {
        let mut sent = Vec::new();
        if framed {
            sent.extend_from_slice(b"MSH1");
            sent.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        }
        sent.extend_from_slice(&bytes);
        runtime.block_on(send_to(&plane, &sent));
    });
    let answer = runtime.block_on(plane.infer(request(1.0, 1, LONG))).unwrap();
    check(&answer, 2.0, 1);
    assert_eq!(peers.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_never_ends_is_given_up() {
    let limits = DataLimits { stall_max: Duration::from_millis(50), ..DataLimits::default() };
    let (_rack, _peers, planes) = Rack::with_limits(1, limits);
    let (mut ours, theirs) = tokio::io::duplex(1 << 16);
    planes[0].accept(PeerId::random(), theirs);
    ours.write_all(b"MSH1\x00\x00\x01\x00half a header").await.unwrap();
    let mut rest = Vec::new();
    // Ends when the reader has dropped its side.
    ours.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
}
