//! A relay in a process of its own, which ends when the one that started it does.
//!
//! Lines of JSON: the spec goes in first, and `"ready"` comes out; then every impairment that goes in is answered by
//! the frames counted so far. The end of the input is the end of the relay.

use std::{
    io::{BufRead, BufReader, Read as _, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Serialize, de::DeserializeOwned};

use super::{Counts, Impairment, Relay, RelayError, RelaySpec};

/// Longest line.
const LONGEST: u64 = 4096;
/// A process answers within so many seconds.
const PATIENCE_S: i64 = 10;
const READY: &str = "ready";

/// Runs one relay as `commands` say, until they end.
pub fn run(mut commands: impl BufRead, mut answers: impl Write) -> Result<(), RelayError> {
    let first = line(&mut commands)?.ok_or_else(|| RelayError::Process("it was told nothing".to_owned()))?;
    let spec: RelaySpec = serde_json::from_str(&first).map_err(|e| RelayError::Process(e.to_string()))?;
    let relay = Relay::start(&spec)?;
    say(&mut answers, &READY)?;
    while let Some(next) = line(&mut commands)? {
        let wanted: Result<Impairment, _> = serde_json::from_str(&next);
        relay.handle().set(wanted.map_err(|e| RelayError::Process(e.to_string()))?)?;
        say(&mut answers, &relay.handle().counts())?;
    }
    Ok(())
}

fn line(from: &mut impl BufRead) -> Result<Option<String>, RelayError> {
    let mut text = String::new();
    let read = from.take(LONGEST).read_line(&mut text);
    let read = read.map_err(|error| RelayError::Process(format!("its input cannot be read: {error}")))?;
    if read as u64 == LONGEST {
        return Err(RelayError::Process(format!("a line of its input is longer than {LONGEST} bytes")));
    }
    Ok((read > 0).then_some(text))
}

fn say(to: &mut impl Write, what: &impl Serialize) -> Result<(), RelayError> {
    let text = serde_json::to_string(what).map_err(|e| RelayError::Process(e.to_string()))?;
    let said = writeln!(to, "{text}").and_then(|()| to.flush());
    said.map_err(|error| RelayError::Process(format!("it cannot answer: {error}")))
}

/// The other side of `run`: a relay in a child process. Ends it on drop.
#[derive(Debug)]
pub struct RelayProcess {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl RelayProcess {
    /// Starts `command`, which must call `run` on its standard input and output, and waits until both cards are there.
    pub fn start(mut command: Command, spec: &RelaySpec) -> Result<Self, RelayError> {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child =
            piped.map_err(|error| RelayError::Process(format!("it cannot be started: {error}")))?;
        let (commands, answers) = (child.stdin.take(), child.stdout.take());
        let answers = answers.ok_or_else(|| RelayError::Process("it has no output".to_owned()))?;
        let mut process = Self { child, commands, answers: BufReader::new(answers) };
        process.tell(spec)?;
        let first: String = process.answer()?;
        if first != READY {
            return Err(RelayError::Process(format!("it said {first:?} instead of {READY:?}")));
        }
        Ok(process)
    }

    /// Changes the link. Returns the frames so far.
    pub fn set(&mut self, impairment: &Impairment) -> Result<Counts, RelayError> {
        impairment.check().map_err(RelayError::Settings)?;
        self.tell(impairment)?;
        self.answer()
    }

    fn tell(&mut self, what: &impl Serialize) -> Result<(), RelayError> {
        match &mut self.commands {
            Some(commands) => say(commands, what),
            None => Err(RelayError::Process("it has no input".to_owned())),
        }
    }

    fn answer<T: DeserializeOwned>(&mut self) -> Result<T, RelayError> {
        let said = |why: String| RelayError::Process(why);
        if self.answers.buffer().is_empty() {
            let most = Timespec { tv_sec: PATIENCE_S, tv_nsec: 0 };
            let mut waiting = [PollFd::new(self.answers.get_ref(), PollFlags::IN)];
            if poll(&mut waiting, Some(&most)).map_err(|error| said(error.to_string()))? == 0 {
                return Err(said(format!("it did not answer within {PATIENCE_S} s")));
            }
        }
        let answer = line(&mut self.answers)?;
        let answer = answer.ok_or_else(|| said("it ended; its standard error says why".to_owned()))?;
        serde_json::from_str(&answer).map_err(|error| said(format!("it said {answer:?}: {error}")))
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        // The end of its input ends it; killing makes sure.
        drop(self.commands.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
