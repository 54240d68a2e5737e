use mesh_consensus::{ClusterId, Deployment, EpochPlan};
use mesh_planner::{Objective, Plan};
use proptest::prelude::*;

use super::*;

/// One stage of blocks 0 to 3 on "a", with "b" standing by.
fn plan() -> Plan {
    let plan = serde_json::json!({
        "stages": [{"first_block": 0, "last_block": 3, "replicas": [{"device": "a", "share": 1.0}], "standbys": ["b"]}],
        "bottleneck_s": 0.1, "bottleneck": {"kind": "compute", "stage": 0, "device": "a"}, "throughput_rps": 10.0,
        "latency_s": 0.1, "lower_bound_s": 0.1, "optimal": true, "why": "", "unused": [], "alternatives": [],
    });
    serde_json::from_value(plan).unwrap()
}

fn state(preparing: bool) -> ClusterState {
    let plan = |epoch| EpochPlan { epoch, model: "m".into(), plan: plan() };
    let deployment = Deployment {
        name: "digits".into(),
        model: "m".into(),
        objective: Objective::Throughput,
        stages: None,
        pin: None,
        shapes: Vec::new(),
        active: Some(plan(1)),
        preparing: preparing.then(|| plan(2)),
        next_epoch: 3,
        asked_epoch: 1,
        fault: None,
    };
    let mut state = ClusterState::empty(ClusterId([0; 16]));
    state.deployments.insert("digits".into(), deployment);
    state
}

fn epochs(state: &ClusterState, me: &str, live: &[&str], has: bool) -> Vec<u64> {
    let known = Known {
        me,
        budget: u64::MAX,
        is_live: &|device: &str| live.contains(&device),
        has: &|_| has,
        has_weights: &|_, _| false,
    };
    wanted_here(state, &known).keys().map(|key| key.epoch).collect()
}

#[test]
fn a_standby_holds_its_stage_while_that_costs_nothing_or_is_needed() {
    for has in [false, true] {
        let settled = state(false);
        assert_eq!(epochs(&settled, "a", &["a", "b"], has), [1]);
        assert_eq!(epochs(&settled, "b", &["a", "b"], has), [1]);
        assert_eq!(epochs(&settled, "c", &["a", "b"], has), Vec::<u64>::new());
        let moving = state(true);
        assert_eq!(epochs(&moving, "a", &["a", "b"], has), [1, 2]);
        assert_eq!(epochs(&moving, "b", &["b"], has), [1, 2], "nobody else has the stage");
    }
    let moving = state(true);
    let none = Vec::<u64>::new();
    assert_eq!(epochs(&moving, "b", &["a", "b"], false), none, "first what the next plan needs");
    assert_eq!(epochs(&moving, "b", &["a", "b"], true), [1], "the active plan stays insured");
}

fn session(first_block: usize) -> SessionKey {
    SessionKey { model: "m".into(), first_block, last_block: 3 }
}

fn stage(epoch: u64) -> StageKey {
    StageKey { deployment: "digits".into(), epoch, stage: 0 }
}

fn wanted<const N: usize>(stages: [(u64, usize, Claim); N]) -> BTreeMap<StageKey, Wanted> {
    let one = |(epoch, first, claim)| (stage(epoch), Wanted { session: session(first), bytes: 60, claim });
    stages.into_iter().map(one).collect()
}

const BUDGET: u64 = 100;

/// Nothing is to spare beyond the budget.
fn room(budget: u64) -> Room<'static> {
    Room { budget, spare: &|| 0 }
}

fn look(holdings: &mut Holdings, now: Instant, wanted: &BTreeMap<StageKey, Wanted>) -> Vec<Act> {
    holdings.look(now, wanted, &room(BUDGET), |_| false)
}

/// From nothing to a stage that frames reach.
fn serve(holdings: &mut Holdings, now: Instant, wanted: &BTreeMap<StageKey, Wanted>, key: &SessionKey) {
    assert_eq!(look(holdings, now, wanted), [Act::Fetch(key.clone())]);
    assert_eq!(look(holdings, now, wanted), [], "it is being fetched");
    holdings.fetched(key);
    assert_eq!(look(holdings, now, wanted), [Act::Load(key.clone())]);
    assert_eq!(look(holdings, now, wanted), [], "it is being made");
    assert!(holdings.finished(now, key, Ok(())));
    let hosts = look(holdings, now, wanted);
    assert!(matches!(&hosts[..], [Act::Host(_, session)] if session == key), "{hosts:?}");
}

#[test]
fn a_session_serves_the_next_plan_too_and_goes_when_the_last_stage_is_out_of_reach() {
    let (mut holdings, start) = (Holdings::default(), Instant::now());
    serve(&mut holdings, start, &wanted([(1, 0, Claim::Firm)]), &session(0));
    let next = wanted([(2, 0, Claim::Firm)]);
    assert_eq!(look(&mut holdings, start, &next), [Act::Host(stage(2), session(0))]);
    let later = start + RETIRE + Duration::from_millis(1);
    assert_eq!(look(&mut holdings, later, &next), [Act::Unhost(stage(1))]);
    let gone = later + RETIRE + Duration::from_millis(1);
    assert_eq!(look(&mut holdings, gone, &BTreeMap::new()), [Act::Unhost(stage(2)), Act::Drop(session(0))]);
    assert!(!holdings.finished(gone, &session(0), Ok(())), "nobody wants it");
}

