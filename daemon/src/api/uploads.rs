//! Files on their way into a deployment: streamed to disk, never held in memory.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    path::{Path as FilePath, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
};
use bytes::Bytes;
use futures::StreamExt;
use mesh_inference::blobs::Disk;
use tokio::sync::mpsc;

use super::{Api, body::SILENCE_MAX, error::ApiError, extract::Path};

/// Pieces between the socket and the disk.
const PIECES_MAX: usize = 16;
/// Folders that a file may lie in, below its upload.
const DEPTH_MAX: usize = 8;
/// The disk's room is looked at again after this much of a file. Files that come at once take at most half of what
/// stays free of a disk between two looks.
const LOOK_EVERY: usize = 4 << 20;
const _: () = assert!((LOOK_EVERY * super::UPLOADS_MAX) as u64 <= Disk::RESERVE_MIN / 2);
/// An upload that nobody has used for this long was left by its client.
const LEFT_AFTER: Duration = Duration::from_secs(3600);
/// Uploads are looked through this often.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Uploads that may have files here at once.
const KNOWN_MAX: usize = 4096;

/// Uploads that have files here, and who uses them. The folder is empty when the daemon starts, so that all are known.
#[derive(Debug, Clone, Default)]
pub(super) struct Known(Arc<Mutex<BTreeMap<String, Use>>>);

#[derive(Debug, Clone, Copy)]
enum Use {
    /// So many writers and deployments.
    By(usize),
    /// Not since then.
    Nobody(Instant),
    /// Was left: its files are being removed.
    Removal,
}

/// An upload in use: it is not removed as one that was left.
#[derive(Debug)]
pub(super) struct Held {
    known: Known,
    id: String,
}

impl Known {
    /// Marks an upload, new or not, as in use while the answer is held.
    pub(super) fn hold(&self, id: &str) -> Result<Held, ApiError> {
        let mut uploads = self.lock();
        let users = match uploads.get(id) {
            Some(Use::By(users)) => *users,
            Some(Use::Nobody(_)) => 0,
            Some(Use::Removal) => {
                let text = format!("the upload {id:?} was left for long and is being removed: send it again");
                return Err(ApiError::new(StatusCode::CONFLICT, text).retry_after(1));
            }
            None if uploads.len() >= KNOWN_MAX => {
                let text = "this device holds as many uploads as it can: deploy or delete some";
                return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, text).retry_after(60));
            }
            None => 0,
        };
        uploads.insert(id.to_owned(), Use::By(users + 1));
        Ok(Held { known: self.clone(), id: id.to_owned() })
    }

    /// Those that nobody has used for `time`: they are to be removed and forgotten.
    fn take_left(&self, time: Duration) -> Vec<String> {
        let mut left = Vec::new();
        for (id, state) in self.lock().iter_mut() {
            if matches!(state, Use::Nobody(since) if since.elapsed() >= time) {
                *state = Use::Removal;
                left.push(id.clone());
            }
        }
        left
    }

    /// Its files have been removed. Who uses it nevertheless may write new ones.
    fn removed(&self, id: &str) {
        let mut uploads = self.lock();
        if !matches!(uploads.get(id), Some(Use::By(_))) {
            uploads.remove(id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Use>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(state) = self.known.lock().get_mut(&self.id) {
            *state = match *state {
                Use::By(users @ 2..) => Use::By(users - 1),
                Use::By(_) | Use::Nobody(_) | Use::Removal => Use::Nobody(Instant::now()),
            };
        }
    }
}

/// Removes uploads that were left, for as long as the API runs.
pub(super) async fn sweep(api: &Api) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        remove_left(api, LEFT_AFTER).await;
    }
}

async fn remove_left(api: &Api, time: Duration) {
    for id in api.uploads_known.take_left(time) {
        tracing::info!(upload = %id, "removing an upload that its client has left");
        forget(api, &id).await;
    }
}

