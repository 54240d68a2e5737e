//! The ingress in single cases.

use super::*;
use crate::data::Detour;

#[test]
fn a_late_answer_of_an_older_attempt_is_taken() {
    let mut world = World::new();
    let other = world.peers[1];
    world.up.insert(other);
    world.ingress.peer_up(world.now, other);
    world.plan(0, &[0b0011]);
    world.begin(0, 3000);
    world.check();
    let first = world.sends[0].clone();
    world.apply(Event::Wait { ms: 800 });
    world.check();
    assert_eq!(world.sends.len(), 2, "sent again");
    assert_ne!(world.sends[0].devices, world.sends[1].devices);
    let last = first.devices[0];
    world.ingress.on_result(world.now, last, &first, vec![("y".into(), tensor())]);
    let effects = world.ingress.take_effects();
    assert!(matches!(&effects[..], [Effect::Finish { result: Ok(r), .. }] if r.retries == 1), "{effects:?}");
}

/// The device before it knows that it stands by and is ready; this one has not heard so yet.
#[test]
fn what_a_standby_answers_that_is_not_known_to_be_ready_is_taken() {
    let mut world = World::new();
    let (other, third) = (world.peers[1], world.peers[2]);
    for peer in [other, third] {
        world.up.insert(peer);
        world.ingress.peer_up(world.now, peer);
    }
    world.plan(0, &[0b0010, 0b0100]);
    let mut route = (*world.routes[NAMES[0]]).clone();
    route.epoch += 1;
    world.epoch += 1;
    route.stages[1].unready = vec![other];
    world.routes.insert(NAMES[0].into(), Arc::new(route));
    world.ingress.set_routes(world.now, world.routes.clone());
    world.begin(0, 20_000);
    world.check();
    let mut address = world.sends[0].clone();
    address.devices = vec![other, other].into();
    world.ingress.on_moved(world.now, other, &address, 1);
    world.ingress.on_result(world.now, other, &address, vec![("y".into(), tensor())]);
    let effects = world.ingress.take_effects();
    assert!(matches!(&effects[..], [Effect::Finish { result: Ok(r), .. }] if r.retries == 0), "{effects:?}");
}

#[test]
fn a_request_that_went_another_way_is_followed() {
    let mut world = World::with_peers();
    let peers = world.peers.clone();
    // The first stage here, the second on two others.
    world.plan(0, &[0b0001, 0b0110]);
    world.begin(0, 20_000);
    world.check();
    let mut moved = world.sends[0].clone();
    let (picked, other) = (moved.devices[1], if moved.devices[1] == peers[1] { peers[2] } else { peers[1] });
    moved.devices = [moved.devices[0], other].into();
    let stranger: Arc<[PeerId]> = [moved.devices[0], peers[3]].into();
    world.ingress.on_moved(world.now, moved.devices[0], &moved, 1);
    world.ingress.on_moved(world.now, moved.devices[0], &Address { devices: stranger, ..moved.clone() }, 1);
    // Nor does one that had no part in it tell where it went.
    world.ingress.on_moved(world.now, peers[3], &world.sends[0].clone(), 1);
    // The loss of the one that was picked does not matter any more, that of the other does.
    world.up.remove(&picked);
    world.ingress.peer_down(world.now, picked, Gone::Closed);
    world.check();
    assert_eq!(world.sends.len(), 1);
    world.ingress.peer_up(world.now, picked);
    world.up = peers.iter().copied().collect();
    world.up.remove(&other);
    world.ingress.peer_down(world.now, other, Gone::Closed);
    world.check();
    assert_eq!(world.sends.len(), 2, "sent again");
    // Its answer may still come.
    world.ingress.on_result(world.now, other, &moved, vec![("y".into(), tensor())]);
    let effects = world.ingress.take_effects();
    assert!(matches!(&effects[..], [Effect::Finish { result: Ok(r), .. }] if r.retries == 1), "{effects:?}");
}

/// A request that takes its device down with it (too large a batch for the memory) must not take them all. What falls
/// silent is more often frozen or cut off.
#[test]
fn a_request_that_devices_die_of_is_sent_to_no_more_of_them() {
    assert_eq!(lost_with_one_request(|_| Gone::Closed), 4);
    assert_eq!(lost_with_one_request(|_| Gone::Silent), 8);
    assert_eq!(lost_with_one_request(|lost| if lost % 2 == 0 { Gone::Silent } else { Gone::Closed }), 6);
}