#[test]
fn a_retired_stage_answers_as_long_as_requests_are_on_its_plan() {
    let (mut holdings, start) = (Holdings::default(), Instant::now());
    let (first, next) = (wanted([(1, 0, Claim::Firm)]), wanted([(2, 0, Claim::Firm)]));
    serve(&mut holdings, start, &first, &session(0));
    look(&mut holdings, start, &next);
    let is_first = |key: &StageKey| key.epoch == 1;
    let later = start + 10 * RETIRE;
    assert_eq!(holdings.look(later, &next, &room(BUDGET), is_first), []);
    assert!(holdings.is_hosted(&stage(1)));
    assert_eq!(look(&mut holdings, later, &next), [Act::Unhost(stage(1))]);
    look(&mut holdings, later, &first);
    let at_last = later + DRAIN + Duration::from_millis(1);
    assert_eq!(
        holdings.look(at_last, &next, &room(BUDGET), is_first),
        [Act::Unhost(stage(1))],
        "a request may hang for ever"
    );
}

#[test]
fn what_cannot_be_made_is_tried_again_after_a_while() {
    let (mut holdings, start) = (Holdings::default(), Instant::now());
    let wanted = wanted([(1, 0, Claim::Firm)]);
    look(&mut holdings, start, &wanted);
    assert!(holdings.finished(start, &session(0), Err("the disk is full".into())));
    assert_eq!(look(&mut holdings, start + RETRY / 2, &wanted), []);
    assert!(!holdings.is_settled());
    assert_eq!(look(&mut holdings, start + RETRY, &wanted), [Act::Fetch(session(0))]);
}

#[test]
fn where_both_do_not_fit_the_old_stage_gives_way_late_and_stays_away() {
    let (mut holdings, start) = (Holdings::default(), Instant::now());
    serve(&mut holdings, start, &wanted([(1, 0, Claim::Firm)]), &session(0));
    let moving = wanted([(1, 0, Claim::Old), (2, 1, Claim::Firm)]);
    assert_eq!(look(&mut holdings, start, &moving), [Act::Fetch(session(1))]);
    holdings.fetched(&session(1));
    assert_eq!(look(&mut holdings, start, &moving), [], "others are still fetching");
    let due = wanted([(1, 0, Claim::GivesWay), (2, 1, Claim::Firm)]);
    let acts = [Act::Unhost(stage(1)), Act::Drop(session(0)), Act::Load(session(1))];
    assert_eq!(look(&mut holdings, start, &due), acts);
    assert_eq!(look(&mut holdings, start, &moving), [], "it does not come back between");
    // The next plan is given up: the old stage is made again, in the place of the new one.
    let back = wanted([(1, 0, Claim::Firm)]);
    let acts = [Act::Drop(session(1)), Act::Fetch(session(0))];
    let mut done = look(&mut holdings, start, &back);
    done.sort_by_key(|act| matches!(act, Act::Fetch(_)));
    assert_eq!(done, acts);
}

#[test]
fn after_a_restart_the_old_stage_does_not_come_beside_the_new_one() {
    let (mut holdings, start) = (Holdings::default(), Instant::now());
    serve(&mut holdings, start, &wanted([(2, 1, Claim::Firm)]), &session(1));
    let moving = wanted([(1, 0, Claim::Old), (2, 1, Claim::Firm)]);
    assert_eq!(look(&mut holdings, start, &moving), [Act::Fetch(session(0))]);
    holdings.fetched(&session(0));
    assert_eq!(look(&mut holdings, start, &moving), []);
    let back = wanted([(1, 0, Claim::Firm)]);
    let later = start + RETIRE + Duration::from_millis(1);
    assert_eq!(look(&mut holdings, later, &back).last(), Some(&Act::Load(session(0))));
}

#[test]
fn where_both_fit_the_old_stage_stays() {
    let (mut holdings, start) = (Holdings::default(), Instant::now());
    serve(&mut holdings, start, &wanted([(1, 0, Claim::Firm)]), &session(0));
    let moving = wanted([(1, 0, Claim::GivesWay), (2, 1, Claim::Firm)]);
    assert_eq!(holdings.look(start, &moving, &room(120), |_| false), [Act::Fetch(session(1))]);
    holdings.fetched(&session(1));
    assert_eq!(holdings.look(start, &moving, &room(120), |_| false), [Act::Load(session(1))]);
    assert!(holdings.is_hosted(&stage(1)));
}

#[test]
fn where_memory_is_to_spare_both_stay_until_the_plan_has_changed() {
    for (spare, acts) in [(90, vec![Act::Load(session(1))]), (89, Vec::new())] {
        let (mut holdings, start) = (Holdings::default(), Instant::now());
        serve(&mut holdings, start, &wanted([(1, 0, Claim::Firm)]), &session(0));
        let moving = wanted([(1, 0, Claim::Old), (2, 1, Claim::Firm)]);
        look(&mut holdings, start, &moving);
        holdings.fetched(&session(1));
        let room = Room { budget: BUDGET, spare: &|| spare };
        assert_eq!(holdings.look(start, &moving, &room, |_| false), acts);
        assert!(holdings.is_hosted(&stage(1)));
    }
}

