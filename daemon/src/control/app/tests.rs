use std::sync::Arc;

use mesh_consensus::{ClusterId, ClusterState};
use mesh_planner::Objective;

use super::*;

/// A view with a deployment "digits".
fn view(phase: Phase, refused: Option<&str>) -> ClusterView {
    let mut state = ClusterState::founded(ClusterId([1; 16]), "home", &[]);
    let deployment = Deployment {
        name: "digits".into(),
        model: "m".into(),
        objective: Objective::Throughput,
        stages: None,
        pin: None,
        shapes: Vec::new(),
        active: None,
        preparing: None,
        next_epoch: 1,
        asked_epoch: 1,
        fault: None,
    };
    state.deployments.insert("digits".into(), deployment);
    ClusterView {
        phase,
        state: Arc::new(state),
        raft_id: 1,
        term: 1,
        leader: None,
        is_leader: false,
        voters: vec![1],
        conflict: None,
        refused: refused.map(str::to_owned),
    }
}

fn unavailable(error: &AppError) -> Option<u64> {
    match error {
        AppError::Unavailable { retry_after_s, .. } => Some(*retry_after_s),
        AppError::Invalid(_)
        | AppError::NotFound(_)
        | AppError::Conflict(_)
        | AppError::DeadlineExceeded(_)
        | AppError::Internal(_) => None,
    }
}

#[test]
fn a_device_outside_the_cluster_knows_of_no_deployment() {
    for outside in [view(Phase::Joining, None), view(Phase::Member, Some("it was removed"))] {
        assert!(!is_inside(&outside));
        for name in ["digits", "nope"] {
            assert_eq!(unavailable(&known(&outside, name).unwrap_err()), Some(5));
            assert_eq!(unavailable(&not_served(&outside, name, "unknown".into())), Some(5));
        }
    }
    let inside = view(Phase::Member, None);
    assert!(is_inside(&inside) && check_inside(&inside, "digits").is_ok());
    assert_eq!(known(&inside, "digits").unwrap().name, "digits");
    assert!(matches!(known(&inside, "nope").unwrap_err(), AppError::NotFound(_)));
    // Its route is on its way to the data plane.
    assert_eq!(unavailable(&not_served(&inside, "digits", "unknown".into())), Some(1));
    assert!(
        matches!(not_served(&inside, "nope", "unknown".into()), AppError::NotFound(what) if what == "unknown")
    );
}