/// How many devices of a stage have gone down when a request ends.
fn lost_with_one_request(gone: impl Fn(usize) -> Gone) -> usize {
    let mut world = World::with_peers();
    let more = (0..9).map(|_| PeerId::random()).collect::<Vec<_>>();
    for peer in &more {
        world.peers.push(*peer);
        world.up.insert(*peer);
        world.ingress.peer_up(world.now, *peer);
    }
    world.plan(0, &[0b0001, ((1 << world.peers.len()) - 1) & !1]);
    world.begin(0, 60_000);
    world.check();
    // A device that comes and goes is one device.
    let first = world.sends[0].devices[1];
    for _ in 0..6 {
        world.ingress.peer_down(world.now, first, gone(0));
        world.ingress.peer_up(world.now, first);
        world.check();
    }
    let mut lost = vec![first];
    while !world.open.is_empty() {
        let at = world.sends.last().expect("was sent").devices[1];
        if !lost.contains(&at) {
            lost.push(at);
        }
        let index = lost.iter().position(|device| *device == at).expect("is there");
        world.up.remove(&at);
        world.ingress.peer_down(world.now, at, gone(index));
        world.check();
    }
    lost.len()
}

/// A device that was lost is asked after others for a while, and so is one that a request waited for in vain.
#[test]
fn who_is_back_is_asked_after_others_for_a_while() {
    let mut world = World::with_peers();
    let peers = world.peers.clone();
    world.plan(0, &[0b0110]);
    let ask = |world: &mut World| {
        world.begin(0, 60_000);
        world.check();
        world.sends.last().expect("was sent").devices[0]
    };
    let ask_and_answer = |world: &mut World| {
        let device = ask(world);
        world.apply(Event::Answer { send: 0 });
        world.check();
        assert!(world.open.is_empty());
        device
    };
    world.ingress.peer_late(world.now, peers[1], true);
    world.ingress.peer_late(world.now, peers[1], false);
    for _ in 0..8 {
        assert_eq!(ask_and_answer(&mut world), peers[2]);
    }
    world.ingress.peer_late(world.now, peers[2], true);
    assert_eq!(ask_and_answer(&mut world), peers[1], "better than one that is not heard of");
    world.ingress.peer_late(world.now, peers[2], false);
    world.apply(Event::Wait { ms: 5_000 });
    let asked: BTreeSet<PeerId> = (0..8).map(|_| ask_and_answer(&mut world)).collect();
    assert_eq!(asked, BTreeSet::from([peers[1], peers[2]]));
    // One of them answers nothing any more. What was sent to it is sent to the other one too, which answers at once.
    let stuck = ask(&mut world);
    world.now += limits().attempt_unmeasured;
    world.ingress.tick(world.now);
    world.check();
    let other = world.sends.last().expect("was sent").devices[0];
    assert_ne!(other, stuck);
    world.apply(Event::Answer { send: 0 });
    world.check();
    for _ in 0..8 {
        assert_eq!(ask_and_answer(&mut world), other);
    }
}

#[test]
fn a_late_device_is_left_where_another_can_take_its_place() {
    let mut world = World::with_peers();
    let peers = world.peers.clone();
    world.plan(0, &[0b0110]);
    world.begin(0, 20_000);
    world.check();
    let first = world.sends[0].clone();
    let (picked, other) =
        if first.devices[0] == peers[1] { (peers[1], peers[2]) } else { (peers[2], peers[1]) };
    let sent_to = |world: &World| world.sends.iter().map(|address| address.devices[0]).collect::<Vec<_>>();
    for _ in 0..2 {
        world.ingress.peer_late(world.now, picked, true);
        world.check();
        assert_eq!(sent_to(&world), [picked, other], "once");
    }
    world.begin(0, 20_000);
    world.check();
    assert_eq!(sent_to(&world), [picked, other, other]);
    world.ingress.peer_late(world.now, other, true);
    world.check();
    assert_eq!(world.sends.len(), 3, "there is nobody better");
    world.ingress.peer_late(world.now, picked, false);
    world.begin(0, 20_000);
    world.check();
    assert_eq!(sent_to(&world)[3], picked);
    // The first one's answer may still come.
    world.ingress.on_result(world.now, picked, &first, vec![("y".into(), tensor())]);
    let effects = world.ingress.take_effects();
    assert!(matches!(&effects[..], [Effect::Finish { result: Ok(r), .. }] if r.retries == 1), "{effects:?}");
}

