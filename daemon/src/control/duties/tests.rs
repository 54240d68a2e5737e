use mesh_consensus::{ClusterId, DeviceId, Member, StorageId};
use mesh_planner::Objective;

use super::*;

const NAME: &str = "digits";
/// A failure in other words than replicated state takes.
const LONG: usize = 3 * MAX_TEXT;

/// What devices say now of their stage of plan `epoch`, as text: `a:ready b:failed c:-`. Who is not named is away.
#[derive(Debug, Clone, Copy)]
struct Room<'t> {
    told: &'t str,
    epoch: u64,
}

impl Room<'_> {
    fn word(&self, device: &str) -> Option<&str> {
        self.told.split(' ').find_map(|told| told.strip_prefix(device)?.strip_prefix(':'))
    }
}

impl Sight for Room<'_> {
    fn is_live(&self, device: &str) -> bool {
        self.word(device).is_some()
    }

    fn stage(&self, device: &str, _: &str, epoch: u64, _: usize) -> Option<StageState> {
        match self.word(device).filter(|_| epoch == self.epoch)? {
            "ready" => Some(StageState::Ready),
            "tries" => Some(StageState::Preparing { done: 0, total: 1 }),
            "failed" => Some(StageState::Failed { reason: "the blob is damaged".into() }),
            "raves" => Some(StageState::Failed { reason: "ä".repeat(LONG) }),
            _ => None,
        }
    }

    fn keeps(&self, _: &str, _: &str) -> bool {
        true
    }

    fn ready(&self) -> (BTreeSet<String>, usize) {
        (["a", "b", "c"].into_iter().filter(|id| self.is_live(id)).map(str::to_owned).collect(), 0)
    }

    fn name(&self, device: &str) -> String {
        device.to_uppercase()
    }

    fn budget(&self, _: &str) -> Option<u64> {
        Some(u64::MAX)
    }
}

/// A stage on each of these devices.
fn plan(epoch: u64, devices: &[&str]) -> EpochPlan {
    let stage = |(index, device): (usize, &&str)| serde_json::json!({"first_block": index, "last_block": index, "replicas": [{"device": device, "share": 1.0}]});
    let plan = serde_json::json!({
        "stages": devices.iter().enumerate().map(stage).collect::<Vec<_>>(), "bottleneck_s": 0.1,
        "bottleneck": {"kind": "compute", "stage": 0, "device": "a"}, "throughput_rps": 10.0, "latency_s": 0.1,
        "lower_bound_s": 0.1, "optimal": true, "why": "", "unused": [], "alternatives": [],
    });
    EpochPlan { epoch, model: "m".into(), plan: serde_json::from_value(plan).unwrap() }
}

/// Members "a", "b" and "c", and a deployment with these plans.
fn state(active: Option<EpochPlan>, preparing: Option<EpochPlan>) -> ClusterState {
    let member = |(raft_id, device): (u64, &str)| Member {
        raft_id,
        device: DeviceId(device.into()),
        storage: StorageId([0; 16]),
        name: device.into(),
        address: String::new(),
        draining: false,
    };
    let members: Vec<Member> = (1..).zip(["a", "b", "c"]).map(member).collect();
    let mut state = ClusterState::founded(ClusterId([1; 16]), "home", &members);
    let deployment = Deployment {
        name: NAME.into(),
        model: "m".into(),
        objective: Objective::Throughput,
        stages: None,
        pin: None,
        shapes: Vec::new(),
        active,
        preparing,
        next_epoch: 9,
        asked_epoch: 1,
        fault: None,
    };
    state.deployments.insert(NAME.into(), deployment);
    state
}

/// A leader with a clock.
struct Leads {
    duties: Duties,
    start: Instant,
}

impl Leads {
    fn new() -> Self {
        Self { duties: Duties::default(), start: Instant::now() }
    }

