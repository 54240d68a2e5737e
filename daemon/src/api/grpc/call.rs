//! What gRPC puts around messages: heads, statuses, deadlines.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hyper::body::Frame;
use prost::Message;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::connection::Open;
use crate::api::{body::Pieces, error::ApiError, infer::TIMEOUT_MAX};

const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";
/// Clients take no more than some KiB of heads. A text may quote what a client sent, which can be of any length.
const MESSAGE_MAX: usize = 2000;
/// An answer is handed to HTTP/2 in pieces of this length: a client that takes some of it is seen to do so.
const PIECE_MAX: usize = 64 << 10;

/// Whether a request is a gRPC call.
pub(super) fn is_call(head: &Parts) -> bool {
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let rest = kind.and_then(|kind| kind.strip_prefix("application/grpc"));
    head.method == Method::POST && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

/// The answer to what is no call, for whoever expects HTTP here.
pub(super) fn no_call() -> Response {
    let message = "only gRPC is spoken on this port (api.grpc_listen): for HTTP use that of api.listen";
    ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).into_response()
}

/// When a call must have been answered, if its client says.
pub(super) fn deadline(headers: &HeaderMap) -> Result<Option<Instant>, ApiError> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let left = value.to_str().ok().and_then(duration).ok_or_else(|| {
        ApiError::bad("grpc-timeout must be up to eight digits and one of H, M, S, m, u and n, such as 500m")
    })?;
    Ok(Some(Instant::now() + left.min(TIMEOUT_MAX)))
}

fn duration(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// A message that holds no tensors.
pub(super) fn message(message: &impl Message) -> Pieces {
    let mut pieces = Pieces::default();
    pieces.push(message.encode_to_vec().into());
    pieces
}

/// Answers a call, which stays open and keeps its place until the answer has been sent.
pub(super) fn answer(message: Pieces, open: Open, place: OwnedSemaphorePermit) -> Response {
    let Ok(length) = u32::try_from(message.len()) else {
        return refuse(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "the answer takes {} bytes, and a gRPC message at most 4 GiB: ask for fewer outputs, or use HTTP",
                message.len()
            ),
        ));
    };
    let mut framed = Pieces::default();
    framed.push([&[0][..], &length.to_be_bytes()].concat().into());
    framed.append(message);
    let mut end = HeaderMap::new();
    end.insert(STATUS, HeaderValue::from_static("0"));
    open.taken();
    let held = Arc::new(Held { open, _place: place });
    response(Body::new(Answer { message: framed, end: Some(end), held }))
}

/// Ends a call with an error. A head alone says so; there is no body.
pub(super) fn refuse(error: ApiError) -> Response {
    error.log();
    let mut response = response(Body::empty());
    let headers = response.headers_mut();
    headers.insert(STATUS, HeaderValue::from(code(error.status)));
    if let Ok(text) = HeaderValue::try_from(encoded(&error.message)) {
        headers.insert(MESSAGE, text);
    }
    if let Some(seconds) = error.retry_after_s {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn response(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let encodings = HeaderValue::from_static("identity,deflate,gzip");
    headers.insert("grpc-accept-encoding", encodings);
    response
}

/// gRPC's status for one of HTTP's.
fn code(status: StatusCode) -> u16 {
    match status {
        // INVALID_ARGUMENT
        StatusCode::BAD_REQUEST => 3,
        // DEADLINE_EXCEEDED
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => 4,
        // NOT_FOUND
        StatusCode::NOT_FOUND => 5,
        // RESOURCE_EXHAUSTED
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS => 8,
        // FAILED_PRECONDITION
        StatusCode::CONFLICT => 9,
        // UNIMPLEMENTED
        StatusCode::NOT_IMPLEMENTED | StatusCode::UNSUPPORTED_MEDIA_TYPE => 12,
        // INTERNAL
        StatusCode::INTERNAL_SERVER_ERROR => 13,
        // UNAVAILABLE
        StatusCode::SERVICE_UNAVAILABLE => 14,
        // UNAUTHENTICATED
        StatusCode::UNAUTHORIZED => 16,
        // UNKNOWN
        _ => 2,
    }
}

/// A text as gRPC has it in a header: all but printable ASCII as `%XX`.
fn encoded(message: &str) -> String {
    let (mut text, mut bytes) = (String::new(), [0; 4]);
    for letter in message.chars() {
        if text.len() >= MESSAGE_MAX {
            text.push_str("...");
            break;
        }
        match letter {
            ' '..='~' if letter != '%' => text.push(letter),
            _ => {
                for byte in letter.encode_utf8(&mut bytes).bytes() {
                    text.push_str(&format!("%{byte:02X}"));
                }
            }
        }
    }
    text
}

/// A message, and then the status that ends the call.
struct Answer {
    message: Pieces,
    end: Option<HeaderMap>,
    held: Arc<Held>,
}

/// What a call keeps until its answer has been sent.
struct Held {
    open: Open,
    _place: OwnedSemaphorePermit,
}

/// A piece of an answer. HTTP/2 takes the last ones and the status long before the client does, and drops each when it
/// is on its way.
struct Sent {
    piece: Bytes,
    held: Arc<Held>,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.held.open.taken();
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = match self.message.next_piece(PIECE_MAX) {
            Some(piece) => {
                let held = self.held.clone();
                Some(Frame::data(Bytes::from_owner(Sent { piece, held })))
            }
            None => self.end.take().map(Frame::trailers),
        };
        Poll::Ready(frame.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::AppError;

    #[test]
    fn timeouts_are_read() {
        for (text, wanted) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
            ("+1S", None),
            ("1.5S", None),
            ("123456789S", None),
            ("1µ", None),
        ] {
            assert_eq!(duration(text), wanted, "{text:?}");
        }
        let mut headers = HeaderMap::new();
        assert!(deadline(&headers).unwrap().is_none());
        headers.insert("grpc-timeout", HeaderValue::from_static("99999999H"));
        assert!(deadline(&headers).unwrap().unwrap() <= Instant::now() + TIMEOUT_MAX);
        headers.insert("grpc-timeout", HeaderValue::from_static("soon"));
        assert!(deadline(&headers).is_err());
    }

    #[test]
    fn errors_have_the_status_that_fits() {
        let text = || String::from("why");
        for (error, code) in [
            (AppError::Invalid(text()), "3"),
            (AppError::NotFound(text()), "5"),
            (AppError::Conflict(text()), "9"),
            (AppError::Unavailable { message: text(), retry_after_s: 7 }, "14"),
            (AppError::DeadlineExceeded(text()), "4"),
            (AppError::Internal(text()), "13"),
        ] {
            let response = refuse(error.into());
            assert_eq!(response.status(), StatusCode::OK);
            let headers = response.headers();
            assert_eq!(headers[header::CONTENT_TYPE], "application/grpc");
            assert!(headers[STATUS] == code && headers[MESSAGE] == "why", "{headers:?}");
            assert_eq!(headers.get(header::RETRY_AFTER).is_some_and(|s| s == "7"), code == "14");
        }
    }

    #[test]
    fn texts_fit_a_header() {
        assert_eq!(encoded("input \"a\" ~ 5 %"), "input \"a\" ~ 5 %25");
        assert_eq!(encoded("ü\n"), "%C3%BC%0A");
        for letter in ["a", "€"] {
            let long = encoded(&letter.repeat(100_000));
            assert!(long.len() < MESSAGE_MAX + 20 && long.ends_with("..."), "{}", long.len());
        }
    }
}
