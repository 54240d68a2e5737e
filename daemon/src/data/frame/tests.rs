use proptest::prelude::*;

use super::*;

fn header(kind: HeaderKind, tensors: Vec<WireTensor>, devices: usize) -> Header {
    Header {
        address: Address {
            request: 0xdead_beef_0000_0001,
            attempt: 3,
            ingress: PeerId::random(),
            deployment: "resnet50".into(),
            epoch: 7,
            devices: (0..devices).map(|_| PeerId::random()).collect(),
            backlog: (0..devices as u32).collect(),
        },
        kind,
        tensors,
    }
}

fn tensor(dtype: DType, shape: &[i64], codec: Codec, length: u64) -> WireTensor {
    WireTensor { name: "x".into(), dtype, shape: shape.to_vec(), codec, length }
}

fn activation(stage: usize) -> HeaderKind {
    HeaderKind::Activation { stage, remaining: Duration::from_millis(1500) }
}

fn decode(header: &Header) -> Result<Header, FrameError> {
    let bytes = encode_header(header).unwrap();
    let length = header_length(bytes[..8].try_into().unwrap()).unwrap();
    assert_eq!(length, bytes.len() - 8);
    decode_header(&bytes[8..], &DataLimits::default())
}

#[test]
fn headers_survive_the_round_trip() {
    let failure = Failure {
        kind: FailureKind::StaleEpoch,
        stage: 1,
        blame: PeerId::random(),
        message: "epoch 6 of resnet50 is retired".into(),
    };
    let tensors =
        vec![tensor(DType::Fp32, &[2, 3], Codec::Raw, 24), tensor(DType::Int64, &[], Codec::Zstd, 5)];
    for (kind, tensors) in [
        (activation(1), tensors.clone()),
        (HeaderKind::Result, tensors),
        (HeaderKind::Moved { stage: 1 }, Vec::new()),
        (HeaderKind::Failed(failure), Vec::new()),
    ] {
        let sent = header(kind, tensors, 2);
        let got = decode(&sent).unwrap();
        assert_eq!(got.kind, sent.kind);
        assert_eq!(got.tensors, sent.tensors);
        assert_eq!(
            (got.address.request, got.address.attempt, got.address.epoch),
            (0xdead_beef_0000_0001, 3, 7)
        );
        assert_eq!((got.address.ingress, got.address.devices), (sent.address.ingress, sent.address.devices));
    }
}

#[test]
fn headers_over_a_limit_are_refused() {
    let bad = [
        header(activation(2), Vec::new(), 2),
        header(HeaderKind::Moved { stage: 2 }, Vec::new(), 2),
        header(HeaderKind::Moved { stage: 0 }, vec![tensor(DType::Fp32, &[2, 3], Codec::Raw, 24)], 1),
        header(activation(0), Vec::new(), 300),
        header(activation(0), vec![tensor(DType::Fp32, &[2, 3], Codec::Raw, 23)], 1),
        header(activation(0), vec![tensor(DType::Fp32, &[-1], Codec::Raw, 4)], 1),
        header(activation(0), vec![tensor(DType::Fp32, &[i64::MAX, i64::MAX], Codec::Raw, 4)], 1),
        header(activation(0), vec![tensor(DType::Fp32, &[1 << 31], Codec::Raw, 1 << 33)], 1),
        header(activation(0), vec![tensor(DType::Uint8, &[1; 33], Codec::Raw, 1)], 1),
        header(activation(0), vec![tensor(DType::Uint8, &[8], Codec::PlanesZstd, 1 << 40)], 1),
        header(activation(0), vec![tensor(DType::Uint8, &[1 << 30], Codec::Raw, 1 << 30); 3], 1),
        header(activation(0), vec![tensor(DType::Uint8, &[0], Codec::Raw, 0); 5000], 1),
    ];
    for header in bad {
        assert!(decode(&header).is_err(), "{header:?}");
    }
    assert!(header_length(*b"MSH2\0\0\0\0").is_err());
    assert!(header_length(*b"MSH1\xff\xff\xff\xff").is_err());
}

#[test]
fn long_error_texts_are_cut_between_characters() {
    let text = "ü".repeat(MESSAGE_MAX);
    assert_eq!(truncated(&text).len(), MESSAGE_MAX);
    let text = format!("a{text}");
    assert_eq!(truncated(&text).len(), MESSAGE_MAX - 1);
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode_header(&bytes, &DataLimits::default());
    }

    #[test]
    fn damaged_headers_never_panic_and_stay_within_limits(at in 0usize..400, value: u8, cut in 0usize..400) {
        let sent = header(activation(0), vec![tensor(DType::Fp32, &[2, 3], Codec::Raw, 24); 3], 3);
        let mut bytes = encode_header(&sent).unwrap().split_off(8);
        let at = at % bytes.len();
        bytes[at] = value;
        bytes.truncate(bytes.len() - cut % 10);
        if let Ok(header) = decode_header(&bytes, &DataLimits::default()) {
            let total: u64 = header.tensors.iter().map(|t| t.length).sum();
            prop_assert!(total <= DataLimits::default().frame_bytes_max);
        }
    }
}
