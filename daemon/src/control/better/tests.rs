use super::*;
use crate::control::correction::{Corrections, Seen};

/// Twelve equal blocks on four equal devices in a chain, by the profile.
fn problem() -> Problem {
    let block = r#"{"weight_bytes": 1, "peak_bytes": 0, "seconds": {"x": 0.01}}"#;
    let blocks = [block; 12].join(",");
    let devices: Vec<String> = ["a", "b", "c", "d"]
        .iter()
        .map(|id| format!(r#"{{"id": "{id}", "class": "x", "speed": 1.0, "memory_bytes": 99}}"#))
        .collect();
    let text = format!(
        r#"{{"blocks": [{blocks}], "cuts": [1,1,1,1,1,1,1,1,1,1,1,1,1], "devices": [{}],
            "links": {{"default": {{"bytes_per_s": 1e9, "latency_s": 0.0001}}}},
            "replication": false, "min_stages": 4, "max_stages": 4}}"#,
        devices.join(",")
    );
    serde_json::from_str(&text).unwrap()
}

/// A mesh that serves with a plan: what its stages really take, and the leader that watches.
struct World {
    true_blocks: [f64; 12],
    slow: HashMap<&'static str, f64>,
    noise: f64,
    seed: u64,
    now: Instant,
    runs: u64,
    running: Plan,
    learnt: Corrections,
    course: Course,
    moves: usize,
    /// Known links that are not as fast as the others.
    links: Vec<mesh_planner::PairLink>,
}

impl World {
    fn new() -> Self {
        let running = mesh_planner::solve(&problem(), 100_000).unwrap();
        let now = Instant::now();
        let mut course = Course::default();
        course.moves.planned(now, false);
        course.last = Some(problem());
        Self {
            true_blocks: [0.01; 12],
            slow: HashMap::new(),
            noise: 0.0,
            seed: 3,
            now,
            runs: 0,
            running,
            learnt: Corrections::default(),
            course,
            moves: 0,
            links: Vec::new(),
        }
    }

    /// What is known of a link is this from now on.
    fn link(&mut self, from: &str, to: &str, bytes_per_s: f64) {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.links.retain(|pair| pair.from != from || pair.to != to);
        self.links.push(mesh_planner::PairLink { from, to, bytes_per_s, latency_s: 0.0001 });
    }

    fn random(&mut self) -> f64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as f64 / f64::from(1u32 << 30) - 1.0
    }

    /// True seconds of each stage.
    fn stages(&self) -> Vec<(String, f64)> {
        let stages = self.running.stages.iter();
        let seconds = stages.map(|stage| {
            let device = stage.replicas[0].device.clone();
            let blocks: f64 = self.true_blocks[stage.first_block..=stage.last_block].iter().sum();
            let seconds = blocks * self.slow.get(device.as_str()).copied().unwrap_or(1.0);
            (device, seconds)
        });
        seconds.collect()
    }

    fn rate(&self) -> f64 {
        1.0 / self.stages().iter().map(|(_, seconds)| *seconds).fold(0.0, f64::max)
    }

    /// Four seconds: reports are learnt from, and the leader looks.
    fn look(&mut self) {
        (self.now, self.runs) = (self.now + Duration::from_secs(4), self.runs + 40);
        let measured: Vec<(String, f64)> = self
            .stages()
            .into_iter()
            .map(|(device, seconds)| (device, seconds * (1.0 + self.noise * self.random())))
            .collect();
        let seen: Vec<Seen<'_>> = self
            .running
            .stages
            .iter()
            .zip(&measured)
            .map(|(stage, (device, seconds))| Seen {
                device,
                first_block: stage.first_block,
                last_block: stage.last_block,
                seconds: *seconds,
                runs: self.runs,
                speed: 1.0,
            })
            .collect();
        self.learnt.learn("m", &[0.01; 12], &seen, self.now);
        let mut problem = problem();
        self.learnt.apply("m", &mut problem);
        let evaluation = mesh_planner::evaluate(&problem, &self.running).unwrap();
        if self.runs >= 20 {
            self.course.moves.judge(self.now, speed(&evaluation, Objective::Throughput));
        }
        problem.links.pairs = self.links.clone();
        let Some(changed) = self.course.wants_search(&problem, self.now) else { return };
        let found = search(problem, &self.running).unwrap();
        if self.course.moves.weigh(found.gain, changed) {
            self.course.moves.moved(self.now, found.speeds.0, found.speeds.1);
            self.running = found.solved.plan;
            (self.runs, self.moves) = (0, self.moves + 1);
        }
    }

    fn looks(&mut self, looks: usize) {
        for _ in 0..looks {
            self.look();
        }
    }
}

