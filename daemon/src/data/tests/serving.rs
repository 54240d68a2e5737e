//! The good days.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_answers_from_every_ingress() {
    let (_rack, peers, planes) = Rack::new(4);
    let placement: Vec<Vec<PeerId>> = peers[..3].iter().map(|p| vec![*p]).collect();
    host_all(1, &placement, &peers, &planes);
    for plane in &planes {
        plane.set_routes(route(1, &placement));
        for elements in [1usize, 1000, 300_000] {
            let response = plane.infer(request(0.5, elements, LONG)).await.unwrap();
            check(&response, 111.5, elements);
            assert_eq!((response.epoch, response.retries), (1, 0));
        }
    }
    let metrics = planes[0].metrics();
    assert_eq!(metrics.deployments["m"].requests, 3);
    assert_eq!(metrics.stages[0].runs, 12);
    assert!(metrics.links.iter().any(|link| link.bytes_sent > 300_000 * 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_on_replicas_are_all_answered() {
    let (_rack, peers, planes) = Rack::new(3);
    let placement = vec![vec![peers[0], peers[1]], vec![peers[1], peers[2]]];
    host_all(1, &placement, &peers, &planes);
    let mut clients = tokio::task::JoinSet::new();
    for plane in &planes {
        plane.set_routes(route(1, &placement));
        for i in 0..100u16 {
            let plane = plane.clone();
            clients.spawn(async move {
                let response = plane.infer(request(f32::from(i), 2000, LONG)).await.unwrap();
                check(&response, f32::from(i) + 11.0, 2000);
            });
        }
    }
    clients.join_all().await;
    for plane in &planes {
        assert_eq!(plane.metrics().deployments["m"].in_flight, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tensors_pass_through_stages_that_do_not_use_them() {
    let (_rack, peers, planes) = Rack::new(2);
    let first = HostedStage { runner: FakeStage::adding("a", "c", 1.0), passthrough: vec!["b".into()] };
    let second = HostedStage { runner: FakeStage::adding("b", "d", 5.0), passthrough: vec!["c".into()] };
    planes[0].host(key(1, 0), first);
    planes[1].host(key(1, 1), second);
    let stage = |peer, inputs: [&str; 2]| RouteStage {
        replicas: vec![(peer, 1.0)],
        inputs: inputs.map(str::to_owned).to_vec(),
        ..RouteStage::default()
    };
    let route = Route {
        deployment: "m".into(),
        epoch: 1,
        inputs: vec!["a".into(), "b".into()],
        outputs: vec!["d".into(), "c".into()],
        stages: vec![stage(peers[0], ["a", "b"]), stage(peers[1], ["b", "c"])],
        latency: Duration::ZERO,
        in_flight: 0,
    };
    planes[0].set_routes(BTreeMap::from([("m".into(), Arc::new(route))]));
    let one = |v: f32| Tensor::from_slice(&[1], &[v]).unwrap();
    let mut request = InferRequest {
        model: "m".into(),
        inputs: vec![("b".into(), one(20.0)), ("a".into(), one(10.0))],
        outputs: Vec::new(),
        timeout: LONG,
        from_elsewhere: false,
    };
    let values = |response: InferResponse| -> Vec<(String, f32)> {
        response.outputs.iter().map(|(n, t)| (n.clone(), t.as_slice::<f32>().unwrap()[0])).collect()
    };
    let all = values(planes[0].infer(request.clone()).await.unwrap());
    assert_eq!(all, [("d".to_owned(), 25.0), ("c".to_owned(), 11.0)]);
    request.outputs = vec!["c".into()];
    assert_eq!(values(planes[0].infer(request.clone()).await.unwrap()), [("c".to_owned(), 11.0)]);
    request.outputs = vec!["e".into()];
    assert!(matches!(planes[0].infer(request.clone()).await, Err(AppError::Invalid(_))));
    request.outputs.clear();
    request.inputs.pop();
    assert!(matches!(planes[0].infer(request).await, Err(AppError::Invalid(m)) if m.contains("\"a\"")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_tensors_arrive_whole() {
    let (_rack, peers, planes) = Rack::new(2);
    let placement = vec![vec![peers[1]]];
    host_all(1, &placement, &peers, &planes);
    planes[0].set_routes(route(1, &placement));
    planes[0].set_link_rate(peers[1], 1e5);
    for elements in [10, 5000, 200_000] {
        let response = planes[0].infer(request(2.0, elements, LONG)).await.unwrap();
        check(&response, 3.0, elements);
    }
    let link = &planes[0].metrics().links[0];
    assert_ne!(link.codec, "raw");
    assert!(link.bytes_sent < link.bytes_raw / 2, "{link:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zeros_are_left_out_where_moving_them_costs() {
    let (_rack, peers, planes) = Rack::new(2);
    let placement = vec![vec![peers[1]]];
    host_all(1, &placement, &peers, &planes);
    planes[0].set_routes(route(1, &placement));
    planes[0].set_moving_cost(peers[1], 3e-9);
    for elements in [10, 5000, 200_000, 1_000_000, 3000] {
        let response = planes[0].infer(request(0.0, elements, LONG)).await.unwrap();
        check(&response, 1.0, elements);
    }
    let link = &planes[0].metrics().links[0];
    assert_eq!(link.codec, "sparse");
    assert!(link.bytes_sent < link.bytes_raw / 10, "{link:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_of_epochs_under_load_loses_nothing() {
    let (_rack, peers, planes) = Rack::new(3);
    let placement =
        |shift: usize| -> Vec<Vec<PeerId>> { (0..2).map(|i| vec![peers[(i + shift) % 3]]).collect() };
    host_all(1, &placement(0), &peers, &planes);
    planes.iter().for_each(|plane| plane.set_routes(route(1, &placement(0))));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let plane = planes[0].clone();
        clients.spawn(async move {
            for i in 0..100u16 {
                let response = plane.infer(request(f32::from(i), 1000, LONG)).await.unwrap();
                check(&response, f32::from(i) + 11.0, 1000);
            }
        });
    }
    for epoch in 2..8u64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let (old, new) = (placement(epoch as usize - 1 + 2), placement(epoch as usize + 2));
        host_all(epoch, &new, &peers, &planes);
        // The others switch at once, the ingress last: it sends to stages that are gone already.
        for plane in planes.iter().rev() {
            for stage in 0..old.len() {
                plane.unhost(&key(epoch - 1, stage));
            }
            plane.set_routes(route(epoch, &new));
        }
    }
    clients.join_all().await;
    assert_eq!(planes[0].metrics().deployments["m"].errors, 0);
}
