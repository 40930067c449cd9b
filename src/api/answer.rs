//! What is said back to a client, in its dialect.

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, LOCATION, SERVER};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde_json::json;
use std::convert::Infallible;
use vmm::control::{CommandError, JobReport};

use super::Gone;
use super::routes::Dialect;
use crate::exit;

/// A body of any kind.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// An answer.
pub(super) type Answer = Response<Body>;

/// Why a request is not carried out.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    /// The state that refused it.
    pub(super) state: Option<&'static str>,
}

impl Fault {
    /// The client's request is wrong.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code: "bad_request", message: message.into(), state: None }
    }

    pub(super) fn with(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), state: None }
    }

    /// The fault in its dialect: Firecracker's clients know 400 alone.
    pub(super) fn answer(self, dialect: Dialect) -> Answer {
        match dialect {
            Dialect::Firecracker => json_answer(StatusCode::BAD_REQUEST, &json!({ "fault_message": self.message })),
            Dialect::Husk => {
                let mut body = json!({ "code": self.code, "message": self.message });
                if let Some(state) = self.state {
                    body["state"] = state.into();
                }
                json_answer(self.status, &body)
            }
        }
    }
}

impl From<CommandError> for Fault {
    fn from(error: CommandError) -> Self {
        let (status, code) = match &error {
            CommandError::Refused(_) => (StatusCode::CONFLICT, "state"),
            CommandError::NoSuchJob(_) => (StatusCode::NOT_FOUND, "no_such_job"),
            CommandError::JobEnded(_) => (StatusCode::CONFLICT, "job_ended"),
            CommandError::Start(_)
            | CommandError::File { .. }
            | CommandError::Body(_)
            | CommandError::Disk(_)
            | CommandError::Net(_)
            | CommandError::NoBalloon
            | CommandError::Balloon(_)
            | CommandError::MetricsGo(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            CommandError::Kvm(_) | CommandError::Held(_) => (StatusCode::INTERNAL_SERVER_ERROR, "host"),
        };
        Self { status, code, message: exit::describe(&error), state: error.state().map(vmm::control::State::name) }
    }
}

impl From<Gone> for Fault {
    fn from(Gone: Gone) -> Self {
        Self {
            status: StatusCode::CONFLICT,
            code: "state",
            message: "the machine has ended, and husk ends with it".to_owned(),
            state: Some("ended"),
        }
    }
}

/// It is done, and there is nothing to say.
pub(super) fn no_content() -> Answer {
    let mut answer = Response::new(Empty::new().boxed_unsync());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    signed(answer)
}

/// `value` as JSON.
pub(super) fn json_answer(status: StatusCode, value: &impl Serialize) -> Answer {
    let text = serde_json::to_vec(value).expect("what husk says has string keys and serialises");
    let mut answer = text_answer("application/json", text);
    *answer.status_mut() = status;
    answer
}

/// `text` of this type.
pub(super) fn text_answer(content_type: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()).boxed_unsync());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    signed(answer)
}

/// A job that was begun.
pub(super) fn accepted(job: &JobReport) -> Answer {
    let mut answer = json_answer(StatusCode::ACCEPTED, job);
    let place = HeaderValue::from_str(&format!("/husk/v1/jobs/{}", job.id)).expect("digits are a header's");
    answer.headers_mut().insert(LOCATION, place);
    answer
}

/// An endless body of this type.
pub(super) fn stream(content_type: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    signed(answer)
}

fn signed(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(SERVER, HeaderValue::from_static("husk"));
    answer
}
