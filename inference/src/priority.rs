//! Which threads go first when processors are short.

use std::cell::Cell;

use rustix::process::{getpriority_process, setpriority_process};

/// Nice value of threads that compute: against one that serves the network they get a tenth of a processor.
const NICE: i32 = 10;

thread_local! {
    static GIVES_WAY: Cell<bool> = const { Cell::new(false) };
}

/// Lets threads that serve the network go before this one, from now on; threads that it starts inherit that.
///
/// Computing takes all that it is given. Four threads that compute leave one that answers heartbeats a fifth of the
/// processor, and where that is too little the others take the device for dead. Nothing is lost by it: who serves the
/// network has little to do, and what it does not take is left to computing.
///
/// Under a quota for several processors it helps in part: who computes on another one uses up the same quota.
pub fn give_way() {
    if GIVES_WAY.replace(true) {
        return;
    }
    // On Linux a nice value is the calling thread's own.
    let lower = || match getpriority_process(None)? {
        lower if lower >= NICE => Ok(()),
        _ => setpriority_process(None, NICE),
    };
    if let Err(error) = lower() {
        tracing::debug!(%error, "a thread's priority could not be lowered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_and_those_that_it_starts_give_way_and_no_other() {
        let nice = || getpriority_process(None).unwrap();
        let before = nice();
        let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let computing = spawn("computing").spawn(move || {
            give_way();
            give_way();
            assert_eq!(nice(), before.max(NICE));
            assert_eq!(spawn("its own").spawn(nice).unwrap().join().unwrap(), before.max(NICE));
        });
        computing.unwrap().join().unwrap();
        assert_eq!(nice(), before);
    }
}