#[test]
fn a_slow_attempt_is_left_alone_where_there_is_no_other_device() {
    let mut world = World::new();
    world.plan(0, &[0b0001]);
    world.begin(0, 20_000);
    world.check();
    let first = world.sends[0].clone();
    for _ in 0..10 {
        world.apply(Event::Wait { ms: 800 });
        world.check();
    }
    assert_eq!(world.sends.len(), 1, "it stands in the queue already");
    world.ingress.on_result(world.now, world.peers[0], &first, vec![("y".into(), tensor())]);
    let effects = world.ingress.take_effects();
    assert!(matches!(&effects[..], [Effect::Finish { result: Ok(r), .. }] if r.retries == 0), "{effects:?}");
}

/// As on links that have become a hundred times slower: all that waits for too long must not be sent twice.
#[test]
fn requests_that_all_take_too_long_do_not_all_go_out_again() {
    let mut world = World::with_peers();
    // As many as the window of the route lets through.
    let window = 4;
    world.plan(0, &[0b0110]);
    (0..window).for_each(|_| world.begin(0, 60_000));
    world.check();
    for _ in 0..300 {
        world.apply(Event::Wait { ms: 100 });
        world.check();
    }
    assert_eq!((world.sends.len(), world.open.len()), (window + 3, window), "three copies, nothing given up");
}

/// Two devices that stand by for each other, one of which answers nothing any more: it is not known which.
#[test]
fn copies_leave_one_device_each_where_not_all_can_be_left() {
    let mut world = World::with_peers();
    let (a, b) = (world.peers[1], world.peers[2]);
    world.plan(0, &[0b0010, 0b0100]);
    let mut route = (*world.routes[NAMES[0]]).clone();
    route.epoch += 1;
    world.epoch += 1;
    (route.stages[0].standbys, route.stages[1].standbys) = (vec![b], vec![a]);
    world.routes.insert(NAMES[0].into(), Arc::new(route));
    world.ingress.set_routes(world.now, world.routes.clone());
    (0..2).for_each(|_| world.begin(0, 60_000));
    world.check();
    world.apply(Event::Wait { ms: 700 });
    world.check();
    let mut routes: Vec<Vec<PeerId>> = world.sends.iter().map(|send| send.devices.to_vec()).collect();
    assert_eq!(routes[..2], [vec![a, b], vec![a, b]]);
    let mut copies = routes.split_off(2);
    copies.sort();
    let mut alone = vec![vec![a, a], vec![b, b]];
    alone.sort();
    assert_eq!(copies, alone);
}

/// A device in the middle of the way doubts whom its ingress has picked for a request that waited for another one.
#[test]
fn a_request_that_goes_out_again_is_led_back_by_nobody() {
    let mut world = World::with_peers();
    let (a, b) = (world.peers[1], world.peers[2]);
    world.plan(0, &[0b0001, 0b0110]);
    world.ingress.peer_late(world.now, a, true);
    world.ingress.peer_late(world.now, a, false);
    world.begin(0, 60_000);
    world.check();
    let mut address = world.sends[0].clone();
    let by = Detour { fresh: Duration::from_secs(1), is_near: &|_| true };
    address.devices = [address.devices[0], a].into();
    assert_eq!(
        world.ingress.detour(world.now, &address, 1, &by),
        Some(b),
        "it was not heard of a moment ago"
    );
    address.attempt = 1;
    assert_eq!(world.ingress.detour(world.now, &address, 1, &by), None);
    world.ingress.peer_late(world.now, a, true);
    assert_eq!(world.ingress.detour(world.now, &address, 1, &by), Some(b), "it is not heard of now");
}

/// The only device of a stage is back and has not loaded it yet: what is before it must not run in vain all the time.
#[test]
fn a_stage_that_is_not_there_yet_is_asked_for_less_and_less() {
    let mut world = World::with_peers();
    world.plan(0, &[0b0001, 0b0010]);
    world.begin(0, 60_000);
    world.check();
    let blame = world.peers[1];
    let refuse = |world: &mut World, kind| {
        let address = world.sends.last().expect("was sent").clone();
        let failure = Failure { kind, stage: 1, blame, message: "not here".into() };
        world.ingress.on_failure(world.now, blame, &address, failure);
    };
    for _ in 0..3_000 {
        if matches!(world.ingress.requests.values().next().expect("is open").state, State::Sent(_)) {
            refuse(&mut world, FailureKind::UnknownStage);
        }
        world.apply(Event::Wait { ms: 10 });
        world.check();
    }
    let asked = world.sends.len();
    assert!((15..80).contains(&asked), "asked {asked} times in 30 s");
    let last_wait = Duration::from_secs(2);
    for _ in 0..=last_wait.as_millis() / 10 {
        world.apply(Event::Wait { ms: 10 });
        world.check();
    }
    assert!(world.sends.len() > asked, "not given up");
    // A plan that has moved on is followed at once.
    refuse(&mut world, FailureKind::StaleEpoch);
    world.plan(0, &[0b0001, 0b0010]);
    world.check();
    assert_eq!(world.sends.last().expect("was sent").epoch, world.epoch);
}

