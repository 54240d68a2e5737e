use super::*;

const MODEL: &str = "m";
/// Profiled seconds of the blocks.
const BLOCKS: [f64; 6] = [0.01, 0.02, 0.01, 0.02, 0.01, 0.03];

/// A mesh whose true times are known: what the blocks take over their profile, and each device over its calibration.
struct World {
    blocks: [f64; 6],
    devices: BTreeMap<&'static str, f64>,
    /// First block, last block, devices.
    plan: Vec<(usize, usize, Vec<&'static str>)>,
    runs: u64,
    now: Instant,
    noise: f64,
    seed: u64,
    learnt: Corrections,
}

impl World {
    fn new(plan: &[(usize, usize, &[&'static str])]) -> Self {
        let devices = plan.iter().flat_map(|(_, _, devices)| devices.iter().map(|d| (*d, 1.0))).collect();
        Self {
            blocks: [1.0; 6],
            devices,
            plan: plan.iter().map(|(first, last, devices)| (*first, *last, devices.to_vec())).collect(),
            runs: 0,
            now: Instant::now(),
            noise: 0.0,
            seed: 7,
            learnt: Corrections::default(),
        }
    }

    /// Between -1 and 1.
    fn random(&mut self) -> f64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as f64 / f64::from(1u32 << 30) - 1.0
    }

    fn true_seconds(&self, first: usize, last: usize, device: &str) -> f64 {
        (first..=last).map(|b| BLOCKS[b] * self.blocks[b]).sum::<f64>() * self.devices[device]
    }

    /// Serves for two seconds at a time, and learns.
    fn serve(&mut self, looks: usize) {
        for _ in 0..looks {
            self.runs += 20;
            self.now += Duration::from_secs(2);
            let mut seen = Vec::new();
            for (first, last, devices) in self.plan.clone() {
                for device in devices {
                    let noise = 1.0 + self.noise * self.random();
                    let seconds = self.true_seconds(first, last, device) * noise;
                    let (runs, speed) = (self.runs, 1.0);
                    seen.push(Seen { device, first_block: first, last_block: last, seconds, runs, speed });
                }
            }
            self.learnt.learn(MODEL, &BLOCKS, &seen, self.now);
        }
    }

    fn block(&self, block: usize) -> f64 {
        self.learnt.models[MODEL].blocks[block]
    }

    fn device(&self, device: &str) -> f64 {
        self.learnt.models[MODEL].devices[device].factor
    }

    /// The largest error of what the corrections say about the stages of the plan.
    fn error(&self) -> f64 {
        let mut worst = 0.0f64;
        for (first, last, devices) in &self.plan {
            for device in devices {
                let said: f64 = (*first..=*last).map(|b| BLOCKS[b] * self.block(b)).sum();
                let said = said * self.device(device);
                worst = worst.max((said / self.true_seconds(*first, *last, device) - 1.0).abs());
            }
        }
        worst
    }
}

fn near(value: f64, expected: f64) -> bool {
    (value / expected - 1.0).abs() < 0.05
}

#[test]
fn blocks_that_the_profile_has_wrong_are_corrected() {
    let mut world = World::new(&[(0, 2, &["a"]), (3, 5, &["b"])]);
    world.blocks = [1.0, 1.0, 1.0, 1.6, 1.6, 1.6];
    world.serve(5);
    assert!(near(world.block(4), 1.6) && near(world.block(0), 1.0), "{:?}", world.learnt);
    assert!(near(world.device("a"), 1.0) && near(world.device("b"), 1.0));
}

#[test]
fn a_device_that_becomes_slow_is_not_its_blocks() {
    let mut world = World::new(&[(0, 2, &["a"]), (3, 5, &["b"])]);
    world.serve(20);
    world.devices.insert("b", 2.0);
    world.serve(10);
    assert!(near(world.device("b"), 2.0) && near(world.block(4), 1.0), "{:?}", world.learnt);
    world.serve(500);
    assert!(near(world.device("b"), 2.0) && near(world.block(4), 1.0), "{:?}", world.learnt);
    world.devices.insert("b", 1.0);
    world.serve(10);
    assert!(near(world.device("b"), 1.0) && near(world.block(4), 1.0), "{:?}", world.learnt);
}

#[test]
fn slowness_goes_with_the_device_to_its_next_stage_and_passes() {
    let mut world = World::new(&[(0, 2, &["a"]), (3, 5, &["b"])]);
    world.blocks[5] = 1.5;
    world.serve(20);
    world.devices.insert("b", 2.0);
    world.serve(10);
    world.plan = vec![(0, 4, vec!["a"]), (5, 5, vec!["b"])];
    world.serve(10);
    assert!(near(world.device("b"), 2.0) && near(world.block(5), 1.5), "{:?}", world.learnt);
    world.devices.insert("b", 1.0);
    world.plan = vec![(0, 2, vec!["a"]), (3, 5, vec!["b"])];
    world.serve(10);
    assert!(near(world.device("b"), 1.0) && world.error() < 0.05, "{:?}", world.learnt);
}

#[test]
fn both_are_told_apart_where_three_devices_run_a_stage() {
    let mut world = World::new(&[(0, 5, &["a", "b", "c"])]);
    world.blocks = [1.7; 6];
    world.devices.insert("c", 2.0);
    world.serve(10);
    assert!(near(world.block(0), 1.7) && near(world.device("a"), 1.0) && near(world.device("c"), 2.0));
}

#[test]
fn of_two_devices_the_one_that_changes_is_the_slow_one() {
    let mut world = World::new(&[(0, 5, &["a", "b"])]);
    world.blocks = [1.5; 6];
    world.serve(10);
    world.devices.insert("b", 1.8);
    world.serve(20);
    assert!(near(world.block(0), 1.5) && near(world.device("a"), 1.0) && near(world.device("b"), 1.8));
}

#[test]
fn noise_leaves_no_mark() {
    let mut world = World::new(&[(0, 1, &["a"]), (2, 3, &["b", "c"]), (4, 5, &["d", "e", "f"])]);
    world.blocks = [1.3, 1.3, 0.8, 0.8, 1.0, 1.0];
    world.noise = 0.1;
    world.serve(20);
    let mut worst = 0.0f64;
    for _ in 0..1000 {
        world.serve(1);
        worst = worst.max(world.error());
    }
    assert!(worst < 0.15, "{worst}");
    assert!((world.block(0) / 1.3 - 1.0).abs() < 0.06, "{:?}", world.learnt);
}

#[test]
fn few_runs_and_nonsense_teach_nothing() {
    let mut learnt = Corrections::default();
    let seen = |seconds, runs, last_block| Seen {
        device: "a",
        first_block: 0,
        last_block,
        seconds,
        runs,
        speed: 1.0,
    };
    let now = Instant::now();
    for seen in [
        seen(0.1, 19, 5),
        seen(9.0, 4, 5),
        seen(f64::NAN, 99, 5),
        seen(-1.0, 99, 5),
        seen(1.0, 99, 6),
        seen(0.0, 99, 5),
    ] {
        learnt.learn(MODEL, &BLOCKS, &[seen], now);
        assert!(!learnt.knows(MODEL), "{seen:?}");
    }
    learnt.learn(MODEL, &BLOCKS, &[seen(1e9, 20, 5)], now);
    assert!(learnt.knows(MODEL));
    assert!(learnt.models[MODEL].blocks.iter().all(|factor| *factor <= LARGEST));
}

#[test]
fn a_device_that_does_nothing_is_forgotten() {
    let mut world = World::new(&[(0, 2, &["a"]), (3, 5, &["b"])]);
    world.serve(20);
    world.devices.insert("b", 2.0);
    world.serve(10);
    // Only "a" goes on.
    world.plan.truncate(1);
    world.serve(295);
    assert!(near(world.device("b"), 2.0));
    world.serve(10);
    assert!(!world.learnt.models[MODEL].devices.contains_key("b"));
    world.learnt.retain(|model| model != MODEL);
    assert!(!world.learnt.knows(MODEL));
}

#[test]
fn a_problem_is_corrected() {
    let mut world = World::new(&[(0, 2, &["a"]), (3, 5, &["b"])]);
    world.blocks[3..].fill(2.0);
    world.serve(20);
    world.devices.insert("a", 2.5);
    world.serve(10);
    let text = r#"{"blocks": [], "cuts": [1, 1, 1, 1, 1, 1, 1], "links": {"default": {"bytes_per_s": 1e9, "latency_s": 0.0}},
        "devices": [{"id": "a", "class": "x", "speed": 1.0, "memory_bytes": 9},
                    {"id": "z", "class": "x", "speed": 1.0, "memory_bytes": 9}]}"#;
    let mut problem: Problem = serde_json::from_str(text).unwrap();
    let block = |seconds| mesh_planner::Block {
        weight_bytes: 1,
        overhead_bytes: 0,
        peak_bytes: 1,
        seconds: [("x".into(), seconds)].into(),
    };
    problem.blocks = BLOCKS.iter().map(|seconds| block(*seconds)).collect();
    world.learnt.apply(MODEL, &mut problem);
    assert!(near(problem.blocks[5].seconds["x"], 0.06) && near(problem.blocks[0].seconds["x"], 0.01));
    assert!(near(problem.devices[0].speed, 0.4), "{:?}", problem.devices);
    assert_eq!(problem.devices[1].speed, 1.0);
}

#[test]
fn a_running_plan_is_forecast_by_its_own_stages() {
    let mut learnt = Corrections::default();
    let seen = |device: &'static str, first_block, last_block, factor: f64| Seen {
        device,
        first_block,
        last_block,
        seconds: BLOCKS[first_block..=last_block].iter().sum::<f64>() * factor,
        runs: 50,
        speed: 1.0,
    };
    // One deployment has the whole model in one session, another cuts it, which costs a fifth.
    let all = [seen("a", 0, 5, 1.0), seen("b", 0, 2, 1.2), seen("c", 3, 5, 1.2)];
    learnt.learn(MODEL, &BLOCKS, &all, Instant::now());
    let block =
        |seconds: &f64| serde_json::json!({"weight_bytes": 1, "peak_bytes": 1, "seconds": {"x": seconds}});
    let device = |id: &str| serde_json::json!({"id": id, "class": "x", "speed": 1.0, "memory_bytes": 9});
    let devices = ["a", "b", "c"].map(device);
    let problem = serde_json::json!({
        "blocks": BLOCKS.iter().map(block).collect::<Vec<_>>(), "cuts": [1, 1, 1, 1, 1, 1, 1],
        "links": {"default": {"bytes_per_s": 1e9, "latency_s": 0.0}}, "devices": devices,
    });
    let problem: Problem = serde_json::from_value(problem).unwrap();
    let seconds = |stages: &[(usize, usize, &str)]| {
        let stage = |(first, last, device): &(usize, usize, &str)| serde_json::json!({"first_block": first, "last_block": last, "replicas": [{"device": device, "share": 1.0}]});
        let plan = serde_json::json!({
            "stages": stages.iter().map(stage).collect::<Vec<_>>(),
            "bottleneck_s": 0.1, "bottleneck": {"kind": "compute", "stage": 0, "device": "a"}, "throughput_rps": 10.0,
            "latency_s": 0.1, "lower_bound_s": 0.1, "optimal": true, "why": "", "unused": [], "alternatives": [],
        });
        let mut problem = problem.clone();
        learnt.apply_to(MODEL, &serde_json::from_value(plan).unwrap(), &mut problem);
        problem.blocks.iter().map(|block| block.seconds["x"]).sum::<f64>()
    };
    let whole: f64 = BLOCKS.iter().sum();
    assert!(near(seconds(&[(0, 5, "a")]), whole));
    assert!(near(seconds(&[(0, 2, "b"), (3, 5, "c")]), whole * 1.2));
}
