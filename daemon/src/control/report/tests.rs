use ciborium::Value;

use super::*;

/// What a device with nothing says, in CBOR.
fn said(cluster: Option<ClusterId>) -> Value {
    let report = NodeReport {
        name: "camera-1".into(),
        version: "0.1.0".into(),
        cluster,
        memory_budget_bytes: 1,
        memory_used_bytes: 0,
        calibration_s: Some(0.5),
        stages: Vec::new(),
        kept: BTreeSet::new(),
        links: BTreeMap::new(),
        card_bytes_per_s: None,
        transfer: TransferCost::default(),
        entering: BTreeMap::new(),
        arriving: BTreeMap::new(),
        under_way: BTreeMap::new(),
        crossing: Vec::new(),
        others_share: 0.0,
    };
    ciborium::from_reader(report.encode().as_slice()).unwrap()
}

fn heard(said: &Value) -> Option<ClusterId> {
    let mut bytes = Vec::new();
    ciborium::into_writer(said, &mut bytes).unwrap();
    NodeReport::decode(&bytes).unwrap().cluster
}

#[test]
fn a_report_tells_the_cluster_and_one_of_an_earlier_build_none() {
    for cluster in [Some(ClusterId([7; 16])), Some(NO_CLUSTER), None] {
        assert_eq!(heard(&said(cluster)), cluster);
    }
    let Value::Map(mut fields) = said(Some(ClusterId([7; 16]))) else { panic!("a report is a map") };
    let all = fields.len();
    fields.retain(|(key, _)| key.as_text() != Some("cluster"));
    assert_eq!(fields.len(), all - 1);
    assert_eq!(heard(&Value::Map(fields)), None);
}