    /// One look, and what follows from it: what is needed, and for a plan the devices that it may use.
    fn look(&mut self, at_s: u64, state: &ClusterState, told: &str) -> String {
        let (now, deployment) = (self.start + Duration::from_secs(at_s), &state.deployments[NAME]);
        let plans = deployment.preparing.as_ref().or(deployment.active.as_ref());
        let room = Room { told, epoch: plans.map_or(0, |plan| plan.epoch) };
        self.duties.look(now, state, &room);
        let need = self.duties.need(now, state, deployment, &room);
        match need {
            Need::Plan => {
                let usable = self.duties.usable(NAME, &room);
                self.duties.planned(now, deployment, usable.clone());
                format!("plan for {}", Vec::from_iter(usable).join(" "))
            }
            Need::Abandon { reason, culprit, .. } => {
                self.duties.abandoned(now, NAME, culprit.clone());
                format!("abandon, {reason}; without {}", culprit.as_deref().unwrap_or("-"))
            }
            Need::None | Need::GiveWay | Need::Better | Need::Healed | Need::Activate(_) => {
                format!("{need:?}").to_lowercase()
            }
        }
    }

    fn play(state: &ClusterState, script: &[(u64, &str, &str)]) {
        let mut leads = Self::new();
        for (at_s, told, needed) in script {
            assert_eq!(leads.look(*at_s, state, told), *needed, "at {at_s} s: {told}");
        }
    }
}

#[test]
fn a_plan_is_not_waited_for_where_a_device_says_nothing_of_it() {
    let prepared = state(None, Some(plan(1, &["a", "b"])));
    let silent = "abandon, B says nothing about stage 1; without b";
    let cases: [&[(u64, &str, &str)]; 6] = [
        &[(0, "a:ready b:-", "none"), (20, "a:ready b:-", "none"), (21, "a:ready b:-", silent)],
        // Whoever works is waited for as long as it takes.
        &[
            (0, "a:tries b:tries", "none"),
            (900, "a:tries b:tries", "none"),
            (901, "a:ready b:ready", "activate(1)"),
        ],
        &[(0, "a:tries b:-", "none"), (21, "a:tries b:-", silent)],
        &[(0, "a:ready b:-", "none"), (19, "a:ready b:ready", "activate(1)")],
        &[
            (0, "a:ready b:-", "none"),
            (9, "a:ready", "abandon, B went away while it prepared stage 1; without -"),
        ],
        &[
            (0, "a:tries b:-", "none"),
            (9, "a:tries b:failed", "abandon, B cannot prepare stage 1: the blob is damaged; without b"),
        ],
    ];
    for script in cases {
        Leads::play(&prepared, script);
    }
}

#[test]
fn the_next_plan_is_waited_for_anew_and_so_by_the_next_leader() {
    let (first, next) = (state(None, Some(plan(1, &["a", "b"]))), state(None, Some(plan(2, &["a", "b"]))));
    let mut leads = Leads::new();
    assert_eq!(leads.look(0, &first, "a:ready b:-"), "none");
    assert_eq!(leads.look(15, &next, "a:ready b:-"), "none");
    assert_eq!(leads.look(35, &next, "a:ready b:-"), "none");
    leads.duties.resign();
    assert_eq!(leads.look(36, &next, "a:ready b:-"), "none");
    assert_eq!(leads.look(56, &next, "a:ready b:-"), "none");
    assert!(leads.look(57, &next, "a:ready b:-").starts_with("abandon"));
    assert_eq!(leads.look(58, &state(None, None), "a:- b:- c:-"), "plan for a c");
}

#[test]
fn a_stage_that_cannot_be_loaded_is_lost_after_a_while() {
    let serving = state(Some(plan(1, &["a", "b"])), None);
    let cases: [&[(u64, &str, &str)]; 6] = [
        &[
            (0, "a:ready b:failed c:-", "better"),
            (9, "a:ready b:failed c:-", "better"),
            (10, "a:ready b:failed c:-", "plan for a c"),
            // While no plan can be made without it, it stays lost, whatever it tries, and all is well once it is well.
            (12, "a:ready b:tries c:-", "none"),
            (15, "a:ready b:tries c:-", "plan for a c"),
            (60, "a:ready b:failed c:-", "plan for a c"),
            (61, "a:ready b:ready c:-", "better"),
            (62, "a:ready b:ready", "better"),
            (65, "a:ready c:-", "plan for a c"),
            (66, "b:ready c:-", "plan for b c"),
        ],
        // Another try ends nothing, and is waited for.
        &[
            (0, "a:ready b:failed c:-", "better"),
            (5, "a:ready b:tries c:-", "better"),
            (6, "a:ready b:failed c:-", "better"),
            (11, "a:ready b:tries c:-", "better"),
            (99, "a:ready b:failed c:-", "plan for a c"),
        ],
        &[
            (0, "a:ready b:failed c:-", "better"),
            (8, "a:ready b:ready c:-", "better"),
            (9, "a:ready b:failed c:-", "better"),
            (18, "a:ready b:failed c:-", "better"),
            (19, "a:ready b:failed c:-", "plan for a c"),
        ],
        // A device that was away starts anew.
        &[
            (0, "a:ready b:failed c:-", "better"),
            (5, "a:ready c:-", "plan for a c"),
            (6, "a:ready b:- c:-", "better"),
            (7, "a:ready b:failed c:-", "better"),
            (16, "a:ready b:failed c:-", "better"),
            (17, "a:ready b:failed c:-", "plan for a c"),
        ],
        &[(0, "a:ready b:tries c:-", "better"), (900, "a:ready b:tries c:-", "better")],
        &[(0, "a:failed b:failed", "better"), (10, "a:failed b:failed", "plan for ")],
    ];
    for script in cases {
        Leads::play(&serving, script);
    }
}

