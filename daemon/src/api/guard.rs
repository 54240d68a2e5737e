//! What every request passes first: where it comes from, the token, and a net under panics.
//!
//! Browsers are the reason for the first check. A page of any site can send requests to `127.0.0.1`, so that requests
//! of another origin are refused; and it can point its own host name at `127.0.0.1` to become the same origin, so that
//! an API without a token answers only to addresses and `localhost`.

use std::{net::IpAddr, panic::AssertUnwindSafe};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::FutureExt;

use super::{Api, error::ApiError};

pub(super) async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    if let Err(error) = admit(&api, request.uri().path(), request.headers()) {
        return error.into_response();
    }
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => ApiError::defect().into_response(),
    }
}

fn admit(api: &Api, path: &str, headers: &HeaderMap) -> Result<(), ApiError> {
    let host = text(headers, header::HOST);
    if let Some(origin) = text(headers, header::ORIGIN)
        && origin.split_once("://").map(|(_, authority)| authority) != host
    {
        return Err(ApiError::new(StatusCode::FORBIDDEN, format!("pages of {origin} may not use this API")));
    }
    if api.local_only && host.is_some_and(|h| !is_local_name(h)) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "without a token this API answers only to an address or localhost: set api.token_file to use a name",
        ));
    }
    let open = path == "/" || path == "/favicon.ico" || path.starts_with("/v2/health/");
    match &api.token {
        Some(token) if !open && !carries(headers, token) => Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "this API wants a token: send the header `Authorization: Bearer TOKEN`",
        )),
        Some(_) | None => Ok(()),
    }
}

/// Whether the request carries the token whose hash is given; in constant time, as `blake3::Hash` compares so.
pub(super) fn carries(headers: &HeaderMap, token: &blake3::Hash) -> bool {
    let given = text(headers, header::AUTHORIZATION).and_then(|value| value.split_once(' '));
    given.is_some_and(|(scheme, given)| {
        scheme.eq_ignore_ascii_case("bearer") && blake3::hash(given.trim().as_bytes()) == *token
    })
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// An address or `localhost`, with or without a port.
fn is_local_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::is_local_name;

    #[test]
    fn only_addresses_and_localhost_are_local() {
        for good in ["127.0.0.1:7401", "localhost", "LOCALHOST:1", "[::1]:7401", "10.0.0.7"] {
            assert!(is_local_name(good), "{good}");
        }
        for bad in ["evil.example:7401", "127.0.0.1.evil.example", "", "[::1.evil]:1", "localhost.evil"] {
            assert!(!is_local_name(bad), "{bad}");
        }
    }
}
