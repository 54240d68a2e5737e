//! Files on their way into a deployment: streamed to disk, never held in memory.

use std::{
    fs, io,
    io::Write,
    path::{Path as FilePath, PathBuf},
};

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::{Api, body::SILENCE_MAX, error::ApiError};

/// Pieces between the socket and the disk.
const PIECES_MAX: usize = 16;
/// Folders that a file may lie in, below its upload.
const DEPTH_MAX: usize = 8;
/// The store and the system keep this much of the disk.
const DISK_RESERVE: u64 = 64 << 20;

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

fn folder(api: &Api, id: &str) -> Result<PathBuf, ApiError> {
    if !is_plain(id) {
        return Err(ApiError::bad(format!(
            "{id:?} is no name for an upload: use letters, digits, '-', '_', '.'"
        )));
    }
    Ok(api.app.upload_dir(id)?)
}

pub(super) async fn write(
    State(api): State<Api>,
    Path((id, file)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    check_path(&file)?;
    let folder = folder(&api, &id)?;
    let _permit = api.uploads.clone().try_acquire_owned().map_err(|_| {
        ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "this device takes as many uploads as it can: wait for one",
        )
        .retry_after(1)
    })?;
    let _at_work = api.app.uploading();
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let (pieces, to_write) = mpsc::channel::<Bytes>(PIECES_MAX);
    let target = folder.join(&file);
    let writer = crate::background::spawn(move || store(&folder, &target, announced, to_write));
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

/// Writes pieces to a temporary file beside the target; only a complete and synced file gets the name.
fn store(
    folder: &FilePath,
    target: &FilePath,
    announced: Option<u64>,
    mut pieces: mpsc::Receiver<Bytes>,
) -> io::Result<()> {
    let parent = target.parent().unwrap_or(folder);
    fs::create_dir_all(parent)?;
    let stat = rustix::fs::statvfs(folder)?;
    if announced.is_some_and(|bytes| bytes.saturating_add(DISK_RESERVE) > stat.f_bavail * stat.f_frsize) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let mut file = tempfile::Builder::new().prefix(".part-").tempfile_in(parent)?;
    loop {
        match pieces.blocking_recv() {
            Some(piece) if piece.is_empty() => break,
            Some(piece) => file.write_all(&piece)?,
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    file.as_file().sync_all()?;
    file.persist(target).map_err(|error| error.error)?;
    fs::File::open(parent)?.sync_all()
}

fn disk_error(file: &str, error: &io::Error) -> ApiError {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return ApiError::new(
            StatusCode::INSUFFICIENT_STORAGE,
            format!(
                "the disk of this device is too full for {file}: free some, or deploy through another device"
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
    let Ok(folder) = folder(api, id) else { return };
    if let Err(error) = tokio::fs::remove_dir_all(&folder).await
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, folder = %folder.display(), "an upload could not be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::{check_path, is_plain};

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