#[test]
fn what_fits_in_no_case_is_made_all_the_same_and_what_is_not_wanted_any_more_makes_room() {
    let (mut holdings, start) = (Holdings::default(), Instant::now());
    serve(&mut holdings, start, &wanted([(1, 0, Claim::Firm)]), &session(0));
    let both = wanted([(1, 0, Claim::Firm), (2, 1, Claim::Firm)]);
    look(&mut holdings, start, &both);
    holdings.fetched(&session(1));
    assert_eq!(look(&mut holdings, start, &both), [Act::Load(session(1))], "counted twice");
    assert!(holdings.finished(start, &session(1), Ok(())));
    assert_eq!(look(&mut holdings, start, &both), [Act::Host(stage(2), session(1))]);
    // Requests are still on the plans before.
    let next = wanted([(3, 2, Claim::Firm)]);
    assert_eq!(holdings.look(start, &next, &room(BUDGET), |_| true), [Act::Fetch(session(2))]);
    holdings.fetched(&session(2));
    let acts = holdings.look(start, &next, &room(BUDGET), |_| true);
    assert_eq!(acts.last(), Some(&Act::Load(session(2))));
    assert_eq!(acts.iter().filter(|act| matches!(act, Act::Drop(_))).count(), 2, "{acts:?}");
}

#[test]
fn an_old_plan_gives_way_once_the_next_has_its_weights_or_when_it_cannot_serve() {
    let moving = state(true);
    let claim = |live: &[&str], has_weights: bool, me: &str| {
        let known = Known {
            me,
            budget: u64::MAX,
            is_live: &|device: &str| live.contains(&device),
            has: &|_| true,
            has_weights: &|device, key| {
                assert!(device != me && key.epoch == 2);
                has_weights
            },
        };
        let wanted = wanted_here(&moving, &known);
        assert!(wanted.get(&stage(2)).is_none_or(|wanted| wanted.claim == Claim::Firm));
        wanted[&stage(1)].claim
    };
    assert_eq!(claim(&["a", "b"], false, "b"), Claim::Old);
    assert_eq!(claim(&["a", "b"], true, "b"), Claim::GivesWay);
    assert_eq!(claim(&[], false, "b"), Claim::GivesWay, "nobody has its stage");
    assert_eq!(claim(&["a", "b"], false, "a"), Claim::GivesWay, "all others have what they need");
    let settled = state(false);
    let known =
        Known { me: "a", budget: 0, is_live: &|_| false, has: &|_| false, has_weights: &|_, _| false };
    assert_eq!(wanted_here(&settled, &known)[&stage(1)].claim, Claim::Firm);
}

proptest! {
    /// Whatever is wanted in whatever order: what is loaded fits, or does not even without the old.
    #[test]
    fn no_more_is_loaded_than_there_is_memory(
        steps in prop::collection::vec((prop::collection::vec((0_usize..6, 0_u8..3), 0..5), 0_usize..8), 1..40),
        budget in 0_u64..200,
    ) {
        let (mut holdings, start) = (Holdings::default(), Instant::now());
        for (at, (stages, event)) in steps.into_iter().enumerate() {
            let now = start + Duration::from_secs(at as u64);
            let one = |(epoch, (first, claim)): (usize, (usize, u8))| {
                let claim = [Claim::Firm, Claim::Old, Claim::GivesWay][usize::from(claim)];
                let bytes = 20 * first as u64 + 10;
                (stage(epoch as u64), Wanted { session: session(first), bytes, claim })
            };
            let wanted: BTreeMap<StageKey, Wanted> = stages.into_iter().enumerate().map(one).collect();
            let acts = holdings.look(now, &wanted, &room(budget), |_| at % 2 == 0);
            let firm: BTreeMap<&SessionKey, u64> = wanted
                .values()
                .filter(|wanted| wanted.claim == Claim::Firm)
                .map(|wanted| (&wanted.session, wanted.bytes))
                .collect();
            let has_loaded = acts.iter().any(|act| matches!(act, Act::Load(_)));
            if has_loaded && firm.values().sum::<u64>() <= budget {
                prop_assert!(holdings.taken() <= budget, "{} of {budget}: {wanted:?} {holdings:?}", holdings.taken());
            }
            for (key, wanted) in wanted.iter().filter(|(_, wanted)| wanted.claim == Claim::Firm) {
                let is_known = holdings.session(&wanted.session).is_some();
                prop_assert!(is_known, "{key:?} is firmly wanted and nobody sees to it");
            }
            let key = session(event);
            match holdings.session(&key) {
                Some(Session::Fetching) => holdings.fetched(&key),
                Some(Session::Loading) => prop_assert!(holdings.finished(now, &key, Ok(()))),
                Some(Session::Waiting | Session::Ready | Session::Failed { .. }) | None => {}
            }
        }
    }
}
