//! `mesh recover --force`: makes this device's copy the cluster after a majority was lost for good. Needs no daemon, and
//! none may run here.

use std::{
    fs,
    io::{self, BufRead, Read},
    path::{Path, PathBuf},
};

use mesh_consensus::{Recovery, RedbStore, StoreError};

use super::{
    args::{Global, Recover},
    exit::{CliError, chain},
    output, settings,
};
use crate::files::write_atomically;

/// Replicated state in the data directory.
const STATE_FILE: &str = "cluster.redb";
/// Copies that are kept of it have a number behind this.
const KEPT_FILE: &str = "cluster.redb.before-recovery";
const KEPT_MAX: u32 = 100;
/// A cluster's name is shorter.
const ANSWER_BYTES_MAX: u64 = 1024;

pub(super) fn run(global: &Global, args: &Recover) -> Result<(), CliError> {
    let config = settings::load(global)?;
    let folder = &config.node.data_dir;
    let state_file = folder.join(STATE_FILE);
    if !state_file.is_file() {
        return Err(CliError::failed(format!(
            "{} is not there: this device is in no cluster, there is nothing to recover",
            state_file.display()
        )));
    }
    let mut store = RedbStore::open(folder).map_err(|error| opened(&error))?;
    let recovery = Recovery::of(&store).map_err(|error| CliError::failed(chain(&error)))?;
    output::note(&describe(&recovery));
    if !args.force {
        return Err(CliError::usage("nothing was changed; with --force it is done, after a last question"));
    }
    let name = recovery.state.cluster_name.clone();
    if !args.yes && !is_confirmed(&name)? {
        return Err(CliError::failed("nothing was changed"));
    }
    let kept = keep(&state_file, folder)?;
    recovery.carry_out(&mut store).map_err(|error| CliError::failed(chain(&error)))?;
    output::note(&format!(
        "Done. The state from before is kept in {}. Next: mesh run, then `mesh status`, and `mesh node remove NAME` \
         for every device that is gone for good",
        kept.display()
    ));
    Ok(())
}

fn opened(error: &StoreError) -> CliError {
    CliError::failed(format!("{}; stop the daemon of this device first, if it runs", chain(error)))
}

/// What will happen, for people.
fn describe(recovery: &Recovery) -> String {
    let names: Vec<&str> = recovery.others().map(|member| member.name.as_str()).collect();
    let voting = recovery.others().filter(|member| recovery.voters.contains(&member.raft_id));
    let voting: Vec<&str> = voting.map(|member| member.name.as_str()).collect();
    let list = |names: &[&str]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let models: Vec<&str> = recovery.state.models.values().map(|model| model.source.as_str()).collect();
    let deployments: Vec<&str> = recovery.state.deployments.keys().map(String::as_str).collect();
    format!(
        "This makes the copy of {me} the cluster {cluster}, as it is known here (models: {models}, deployments: \
         {deployments}).\n\
         - The copy ends with entry {index} of term {term}; up to entry {committed} it is known to be committed. On \
         every other device that is left, `mesh recover` without --force says the same of its copy, once its daemon is \
         stopped: the newest copy has the highest term, and of those the highest entry.\n\
         - It holds the models {model_names} and the deployments {deployment_names}.\n\
         - {me} alone decides from then on. Others that still run follow it and vote again once they are up to date.\n\
         - What was changed last may be lost, if {me} had not heard of it.\n\
         - Do this only when most of the voters are gone for good, and on one device only: the one whose copy is newest.\n\
         - Devices that are gone must not come back with their old data. They are: some of {names}.\n\
         Voters besides {me}: {voting}.",
        me = recovery.me.name,
        cluster = recovery.state.cluster_name,
        models = models.len(),
        deployments = deployments.len(),
        index = recovery.last_index,
        term = recovery.last_term,
        committed = recovery.committed,
        model_names = list(&models),
        deployment_names = list(&deployments),
        names = list(&names),
        voting = list(&voting),
    )
}

fn is_confirmed(cluster: &str) -> Result<bool, CliError> {
    output::note(&format!("Type the name of the cluster ({cluster}) to go on:"));
    let mut line = String::new();
    io::stdin().lock().take(ANSWER_BYTES_MAX).read_line(&mut line)?;
    Ok(line.trim() == cluster)
}

/// Keeps a copy of the state, whole or not at all, beside those of earlier recoveries.
fn keep(state: &Path, folder: &Path) -> Result<PathBuf, CliError> {
    let numbered = (1..=KEPT_MAX).map(|number| folder.join(format!("{KEPT_FILE}-{number}")));
    let kept = numbered.into_iter().find(|path| !path.exists()).ok_or_else(|| {
        CliError::failed(format!(
            "{} holds {KEPT_MAX} copies of earlier states: move some away",
            folder.display()
        ))
    })?;
    let copied = fs::read(state).and_then(|bytes| write_atomically(&kept, &bytes));
    copied.map_err(|error| CliError::because(format!("{} cannot be copied", state.display()), &error))?;
    Ok(kept)
}