#[test]
fn a_device_that_could_not_load_its_stage_is_left_out_of_the_next_plans_for_a_while() {
    let (first, next) = (state(Some(plan(1, &["a", "b"])), None), state(Some(plan(2, &["a", "c"])), None));
    let mut leads = Leads::new();
    leads.look(0, &first, "a:ready b:failed c:-");
    assert_eq!(leads.look(10, &first, "a:ready b:failed c:-"), "plan for a c");
    assert_eq!(leads.look(12, &next, "a:ready b:- c:ready"), "better");
    assert!(leads.duties.failures.is_empty(), "nothing is remembered of an earlier plan");
    assert_eq!(leads.look(13, &next, "a:ready b:-"), "plan for a");
    assert_eq!(leads.look(40, &next, "a:ready b:-"), "plan for a b");
    let mut gone = next;
    gone.deployments.clear();
    leads.duties.look(leads.start, &gone, &Room { told: "", epoch: 0 });
    assert!(leads.duties.planned.is_empty() && leads.duties.preparing.is_empty());
}

#[test]
fn what_was_wrong_is_over_once_the_stage_is_loaded() {
    let mut serving = state(Some(plan(1, &["a", "b"])), None);
    serving.deployments.get_mut(NAME).unwrap().fault = Some("too little memory".into());
    Leads::play(
        &serving,
        &[
            (0, "a:ready b:failed", "healed"),
            (10, "a:ready b:failed", "plan for a"),
            (11, "a:ready b:tries", "none"),
            (12, "a:ready b:ready", "healed"),
        ],
    );
}

#[test]
fn a_fault_tells_what_a_plan_has_to_do_without() {
    let serving = state(Some(plan(1, &["a", "b"])), None);
    let room = Room { told: "a:ready b:failed", epoch: 1 };
    let mut leads = Leads::new();
    let explained = |leads: &Leads| leads.duties.explained(NAME, "too little memory", &room);
    leads.look(0, &serving, room.told);
    assert_eq!(explained(&leads), "too little memory");
    leads.look(10, &serving, room.told);
    assert_eq!(
        explained(&leads),
        "B cannot load stage 1: the blob is damaged; without it: too little memory"
    );
    assert_eq!(leads.duties.explained("other", "too little memory", &room), "too little memory");
}

#[test]
fn reasons_are_as_short_as_replicated_state_takes() {
    let prepared = state(None, Some(plan(1, &["a"])));
    let (mut leads, now) = (Leads::new(), Instant::now());
    let room = Room { told: "a:raves", epoch: 1 };
    let need = leads.duties.need(now, &prepared, &prepared.deployments[NAME], &room);
    let Need::Abandon { reason, .. } = need else { panic!("{need:?}") };
    assert!(reason.len() <= MAX_TEXT && reason.len() > MAX_TEXT - 8 && reason.ends_with("ä…"), "{reason}");
    let serving = state(Some(plan(1, &["a"])), None);
    leads.look(0, &serving, room.told);
    leads.look(10, &serving, room.told);
    let explained = leads.duties.explained(NAME, "too little memory", &room);
    assert!(explained.len() < REASON_MAX + 99 && explained.ends_with("too little memory"), "{explained}");
    for (text, room, expected) in [("abc", 3, "abc"), ("abcd", 3, "…"), ("äöü", 6, "äöü"), ("äöüß", 6, "ä…")]
    {
        assert_eq!(short(text.into(), room), expected);
    }
}