/// 1 to 64 letters, digits, `-`, `_`, `.`, not starting with a dot.
pub(super) fn is_plain(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Checks a file's path inside its upload: nothing may lead out of it.
pub(super) fn check_path(file: &str) -> Result<(), ApiError> {
    let parts: Vec<_> = file.split('/').collect();
    let good = |part: &&str| {
        (1..=255).contains(&part.len())
            && !part.starts_with('.')
            && !part.contains(['\\', '\0'])
            && !part.chars().any(char::is_control)
    };
    match parts.len() <= DEPTH_MAX && parts.iter().all(good) {
        true => Ok(()),
        false => Err(ApiError::bad(format!("{file:?} is not a plain file name inside the upload"))),
    }
}

fn check_id(id: &str) -> Result<(), ApiError> {
    match is_plain(id) {
        true => Ok(()),
        false => {
            Err(ApiError::bad(format!("{id:?} is no name for an upload: use letters, digits, '-', '_', '.'")))
        }
    }
}

fn folder(api: &Api, id: &str) -> Result<PathBuf, ApiError> {
    check_id(id)?;
    Ok(api.app.upload_dir(id)?)
}

pub(super) async fn write(
    State(api): State<Api>,
    Path((id, file)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    check_path(&file)?;
    check_id(&id)?;
    let _permit = api.uploads.clone().try_acquire_owned().map_err(|_| {
        ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "this device takes as many uploads as it can: wait for one",
        )
        .retry_after(1)
    })?;
    let held = api.uploads_known.hold(&id)?;
    let folder = folder(&api, &id)?;
    let _at_work = api.app.uploading();
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    // Before the body is taken: who waits for a go-ahead (Expect: 100-continue) need not send it in vain.
    let asked = folder.clone();
    let room = crate::background::spawn(move || check_room(&asked, announced.unwrap_or(0), Disk::of));
    let room = room.await.map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    room.map_err(|error| disk_error(&file, &error))?;
    let (pieces, to_write) = mpsc::channel::<Bytes>(PIECES_MAX);
    let target = folder.join(&file);
    // The writer may outlive a client that has left.
    let writer = crate::background::spawn(move || {
        let _held = held;
        store(&folder, &target, announced, Disk::of, to_write)
    });
    let sent = receive(body, pieces).await;
    let written =
        writer.await.map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    // The disk's error comes first: it is the reason for which receiving stopped.
    match (written, sent) {
        (Ok(()), Ok(())) => Ok(StatusCode::CREATED),
        (Err(error), _) if error.kind() != io::ErrorKind::UnexpectedEof => Err(disk_error(&file, &error)),
        (_, Err(error)) => Err(error),
        (Err(error), Ok(())) => Err(disk_error(&file, &error)),
    }
}

/// Hands the body to the writer. Ends it with an empty piece, so that a body that broke off is no complete file.
async fn receive(body: Body, pieces: mpsc::Sender<Bytes>) -> Result<(), ApiError> {
    let mut stream = body.into_data_stream();
    loop {
        let next = tokio::select! {
            next = tokio::time::timeout(SILENCE_MAX, stream.next()) => next,
            // The writer has gone because the disk failed; its error is the answer.
            () = pieces.closed() => return Ok(()),
        };
        let next =
            next.map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the upload stopped coming"))?;
        let piece = match next {
            Some(Ok(piece)) if piece.is_empty() => continue,
            Some(Ok(piece)) => piece,
            Some(Err(error)) => return Err(ApiError::bad(format!("the upload broke off: {error}"))),
            None => Bytes::new(),
        };
        let last = piece.is_empty();
        if pieces.send(piece).await.is_err() || last {
            return Ok(());
        }
    }
}

/// Writes pieces to a temporary file beside the target; only a complete and synced file gets the name. As much of the
/// disk stays free as the store of weights leaves.
fn store(
    folder: &FilePath,
    target: &FilePath,
    announced: Option<u64>,
    disk: impl Fn(&FilePath) -> io::Result<Disk>,
    mut pieces: mpsc::Receiver<Bytes>,
) -> io::Result<()> {
    let parent = target.parent().unwrap_or(folder);
    fs::create_dir_all(parent)?;
    check_room(folder, announced.unwrap_or(0), &disk)?;
    let mut since_look = 0;
    let mut file = tempfile::Builder::new().prefix(".part-").tempfile_in(parent)?;
    loop {
        match pieces.blocking_recv() {
            Some(piece) if piece.is_empty() => break,
            Some(piece) => {
                file.write_all(&piece)?;
                since_look += piece.len();
                if since_look >= LOOK_EVERY {
                    check_room(folder, 0, &disk)?;
                    since_look = 0;
                }
            }
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    file.as_file().sync_all()?;
    file.persist(target).map_err(|error| error.error)?;
    fs::File::open(parent)?.sync_all()
}

/// Refuses what would not leave as much of the disk free as the store of weights does.
fn check_room(folder: &FilePath, bytes: u64, disk: impl Fn(&FilePath) -> io::Result<Disk>) -> io::Result<()> {
    match disk(folder)?.fits(bytes) {
        true => Ok(()),
        false => Err(io::ErrorKind::StorageFull.into()),
    }
}

fn disk_error(file: &str, error: &io::Error) -> ApiError {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return ApiError::new(
            StatusCode::INSUFFICIENT_STORAGE,
            format!(
                "the disk of this device is too full for {file}, beside what is kept free for the cluster's log: free \
                 some, or deploy through another device"
            ),
        );
    }
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{file} could not be stored: {error}"))
}

pub(super) async fn remove(State(api): State<Api>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    folder(&api, &id)?;
    forget(&api, &id).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes an upload's files.
pub(super) async fn forget(api: &Api, id: &str) {
    if let Ok(folder) = folder(api, id)
        && let Err(error) = tokio::fs::remove_dir_all(&folder).await
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, folder = %folder.display(), "an upload could not be removed");
    }
    api.uploads_known.removed(id);
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::Arc};

    use axum::response::IntoResponse;

    use super::{super::tests::Adder, *};
    use crate::api::ApiOptions;

    fn api() -> Api {
        Api::new(Arc::new(Adder::default()), &ApiOptions::default(), true)
    }

    async fn put(api: &Api, id: &str, body: Body) -> StatusCode {
        let path = Path((id.to_owned(), "m.onnx".to_owned()));
        write(State(api.clone()), path, HeaderMap::new(), body).await.into_response().status()
    }

    #[tokio::test]
    async fn an_upload_that_was_left_is_removed() {
        let api = api();
        for id in ["left", "used", "both"] {
            assert_eq!(put(&api, id, "x".into()).await, StatusCode::CREATED);
        }
        let broken = futures::stream::iter([Ok(Bytes::from("x")), Err(io::Error::other("gone"))]);
        assert_eq!(put(&api, "broken", Body::from_stream(broken)).await, StatusCode::BAD_REQUEST);
        assert_eq!(put(&api, "not plain", "x".into()).await, StatusCode::BAD_REQUEST);
        let uploads = api.app.upload_dir("used").unwrap().parent().unwrap().to_owned();
        let there = || {
            let mut ids: Vec<_> = fs::read_dir(&uploads).unwrap().map(|e| e.unwrap().file_name()).collect();
            ids.sort();
            ids
        };
        remove_left(&api, LEFT_AFTER).await;
        assert_eq!(there(), ["both", "broken", "left", "used"], "none for long");
        let (held, twice, again) =
            (api.uploads_known.hold("used"), api.uploads_known.hold("both"), api.uploads_known.hold("both"));
        drop(again);
        remove_left(&api, Duration::ZERO).await;
        assert_eq!(there(), ["both", "used"]);
        forget(&api, "both").await;
        assert_eq!(api.uploads_known.lock().len(), 2, "who uses it may write again");
        drop((held, twice));
        remove_left(&api, Duration::ZERO).await;
        assert!(there().is_empty() && api.uploads_known.lock().is_empty());
    }

    #[tokio::test]
    async fn what_is_being_removed_takes_no_file() {
        let api = api();
        assert_eq!(put(&api, "up", "x".into()).await, StatusCode::CREATED);
        assert_eq!(api.uploads_known.take_left(Duration::ZERO), ["up"]);
        assert_eq!(put(&api, "up", "x".into()).await, StatusCode::CONFLICT);
        forget(&api, "up").await;
        assert_eq!(put(&api, "up", "x".into()).await, StatusCode::CREATED);
        for n in 1..KNOWN_MAX {
            drop(api.uploads_known.hold(&n.to_string()).unwrap());
        }
        assert_eq!(put(&api, "up", "x".into()).await, StatusCode::CREATED);
        assert_eq!(put(&api, "more", "x".into()).await, StatusCode::TOO_MANY_REQUESTS);
    }

    #[test]
    fn the_reserve_of_the_disk_stays() {
        const MIB: u64 = 1 << 20;
        // What is announced, what comes, and what was free at the start; all in MiB. Half of it goes to others.
        for (announced, comes, free, fits) in [
            (Some(0), 0, 64, true),
            (Some(0), 0, 63, false),
            (None, 0, 63, false),
            (Some(8), 8, 72, false),
            (Some(8), 8, 71, false),
            (Some(8), 8, 80, true),
            (None, 8, 80, true),
            (None, 3, 64, true),
            (None, 10, 66, false),
            (None, 12, 87, false),
            (None, 12, 88, true),
            (Some(200), 1, 263, false),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let (pieces, to_write) = mpsc::channel(32);
            for _ in 0..comes {
                pieces.try_send(Bytes::from(vec![7; MIB as usize])).unwrap();
            }
            pieces.try_send(Bytes::new()).unwrap();
            // Another file comes as fast: each look finds twice the step gone. Half of a small disk stays free.
            let looks = Cell::new(0);
            let disk = |_: &FilePath| {
                let gone = 2 * looks.get() * LOOK_EVERY as u64;
                looks.set(looks.get() + 1);
                Ok(Disk { bytes: 128 * MIB, free: (free * MIB).saturating_sub(gone) })
            };
            let target = folder.path().join("m.onnx");
            let stored = store(folder.path(), &target, announced.map(|mib: u64| mib * MIB), disk, to_write);
            let case = format!("{announced:?} {comes} {free}: {stored:?}");
            assert_eq!(
                stored.map_err(|e| e.kind()),
                if fits { Ok(()) } else { Err(io::ErrorKind::StorageFull) },
                "{case}"
            );
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), usize::from(fits), "{case}");
        }
    }

    #[test]
    fn paths_stay_inside_the_upload() {
        for good in ["model.onnx", "weights/part 1.bin", "ä.bin", "a/b/c/d/e/f/g/h"] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        let bad =
            ["", "/", "..", "../x", "a/../b", "a//b", "/etc/passwd", "a/", ".part-x", "a\\b", "a\0", "a\nb"];
        for bad in bad {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
        assert!(check_path("a/b/c/d/e/f/g/h/i").is_err());
        assert!(
            is_plain("a-b_c.1") && !is_plain("") && !is_plain(".a") && !is_plain("a/b") && !is_plain("ä")
        );
    }
}
