//! The bad days.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_dies_in_the_stream_costs_no_request() {
    let (rack, peers, planes) = Rack::new(4);
    let placement = vec![vec![peers[1], peers[2]], vec![peers[3]]];
    host_all(1, &placement, &peers, &planes);
    planes[0].set_routes(route(1, &placement));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let plane = planes[0].clone();
        clients.spawn(async move {
            for i in 0..100u16 {
                let response = plane.infer(request(f32::from(i), 20_000, LONG)).await.unwrap();
                check(&response, f32::from(i) + 11.0, 20_000);
            }
        });
    }
    while planes[0].metrics().deployments["m"].requests < 200 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rack.kill(peers[1]);
    clients.join_all().await;
    let metrics = &planes[0].metrics().deployments["m"];
    assert_eq!((metrics.requests, metrics.errors, metrics.in_flight), (800, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_answers_busy_and_all_requests_get_through() {
    let limits = DataLimits { stage_queue_jobs: 1, ..DataLimits::default() };
    let (_rack, peers, planes) = Rack::with_limits(3, limits);
    let placement = vec![vec![peers[1]], vec![peers[2]]];
    host_all(1, &placement, &peers, &planes);
    let slow: Arc<Run> = Arc::new(|tensor| {
        std::thread::sleep(Duration::from_millis(2));
        Ok(add(tensor, 10.0))
    });
    let runner = FakeStage::new("t1", "t2", slow);
    planes[2].host(key(1, 1), HostedStage { runner, passthrough: Vec::new() });
    let mut clients = tokio::task::JoinSet::new();
    for plane in &planes[..2] {
        plane.set_routes(route(1, &placement));
        for i in 0..50u16 {
            let plane = plane.clone();
            clients.spawn(async move {
                let response = plane.infer(request(f32::from(i), 100, LONG)).await.unwrap();
                check(&response, f32::from(i) + 11.0, 100);
            });
        }
    }
    clients.join_all().await;
    let retries: u64 =
        planes.iter().filter_map(|p| p.metrics().deployments.get("m").map(|d| d.retries)).sum();
    assert!(retries > 0, "nothing was ever busy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_ingress_says_so_at_once() {
    let limits = DataLimits { window_max: 1, line_max: 2, ..DataLimits::default() };
    let (_rack, peers, planes) = Rack::with_limits(1, limits);
    let gate = Arc::new(Gate::default());
    planes[0].host(key(1, 0), HostedStage { runner: gate.stage(), passthrough: vec![] });
    planes[0].set_routes(route(1, &[vec![peers[0]]]));
    let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(planes[0].infer(request(0.0, 1, LONG)))).collect();
    for infer in &mut waiting {
        assert!(futures::poll!(infer.as_mut()).is_pending());
    }
    let refused = futures::poll!(Box::pin(planes[0].infer(request(0.0, 1, LONG))).as_mut());
    match refused {
        std::task::Poll::Ready(Err(AppError::Unavailable { retry_after_s, .. })) => {
            assert_eq!(retry_after_s, 1)
        }
        other @ (std::task::Poll::Ready(_) | std::task::Poll::Pending) => panic!("{other:?}"),
    }
    // A client that goes away makes room.
    waiting.pop();
    let mut next = Box::pin(planes[0].infer(request(0.0, 1, LONG)));
    assert!(futures::poll!(next.as_mut()).is_pending());
    gate.open();
    for infer in waiting {
        check(&infer.await.unwrap(), 1.0, 1);
    }
    check(&next.await.unwrap(), 1.0, 1);
}

#[tokio::test]
async fn the_deadline_ends_a_request_and_says_what_was_missing() {
    let (rack, peers, planes) = Rack::new(2);
    let placement = vec![vec![peers[0]], vec![peers[1]]];
    planes[0].set_names(BTreeMap::from([(peers[1], "camera-3".to_owned())]));
    assert!(matches!(planes[0].infer(request(0.0, 1, LONG)).await, Err(AppError::NotFound(_))));
    planes[0].set_routes(route(1, &[]));
    assert!(matches!(
        planes[0].infer(request(0.0, 1, LONG)).await,
        Err(AppError::Unavailable { retry_after_s: 2, .. })
    ));
    planes[0].set_routes(route(1, &placement));
    rack.kill(peers[1]);
    let timeout = Duration::from_millis(200);
    let start = std::time::Instant::now();
    let error = planes[0].infer(request(0.0, 1, timeout)).await.unwrap_err();
    assert!(start.elapsed() >= timeout);
    assert!(matches!(error, AppError::DeadlineExceeded(_)), "{error:?}");
    assert!(error.to_string().contains("stage 1 of m has no live device (camera-3 is down)"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_waits_for_a_new_plan() {
    let (rack, peers, planes) = Rack::new(3);
    host_all(1, &[vec![peers[1]]], &peers, &planes);
    planes[0].set_routes(route(1, &[vec![peers[1]]]));
    rack.kill(peers[1]);
    let mut infer = Box::pin(planes[0].infer(request(1.0, 1, LONG)));
    assert!(futures::poll!(infer.as_mut()).is_pending());
    host_all(2, &[vec![peers[2]]], &peers, &planes);
    planes[0].set_routes(route(2, &[vec![peers[2]]]));
    let response = infer.await.unwrap();
    check(&response, 2.0, 1);
    assert_eq!(response.epoch, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_device_cannot_run_another_does() {
    let (_rack, peers, planes) = Rack::new(3);
    let placement = vec![vec![peers[1], peers[2]]];
    host_all(1, &placement, &peers, &planes);
    let broken: Arc<Run> = Arc::new(|_| Err(StageError::Run("no memory left here".into())));
    planes[1]
        .host(key(1, 0), HostedStage { runner: FakeStage::new("t0", "t1", broken), passthrough: vec![] });
    planes[0].set_routes(route(1, &placement));
    for _ in 0..20 {
        check(&planes[0].infer(request(1.0, 1, LONG)).await.unwrap(), 2.0, 1);
    }
    let refusing: Arc<Run> = Arc::new(|_| Err(StageError::Run("Got: 3 Expected: 4".into())));
    for plane in &planes[1..] {
        let runner = FakeStage::new("t0", "t1", refusing.clone());
        plane.host(key(1, 0), HostedStage { runner, passthrough: vec![] });
    }
    match planes[0].infer(request(1.0, 1, LONG)).await {
        Err(AppError::Invalid(message)) => assert!(message.contains("Got: 3 Expected: 4"), "{message}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_expired_is_not_run() {
    let (_rack, peers, planes) = Rack::new(1);
    let gate = Arc::new(Gate::default());
    let runner = gate.stage();
    let runs = runner.runs.clone();
    planes[0].host(key(1, 0), HostedStage { runner, passthrough: vec![] });
    planes[0].set_routes(route(1, &[vec![peers[0]]]));
    let mut first = Box::pin(planes[0].infer(request(0.0, 1, LONG)));
    assert!(futures::poll!(first.as_mut()).is_pending());
    let short = (0..3).map(|_| planes[0].infer(request(0.0, 1, Duration::from_millis(20))));
    let results = futures::future::join_all(short).await;
    assert!(results.iter().all(|r| matches!(r, Err(AppError::DeadlineExceeded(_)))), "{results:?}");
    gate.open();
    check(&first.await.unwrap(), 1.0, 1);
    check(&planes[0].infer(request(0.0, 1, LONG)).await.unwrap(), 1.0, 1);
    assert_eq!(runs.load(Ordering::SeqCst), 2, "the first and the last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_takes_no_data_is_given_up() {
    let limits = DataLimits { stall_max: Duration::from_millis(50), ..DataLimits::default() };
    let (rack, peers, planes) = Rack::with_limits(3, limits);
    let placement = vec![vec![peers[1], peers[2]]];
    host_all(1, &placement, &peers, &planes);
    planes[0].set_routes(route(1, &placement));
    rack.0.lock().unwrap().deaf.insert(peers[1], Vec::new());
    for _ in 0..6 {
        let response = planes[0].infer(request(1.0, 50_000, LONG)).await.unwrap();
        check(&response, 2.0, 50_000);
    }
    let metrics = planes[0].metrics();
    assert!(metrics.deployments["m"].retries > 0, "{metrics:?} {:?}", peers);
}

/// Clients at the first device, a gated stage on the second, and the next stage on the third and the fourth.
fn behind_a_gate() -> (Rack, Vec<PeerId>, Vec<DataPlane>, Arc<Gate>) {
    let (rack, peers, planes) = Rack::new(4);
    let placement = vec![vec![peers[1]], vec![peers[2], peers[3]]];
    host_all(1, &placement, &peers, &planes);
    let gate = Arc::new(Gate::default());
    planes[1].host(key(1, 0), HostedStage { runner: gate.stage(), passthrough: Vec::new() });
    for plane in &planes {
        plane.set_routes(route(1, &placement));
    }
    (rack, peers, planes, gate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_goes_on_by_another_device_when_the_picked_one_is_gone() {
    let (_rack, peers, planes, gate) = behind_a_gate();
    let mut clients = tokio::task::JoinSet::new();
    for i in 0..4u16 {
        let plane = planes[0].clone();
        clients.spawn(async move {
            let response = plane.infer(request(f32::from(i), 10, LONG)).await.unwrap();
            check(&response, f32::from(i) + 11.0, 10);
            response.retries
        });
    }
    while planes[1].metrics().stages[0].queue < 4 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Only the device of the first stage knows: half of the requests were to go there.
    planes[1].peer_down(peers[2], Gone::Closed);
    gate.open();
    assert_eq!(clients.join_all().await, [0; 4], "nothing was computed twice");
    assert_eq!(planes[3].metrics().stages[0].runs, 4);
    assert_eq!(planes[0].metrics().deployments["m"].in_flight, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_by_a_device_that_the_ingress_has_lost_is_taken() {
    let (_rack, peers, planes, gate) = behind_a_gate();
    // The request is picked for the third device, which the second one cannot see; it takes the fourth.
    planes[0].peer_down(peers[3], Gone::Closed);
    planes[1].peer_down(peers[2], Gone::Closed);
    gate.open();
    let response = planes[0].infer(request(1.0, 10, LONG)).await.unwrap();
    check(&response, 12.0, 10);
    assert!(planes[2].metrics().stages[0].runs == 0 && planes[3].metrics().stages[0].runs > 0);
    assert_eq!(planes[0].metrics().deployments["m"].in_flight, 0);
}

/// How the way between two devices breaks.
#[derive(Debug, Clone, Copy)]
enum Break {
    /// They lose each other for a moment, as both see; nobody else does.
    Connection,
    /// Only the stream ends.
    Stream,
}

/// The device at `from` has written `frames` frames to the one at `to`, which has read none of them; then all of them are
/// lost.
async fn lose_what_was_taken(
    (rack, peers, planes): (&Rack, &[PeerId], &[DataPlane]),
    (from, to): (usize, usize),
    frames: u64,
    how: Break,
) {
    let sent = || {
        let metrics = planes[from].metrics();
        metrics.links.iter().filter(|link| link.peer == peers[to]).map(|link| link.frames).sum::<u64>()
    };
    while sent() < frames {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rack.0.lock().unwrap().deaf.remove(&peers[to]);
    if matches!(how, Break::Connection) {
        for (this, other) in [(from, to), (to, from)] {
            planes[this].peer_down(peers[other], Gone::Closed);
            planes[this].peer_up(peers[other]);
        }
    }
}

/// Three requests are lost on the way from one device to another, and a fourth one comes or does not: how often they were
/// sent again, together. One may be sent before the devices have found each other again, and so once more.
async fn retries_after(stages: usize, (from, to): (usize, usize), how: Break, comes_fourth: bool) -> u32 {
    let (rack, peers, planes) = Rack::new(stages + 1);
    let placement: Vec<Vec<PeerId>> = peers[1..].iter().map(|peer| vec![*peer]).collect();
    host_all(1, &placement, &peers, &planes);
    planes[0].set_routes(route(1, &placement));
    rack.0.lock().unwrap().deaf.insert(peers[to], Vec::new());
    let mut clients = tokio::task::JoinSet::new();
    let ask = |clients: &mut tokio::task::JoinSet<u32>, value: u16| {
        let (plane, sum) = (planes[0].clone(), [1.0, 11.0][stages - 1]);
        clients.spawn(async move {
            let response = plane.infer(request(f32::from(value), 10, LONG)).await.unwrap();
            check(&response, f32::from(value) + sum, 10);
            response.retries
        });
    };
    (0..3).for_each(|value| ask(&mut clients, value));
    lose_what_was_taken((&rack, &peers, &planes), (from, to), 3, how).await;
    if comes_fourth {
        ask(&mut clients, 3);
    }
    let retries = clients.join_all().await;
    assert_eq!(planes[0].metrics().deployments["m"].in_flight, 0);
    retries.iter().sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_between_two_others_is_sent_again() {
    for (how, fourth) in [(Break::Connection, true), (Break::Stream, true), (Break::Stream, false)] {
        assert!(retries_after(2, (1, 2), how, fourth).await >= 3, "{how:?}: nothing was lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_that_are_lost_on_their_way_back_are_made_again() {
    for (how, fourth) in [(Break::Connection, true), (Break::Stream, true), (Break::Stream, false)] {
        assert!(retries_after(1, (1, 0), how, fourth).await >= 3, "{how:?}: nothing was lost");
    }
}

/// Nobody else can bring them, and computing them again takes longer than waiting for a moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_wait_a_moment_for_a_stream() {
    let (rack, peers, planes) = Rack::new(2);
    let gate = Arc::new(Gate::default());
    planes[1].host(key(1, 0), HostedStage { runner: gate.stage(), passthrough: Vec::new() });
    planes[0].set_routes(route(1, &[vec![peers[1]]]));
    let mut infer = Box::pin(planes[0].infer(request(1.0, 10, LONG)));
    assert!(futures::poll!(infer.as_mut()).is_pending());
    while planes[1].metrics().stages[0].queue == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rack.0.lock().unwrap().cut.insert(peers[0]);
    gate.open();
    while rack.0.lock().unwrap().refused == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rack.0.lock().unwrap().cut.clear();
    let response = infer.await.unwrap();
    check(&response, 2.0, 10);
    assert_eq!(response.retries, 0);
}

/// Outputs come faster than the way back takes them; its queue holds one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_that_find_no_room_are_made_again() {
    let limits = DataLimits { link_queue_bytes: 1, ..DataLimits::default() };
    let (_rack, peers, planes) = Rack::with_limits(2, limits);
    let placement = vec![vec![peers[1]]];
    let grow: Arc<Run> = Arc::new(|tensor| {
        let value = tensor.as_slice::<f32>().unwrap()[0] + 1.0;
        Ok(Tensor::from_slice(&[1, 100_000], &vec![value; 100_000]).unwrap())
    });
    let runner = FakeStage::new("t0", "t1", grow);
    planes[1].host(key(1, 0), HostedStage { runner, passthrough: Vec::new() });
    planes[0].set_routes(route(1, &placement));
    let mut clients = tokio::task::JoinSet::new();
    for value in 0..40u16 {
        let plane = planes[0].clone();
        clients.spawn(async move {
            let response = plane.infer(request(f32::from(value), 1, LONG)).await.unwrap();
            check(&response, f32::from(value) + 1.0, 100_000);
        });
    }
    clients.join_all().await;
    assert!(planes[0].metrics().deployments["m"].retries > 0, "there was room for all");
}

/// A device says which stage it cannot get a request to: that stage may have other devices, its own may not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_way_is_told_of_the_stage_that_it_leads_to() {
    let limits = DataLimits { link_queue_frames: 1, ..DataLimits::default() };
    let (rack, peers, planes) = Rack::with_limits(3, limits);
    let placement = vec![vec![peers[1]], vec![peers[2]]];
    host_all(1, &placement, &peers, &planes);
    planes[1].set_routes(route(1, &placement));
    planes[1].set_names(BTreeMap::from([(peers[2], "camera-3".to_owned())]));
    // It takes a stream's buffer full and no more.
    rack.0.lock().unwrap().deaf.insert(peers[2], Vec::new());
    let asked = (0..8).map(|_| planes[1].infer(request(0.0, 20_000, Duration::from_millis(500))));
    let results = futures::future::join_all(asked).await;
    let words = "stage 1 on camera-3: too much waits to be sent to the next device";
    let says_so =
        |result: &Result<_, AppError>| matches!(result, Err(error) if error.to_string().contains(words));
    assert!(results.iter().any(says_so), "{results:?}");
}
