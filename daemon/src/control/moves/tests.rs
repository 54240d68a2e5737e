use super::*;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_gain_of_ten_percent_stays_and_more_moves_once() {
    let start = Instant::now();
    let mut moves = Moves::default();
    moves.planned(start, false);
    assert!(!moves.may_move(start + seconds(29), true) && moves.may_move(start + seconds(30), false));
    for _ in 0..100 {
        assert!(!moves.weigh(0.10, false) && !moves.wants_a_look());
    }
    assert!(!moves.weigh(0.2, false) && moves.wants_a_look());
    assert!(!moves.weigh(0.05, false) && !moves.wants_a_look());
    assert!(!moves.weigh(0.2, false) && moves.weigh(0.2, false));
    let moved = start + seconds(40);
    moves.moved(moved, 1.0, 1.2);
    assert!(!moves.wants_a_look() && !moves.may_move(moved + seconds(29), false));
}

#[test]
fn devices_that_come_need_no_second_look() {
    let mut moves = Moves::default();
    assert!(moves.may_move(Instant::now(), true));
    assert!(!moves.weigh(0.09, true) && moves.weigh(0.11, true));
}

#[test]
fn a_move_that_kept_its_promise_lets_the_next_one_come() {
    let start = Instant::now();
    let mut moves = Moves::default();
    moves.moved(start, 1.0, 1.2);
    moves.judge(start + seconds(20), 1.11);
    assert!(moves.may_move(start + seconds(30), false));
}

#[test]
fn a_move_that_brought_too_little_makes_the_next_one_wait_longer() {
    let start = Instant::now();
    let mut moves = Moves::default();
    moves.moved(start, 1.0, 1.2);
    // Too early to judge.
    moves.judge(start + seconds(5), 9.0);
    moves.judge(start + seconds(20), 1.09);
    // Judged once.
    moves.judge(start + seconds(25), 1.2);
    assert!(!moves.may_move(start + seconds(59), true) && moves.may_move(start + seconds(60), false));
    // A plan that had to be made does not end the wait.
    moves.planned(start + seconds(22), false);
    assert!(!moves.may_move(start + seconds(59), true));
    for wait in [120, 240, 300, 300] {
        moves.moved(start, 1.0, 1.2);
        moves.judge(start + seconds(20), 1.0);
        assert!(
            !moves.may_move(start + seconds(wait - 1), true) && moves.may_move(start + seconds(wait), false)
        );
    }
    moves.moved(start, 1.0, 1.2);
    moves.judge(start + seconds(20), 1.2);
    moves.moved(start, 1.0, 1.2);
    moves.judge(start + seconds(20), 1.0);
    assert!(moves.may_move(start + seconds(60), false), "one that kept its promise was between");
}

#[test]
fn a_move_that_failed_because_links_became_slow_lets_the_next_one_come() {
    let start = Instant::now();
    let mut moves = Moves::default();
    moves.moved(start, 1.0, 1.2);
    moves.judge(start + seconds(20), 0.5);
    moves.excuse();
    assert!(!moves.may_move(start + seconds(29), false) && moves.may_move(start + seconds(30), false));
    moves.moved(start + seconds(40), 1.0, 1.2);
    moves.excuse();
    moves.judge(start + seconds(60), 0.5);
    assert!(moves.may_move(start + seconds(70), false), "known before it was judged");
}

#[test]
fn a_move_of_which_nobody_knows_what_it_brought_waits_unless_devices_come() {
    let start = Instant::now();
    let mut moves = Moves::default();
    moves.moved(start, 1.0, 1.2);
    assert!(!moves.may_move(start + seconds(299), false) && moves.may_move(start + seconds(300), false));
    assert!(moves.may_move(start + seconds(30), true));
}

#[test]
fn a_plan_made_in_haste_is_left_for_little_but_not_at_once() {
    let start = Instant::now();
    let mut moves = Moves::default();
    moves.planned(start, true);
    assert!(moves.wants_a_look() && !moves.may_move(start + seconds(29), false));
    assert!(!moves.weigh(0.05, false) && moves.weigh(0.05, false));
    moves.moved(start + seconds(40), 1.0, 1.05);
    assert!(!moves.wants_a_look() && !moves.weigh(0.05, false) && !moves.weigh(0.05, false));
    // Nothing much better is to be had: it is a plan like any other from now on.
    moves.planned(start + seconds(100), true);
    assert!(!moves.weigh(0.01, false) && !moves.wants_a_look());
    assert!(!moves.weigh(0.05, false) && !moves.weigh(0.05, false));
}

#[test]
fn plans_given_up_in_a_row_make_the_next_one_wait() {
    let start = Instant::now();
    let mut moves = Moves::default();
    for wait in [0, 30, 90, 210, 300, 300] {
        moves.moved(start, 1.0, 1.2);
        moves.given_up(start);
        assert!(!moves.is_voluntary() && moves.may_move(start + seconds(wait), false));
        assert!(wait == 0 || !moves.may_move(start + seconds(wait - 1), true));
        // Links that change again are no reason to hurry.
        moves.excuse();
        assert!(wait == 0 || !moves.may_move(start + seconds(wait - 1), false));
    }
    // One that has served ends that.
    moves.moved(start, 1.0, 1.2);
    moves.judge(start + seconds(20), 1.2);
    moves.moved(start + seconds(30), 1.2, 1.4);
    moves.given_up(start + seconds(31));
    assert!(moves.may_move(start + seconds(31), false));
}
