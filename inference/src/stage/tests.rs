use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use super::*;
use crate::profile::GraphBuilder;
use crate::runtime::tests::{long_work, session};
use crate::tensor::DType;

/// Longest that a test waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

fn arithmetic() -> Session {
    let model = GraphBuilder::new()
        .input("a", DType::Fp32, &[-1])
        .input("b", DType::Fp32, &[-1])
        .node("Sub", &["a", "b"], &["difference"])
        .node("Add", &["a", "b"], &["sum"])
        .output("difference", DType::Fp32, &[-1])
        .output("sum", DType::Fp32, &[-1])
        .model();
    session(&model)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn stage(queue: usize) -> StageRunner {
    StageRunner::spawn("test", arithmetic(), names(&["b", "a"]), names(&["sum", "difference"]), queue)
        .unwrap()
}

fn tensor(value: f32) -> Tensor {
    Tensor::from_slice(&[1], &[value]).unwrap()
}

type Answer = Result<StageOutput, StageError>;

fn answer() -> (Box<dyn FnOnce(Answer) + Send>, Receiver<Answer>) {
    let (sender, receiver) = sync_channel(1);
    (Box::new(move |result| sender.send(result).unwrap()), receiver)
}

#[test]
fn inputs_and_outputs_are_in_the_callers_order() {
    let stage = stage(4);
    assert_eq!(
        (stage.input_names(), stage.output_names()),
        (&names(&["b", "a"])[..], &names(&["sum", "difference"])[..])
    );
    let (done, receiver) = answer();
    stage.submit(vec![tensor(2.0), tensor(7.0)], done).unwrap();
    let output = receiver.recv_timeout(PATIENCE).unwrap().unwrap();
    let values: Vec<f32> = output.tensors.iter().map(|tensor| tensor.as_slice::<f32>().unwrap()[0]).collect();
    assert_eq!(values, [9.0, 5.0]);
    assert!(output.compute > Duration::ZERO);
    let stats = stage.stats();
    assert_eq!((stats.runs, stats.failures, stats.queued), (1, 0, 0));
    assert!(stats.busy >= output.compute && stats.cost > Duration::ZERO);
}

#[test]
fn wrong_inputs_are_answered_with_an_error() {
    let stage = stage(4);
    let (done, _receiver) = answer();
    assert!(matches!(stage.submit(vec![tensor(1.0)], done), Err(StageError::Input(_))));
    let (done, receiver) = answer();
    stage.submit(vec![tensor(1.0), Tensor::from_slice(&[1], &[1_i32]).unwrap()], done).unwrap();
    let error = receiver.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert!(matches!(&error, StageError::Input(text) if text.contains("\"a\"")), "{error}");
    assert_eq!(stage.stats().failures, 1);
}

#[test]
fn names_are_checked_at_the_start() {
    let cases: [(&[&str], &[&str]); 4] =
        [(&["a"], &["sum"]), (&["a", "c"], &["sum"]), (&["a", "a"], &["sum"]), (&["a", "b"], &["product"])];
    for (inputs, outputs) in cases {
        let refused = StageRunner::spawn("test", arithmetic(), names(inputs), names(outputs), 1);
        assert!(matches!(refused, Err(StageError::Start { .. })), "{inputs:?} {outputs:?}");
    }
}

/// Holds the stage's thread inside an answer until told to go on.
fn hold(stage: &StageRunner) -> std::sync::mpsc::SyncSender<()> {
    let (go, wait) = sync_channel::<()>(1);
    let (entered, inside) = sync_channel(1);
    let done = Box::new(move |_: Answer| {
        entered.send(()).unwrap();
        let _ = wait.recv();
    });
    stage.submit(vec![tensor(1.0), tensor(1.0)], done).unwrap();
    inside.recv_timeout(PATIENCE).unwrap();
    go
}

#[test]
fn a_full_queue_refuses_at_once() {
    let stage = stage(2);
    let go = hold(&stage);
    let mut receivers = Vec::new();
    for _ in 0..2 {
        let (done, receiver) = answer();
        stage.submit(vec![tensor(1.0), tensor(1.0)], done).unwrap();
        receivers.push(receiver);
    }
    assert_eq!(stage.stats().queued, 2);
    let (done, _receiver) = answer();
    assert!(matches!(stage.submit(vec![tensor(1.0), tensor(1.0)], done), Err(StageError::Busy)));
    go.send(()).unwrap();
    for receiver in receivers {
        receiver.recv_timeout(PATIENCE).unwrap().unwrap();
    }
    assert_eq!(stage.stats().queued, 0);
}

#[test]
fn expired_requests_do_not_run() {
    let stage = stage(2);
    let (done, receiver) = answer();
    stage.submit_if(vec![tensor(1.0), tensor(1.0)], Box::new(|| false), done).unwrap();
    assert!(matches!(receiver.recv_timeout(PATIENCE).unwrap(), Err(StageError::Expired)));
    assert_eq!((stage.stats().expired, stage.stats().runs), (1, 0));
}

#[test]
fn a_cancelled_run_ends_and_the_stage_goes_on() {
    let (model, x) = long_work();
    let session = session(&model);
    let outputs = vec![session.outputs()[0].name.clone()];
    let stage = StageRunner::spawn("long", session, names(&["x"]), outputs, 2).unwrap();
    let (running, begun) = sync_channel(1);
    let (done, receiver) = answer();
    let should_run = Box::new(move || {
        running.send(()).unwrap();
        true
    });
    let token = stage.submit_if(vec![x], should_run, done).unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    token.cancel();
    assert!(matches!(receiver.recv_timeout(PATIENCE).unwrap(), Err(StageError::Cancelled)));
    let (done, receiver) = answer();
    stage.submit_if(vec![tensor(0.0)], Box::new(|| true), done).unwrap();
    assert!(
        matches!(receiver.recv_timeout(PATIENCE).unwrap(), Err(StageError::Input(_))),
        "the next has its turn"
    );
}

#[test]
fn a_panicking_receiver_does_not_end_the_stage() {
    let stage = stage(4);
    stage.submit(vec![tensor(1.0), tensor(1.0)], Box::new(|_| panic!("on purpose"))).unwrap();
    let (done, receiver) = answer();
    stage.submit(vec![tensor(1.0), tensor(1.0)], done).unwrap();
    assert!(receiver.recv_timeout(PATIENCE).unwrap().is_ok());
}

#[test]
fn the_thread_ends_with_the_last_handle() {
    let stage = stage(2);
    let shared = Arc::downgrade(&stage.0.shared);
    let go = hold(&stage);
    let (done, receiver) = answer();
    let second = stage.clone();
    second.submit(vec![tensor(1.0), tensor(1.0)], done).unwrap();
    drop(stage);
    drop(second);
    go.send(()).unwrap();
    assert!(matches!(receiver.recv_timeout(PATIENCE).unwrap(), Err(StageError::Closed)));
    let deadline = Instant::now() + PATIENCE;
    while shared.upgrade().is_some() {
        assert!(Instant::now() < deadline, "the thread is still there");
        std::thread::sleep(Duration::from_millis(1));
    }
}