#[test]
fn blocks_that_were_profiled_wrong_are_planned_for() {
    let mut world = World::new();
    world.true_blocks[9..].fill(0.016);
    let before = world.rate();
    world.looks(300);
    assert!(world.rate() > 1.15 * before, "{} after {before}", world.rate());
    assert!((1..=2).contains(&world.moves), "{}", world.moves);
}

#[test]
fn a_device_that_becomes_slow_is_planned_around_within_thirty_seconds() {
    let mut world = World::new();
    world.looks(50);
    assert_eq!(world.moves, 0);
    world.slow.insert("b", 2.0);
    let before = world.rate();
    world.looks(7);
    assert_eq!(world.moves, 1);
    assert!(world.rate() > 1.3 * before, "{} after {before}", world.rate());
    world.looks(300);
    assert!(world.moves <= 2, "{}", world.moves);
}

/// The plan that is made after a link became far slower knows of its neighbours, too.
#[test]
fn links_that_become_slow_are_waited_for_until_no_more_do() {
    let mut world = World::new();
    for (from, to) in [("a", "b"), ("b", "a"), ("c", "b"), ("b", "c")] {
        world.link(from, to, 1e9);
    }
    world.looks(20);
    let looked = |world: &mut World, seconds: u64| {
        world.now += Duration::from_secs(seconds);
        let mut problem = problem();
        problem.links.pairs = world.links.clone();
        world.course.wants_search(&problem, world.now)
    };
    assert_eq!(looked(&mut world, 3), None, "nothing is new");
    world.link("a", "b", 20.0);
    assert_eq!(looked(&mut world, 3), None);
    world.link("b", "c", 20.0);
    assert_eq!(looked(&mut world, 3), None, "the first one is 3 s old");
    assert_eq!(looked(&mut world, 3), None, "the second one is");
    assert_eq!(looked(&mut world, 3), Some(true));
    assert_eq!(looked(&mut world, 3), None);
    world.link("b", "c", 1e9);
    assert_eq!(looked(&mut world, 3), Some(false), "a faster one needs no haste");
    let mut rate = 1e9;
    let waits = (0..9).map(|_| {
        rate /= 10.0;
        world.link("c", "b", rate);
        looked(&mut world, 3).is_none()
    });
    assert_eq!(waits.take_while(|waits| *waits).count(), 4, "not for ever");
}

/// What is known of a device that becomes slow comes in pieces.
#[test]
fn a_device_that_becomes_slower_is_waited_for_until_it_is_known() {
    let mut world = World::new();
    let looked = |world: &mut World, speed: f64, rest_share: f64| {
        world.now += Duration::from_secs(3);
        let mut problem = problem();
        problem.devices[1].speed = speed;
        problem.devices[1].transfer.rest_share = rest_share;
        world.course.wants_search(&problem, world.now)
    };
    world.now += Duration::from_secs(60);
    assert_eq!(looked(&mut world, 1.0, 0.0), None);
    for speed in [0.8, 0.6, 0.5] {
        assert_eq!(looked(&mut world, speed, 0.0), None, "{speed}");
    }
    assert_eq!(looked(&mut world, 0.48, 0.0), Some(false));
    assert_eq!(looked(&mut world, 0.48, 0.4), None, "other programs");
    assert_eq!(looked(&mut world, 0.48, 0.4), Some(false));
    let waits = (1..=9).map(|look| looked(&mut world, 0.48 * 0.8f64.powi(look), 0.4).is_none());
    assert_eq!(waits.take_while(|waits| *waits).count(), 4, "not for ever");
}

#[test]
fn what_gains_less_than_ten_percent_stays() {
    let mut world = World::new();
    world.true_blocks[9..].fill(0.0108);
    world.looks(300);
    assert_eq!(world.moves, 0);
}

#[test]
fn noise_moves_nothing_in_a_thousand_looks() {
    for seed in 0..5 {
        let mut world = World::new();
        (world.noise, world.seed) = (0.08, seed);
        world.looks(1000);
        assert!(world.moves <= 1, "seed {seed}: {} moves", world.moves);
    }
}