#[test]
fn what_waits_ends_when_its_deployment_becomes_another_model() {
    let mut world = World::with_peers();
    world.plan(0, &[0b0001]);
    // The window is 4, the line 3.
    for _ in 0..7 {
        world.begin(0, 20_000);
    }
    world.check();
    assert_eq!((world.sends.len(), world.open.len()), (4, 7));
    let mut route = (*world.routes[NAMES[0]]).clone();
    route.epoch += 1;
    world.epoch += 1;
    (route.inputs, route.stages[0].inputs) = (vec!["z".into()], vec!["z".into()]);
    world.routes.insert(NAMES[0].into(), Arc::new(route));
    world.ingress.set_routes(world.now, world.routes.clone());
    let is_replaced = |effect: &Effect| {
        let Effect::Finish { result: Err(AppError::Unavailable { message, .. }), .. } = effect else {
            return false;
        };
        message.contains("another model")
    };
    let ended = world.ingress.take_effects();
    assert!(ended.len() == 3 && ended.iter().all(is_replaced), "those in line: {ended:?}");
    // What is on its way ends on the plan that it is on, or cannot go out again.
    let [first, second, ..] = &world.sends[..] else { panic!("four were sent") };
    let (first, second) = (first.clone(), second.clone());
    world.ingress.on_result(world.now, world.peers[0], &first, vec![("y".into(), tensor())]);
    assert!(matches!(&world.ingress.take_effects()[..], [Effect::Finish { result: Ok(_), .. }]));
    let failure =
        Failure { kind: FailureKind::StaleEpoch, stage: 0, blame: world.peers[0], message: "old".into() };
    world.ingress.on_failure(world.now, world.peers[0], &second, failure);
    world.now += Duration::from_millis(100);
    world.ingress.tick(world.now);
    let ended = world.ingress.take_effects();
    assert!(ended.len() == 1 && is_replaced(&ended[0]), "{ended:?}");
}

#[test]
fn full_queues_narrow_the_window_and_answers_widen_it() {
    let limits = DataLimits { window_max: 64, ..limits() };
    let mut now = Instant::now();
    let mut deployment = Deployment::new(now, &limits);
    let replicas = (0..16).map(|_| (PeerId::random(), 1.0)).collect();
    let stage = RouteStage { replicas, ..RouteStage::default() };
    let route = Route { stages: vec![stage], latency: Duration::from_secs(4), ..Route::default() };
    deployment.set_route(Some(Arc::new(route)), &limits);
    let full = deployment.window;
    assert!(full >= 16);
    assert_eq!(deployment.busy(now), Duration::from_secs(1), "a part of the predicted time");
    deployment.busy(now);
    assert_eq!(deployment.window, full / 2, "once for a flock of refusals");
    for _ in 0..10 {
        now += Duration::from_secs(1);
        deployment.busy(now);
    }
    assert_eq!(deployment.window, 1);
    for _ in 0..full * full {
        deployment.record_answer(now, Duration::from_millis(20));
    }
    assert_eq!(deployment.window, full);
}

#[test]
fn the_window_follows_what_is_on_its_way() {
    let limits = DataLimits { window_max: 64, ..limits() };
    let mut deployment = Deployment::new(Instant::now(), &limits);
    let replicas = vec![(PeerId::random(), 1.0)];
    let mut window = |in_flight| {
        let stage = RouteStage { replicas: replicas.clone(), ..RouteStage::default() };
        let route = Route { epoch: 1, stages: vec![stage; 3], in_flight, ..Route::default() };
        deployment.set_route(Some(Arc::new(route)), &limits);
        deployment.window
    };
    assert_eq!(window(0), 6, "each of three has one, and one at hand");
    assert_eq!(window(3), 6);
    assert_eq!(window(30), 33, "the ways between them have become longer");
    assert_eq!(window(1000), 64);
    assert_eq!(window(10), 13);
    deployment.busy(Instant::now());
    let narrowed = deployment.window;
    let stage = RouteStage { replicas, ..RouteStage::default() };
    let route = Route { epoch: 1, stages: vec![stage; 3], in_flight: 30, ..Route::default() };
    deployment.set_route(Some(Arc::new(route)), &limits);
    assert_eq!(deployment.window, narrowed, "full queues count for more");
}

