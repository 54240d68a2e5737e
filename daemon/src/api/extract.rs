//! Parts of a request's address. The same as axum's own, but for their errors, which axum gives as plain text.

use axum::{
    extract::{self, FromRequestParts},
    http::{StatusCode, request::Parts},
};
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// Parameters of the path.
#[derive(Debug)]
pub(super) struct Path<T>(pub(super) T);

/// Parameters behind the `?`.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match extract::Path::from_request_parts(parts, state).await {
            Ok(extract::Path(value)) => Ok(Self(value)),
            Err(error) => Err(wrong_address(error.status(), &error.body_text())),
        }
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match extract::Query::from_request_parts(parts, state).await {
            Ok(extract::Query(value)) => Ok(Self(value)),
            Err(error) => Err(wrong_address(error.status(), &error.body_text())),
        }
    }
}

fn wrong_address(status: StatusCode, what: &str) -> ApiError {
    ApiError::new(status, format!("{what}: correct the request's address"))
}