#[test]
fn small_changes_make_no_other_problem() {
    let mut other = problem();
    assert!(!differs(&problem(), &other));
    other.devices[0].speed = 1.04;
    assert!(!differs(&problem(), &other));
    other.devices[0].speed = 1.07;
    assert!(differs(&problem(), &other));
    let mut other = problem();
    other.blocks[3].seconds.insert("x".into(), 0.012);
    assert!(differs(&problem(), &other));
    let entering = |a: f64| Some(BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), 1.0 - a)]));
    let (even, shifted) = (entering(0.5), entering(0.6));
    assert!(!differs(
        &Problem { ingress: even.clone(), ..problem() },
        &Problem { ingress: shifted, ..problem() }
    ));
    let all = Problem { ingress: entering(1.0), ..problem() };
    assert!(differs(&Problem { ingress: even, ..problem() }, &all));
    let pair = |bytes_per_s, latency_s| mesh_planner::PairLink {
        from: "a".into(),
        to: "b".into(),
        bytes_per_s,
        latency_s,
    };
    let (mut fast, mut slow) = (problem(), problem());
    fast.links.pairs = vec![pair(1e8, 0.0001)];
    slow.links.pairs = vec![pair(0.9e8, 0.0005)];
    assert!(!differs(&fast, &slow) && differs(&problem(), &slow));
    slow.links.pairs = vec![pair(0.5e8, 0.0001)];
    assert!(differs(&fast, &slow));
}

/// Each device could hold all of the model, which is a million bytes a block.
fn roomy() -> Problem {
    let mut problem = problem();
    problem.blocks.iter_mut().for_each(|block| block.weight_bytes = 1_000_000);
    problem.devices.iter_mut().for_each(|device| device.memory_bytes = 20_000_000);
    (problem.replication, problem.min_stages, problem.max_stages) = (true, None, None);
    problem
}

/// The same with so slow a way to `d`, in bytes per second.
fn slow_to_d(bytes_per_s: f64) -> Problem {
    let mut problem = roomy();
    let link = |from: &str| mesh_planner::PairLink {
        from: from.to_owned(),
        to: "d".to_owned(),
        bytes_per_s,
        latency_s: 0.0001,
    };
    problem.links.pairs = ["a", "b", "c"].map(link).into();
    problem
}

fn on_a() -> Plan {
    let mut alone = roomy();
    alone.devices.truncate(1);
    mesh_planner::solve(&alone, 100_000).unwrap()
}

fn uses(plan: &Plan, device: &str) -> bool {
    plan.stages.iter().any(|stage| stage.replicas.iter().any(|replica| replica.device == device))
}

#[test]
fn a_device_that_takes_long_to_load_is_left_out_unless_it_brings_more_soon() {
    // A quarter of the model, three million bytes: 7.5, 30 and 150 s.
    let rates = [(1e8, true), (400_000.0, true), (100_000.0, true), (20_000.0, false), (0.0, false)];
    for (bytes_per_s, used) in rates {
        let found = search(slow_to_d(bytes_per_s), &on_a()).unwrap();
        let plan = &found.solved.plan;
        assert_eq!(uses(plan, "d"), used, "{bytes_per_s}: {}", plan.why);
        let times = if used { 4.0 } else { 3.0 };
        assert!((found.gain - (times - 1.0)).abs() < 0.1, "{bytes_per_s}: {}", found.gain);
    }
}

#[test]
fn a_plan_is_given_up_while_it_is_prepared_when_links_fall_so_that_it_is_not_worth_it() {
    let (mut improver, mut now) = (Improver::default(), Instant::now());
    let epoch = |epoch, plan| EpochPlan { epoch, model: "m".into(), plan };
    let active = epoch(1, on_a());
    let preparing = epoch(2, search(slow_to_d(1e8), &active.plan).unwrap().solved.plan);
    let course = improver.courses.entry("m".to_owned()).or_default();
    course.look_at_links(&slow_to_d(1e8), now);
    course.moves.moved(now, 1.0, 4.0);
    assert!(improver.may_regret("m", now) && !improver.may_regret("x", now));
    let mut looked = |improver: &mut Improver, problem: &Problem| {
        now += PAUSE;
        assert!(improver.may_regret("m", now));
        (now, improver.regrets("m", &active, &preparing, problem, now))
    };
    assert_eq!(looked(&mut improver, &slow_to_d(1e8)).1, None);
    assert_eq!(looked(&mut improver, &slow_to_d(1e5)).1, None, "other links may be found slow");
    assert_eq!(looked(&mut improver, &slow_to_d(1e5)).1, None);
    let (now, reason) = looked(&mut improver, &slow_to_d(1e5));
    assert!(reason.as_ref().is_some_and(|reason| reason.contains("30 s")), "{reason:?}");
    assert!(!improver.may_regret("m", now + PAUSE), "it is given up once");
    let course = improver.courses.get_mut("m").unwrap();
    assert_eq!(
        course.wants_search(&slow_to_d(1e5), now + PAUSE),
        Some(true),
        "and the best is looked for at once"
    );
    let reason = regret(&slow_to_d(1e8), &on_a(), &on_a());
    assert!(reason.as_ref().is_some_and(|reason| reason.contains("would not bring")), "{reason:?}");
    assert_eq!(regret(&slow_to_d(1e8), &on_a(), &preparing.plan), None);
}