/// A device that answered lets nothing through any more. One copy shows that another does; then all that is on its way
/// through the first goes there, and so does what comes.
#[test]
fn what_waits_for_longer_than_usual_is_sent_to_others_too() {
    let mut world = World::with_peers();
    world.plan(0, &[0b0110]);
    for _ in 0..32 {
        world.begin(0, 60_000);
        world.check();
        world.now += Duration::from_millis(100);
        world.apply(Event::Answer { send: 0 });
        world.check();
    }
    for _ in 0..3 {
        world.begin(0, 60_000);
    }
    world.check();
    let sent: Vec<Address> = world.sends[world.sends.len() - 3..].to_vec();
    let of = |device: PeerId| sent.iter().filter(move |address| address.devices[0] == device).count();
    let stuck = *world.peers[1..=2].iter().max_by_key(|device| of(**device)).expect("there are two");
    let well = if stuck == world.peers[1] { world.peers[2] } else { world.peers[1] };
    assert_eq!((of(stuck), of(well)), (2, 1), "by share");
    let answer = |world: &mut World, address: &Address| {
        let outputs = vec![("y".into(), tensor())];
        world.ingress.on_result(world.now, address.devices[0], address, outputs);
        world.check();
    };
    world.now += Duration::from_millis(100);
    let answered = sent.iter().find(|address| address.devices[0] == well).expect("one went there");
    answer(&mut world, answered);
    // Three times the median.
    world.now += Duration::from_millis(200);
    let before = world.sends.len();
    world.ingress.tick(world.now);
    world.check();
    let copies = world.sends[before..].to_vec();
    assert_eq!(copies.iter().map(|copy| copy.devices[0]).collect::<Vec<_>>(), [well, well]);
    world.begin(0, 60_000);
    world.begin(0, 60_000);
    world.check();
    assert!(
        world.sends[before + 2..].iter().any(|address| address.devices[0] == stuck),
        "nothing is known yet"
    );
    let before = world.sends.len();
    world.now += Duration::from_millis(100);
    answer(&mut world, &copies[0]);
    let left: Vec<PeerId> = world.sends[before..].iter().map(|address| address.devices[0]).collect();
    assert!(
        !left.is_empty() && left.iter().all(|device| *device == well),
        "what was on its way is sent again"
    );
    world.begin(0, 60_000);
    world.check();
    assert_eq!(world.sends.last().expect("was sent").devices[0], well);
}

/// As when a link has become slow and a plan comes that does without it.
#[test]
fn what_a_new_plan_would_overtake_goes_out_on_it_once() {
    let mut world = World::with_peers();
    let (slow, fast) = (world.peers[1], world.peers[2]);
    world.plan(0, &[0b0010]);
    world.begin(0, 60_000);
    world.now += Duration::from_millis(500);
    world.begin(0, 60_000);
    world.check();
    world.now += Duration::from_millis(100);
    let plan = |world: &mut World, latency| {
        world.plan(0, &[0b0100]);
        let mut route = (*world.routes[NAMES[0]]).clone();
        world.epoch += 1;
        (route.epoch, route.latency, route.in_flight) = (world.epoch, latency, 2);
        world.routes.insert(NAMES[0].into(), Arc::new(route));
        world.ingress.set_routes(world.now, world.routes.clone());
        world.check();
    };
    // Of three that it lets under way each takes 150 ms.
    plan(&mut world, Duration::from_millis(100));
    let sent: Vec<PeerId> = world.sends.iter().map(|send| send.devices[0]).collect();
    assert_eq!(sent, [slow, slow, fast], "the first has waited for 600 ms, the second for 100");
    let answer = |world: &mut World, send: usize| {
        let address = world.sends[send].clone();
        world.ingress.on_result(world.now, address.devices[0], &address, vec![("y".into(), tensor())]);
        world.check();
    };
    plan(&mut world, Duration::from_millis(100));
    assert_eq!(world.sends.len(), 3, "as fast as the one before");
    answer(&mut world, 1);
    answer(&mut world, 0);
    assert!(world.open.is_empty(), "answers of the earlier plan are as good");
}
