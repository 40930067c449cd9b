//! What is said back to a client, in its dialect.

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, LOCATION, SERVER};
use hyper::{Method, Response, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;
use std::convert::Infallible;
use vmm::config::firecracker::BodyError;
use vmm::control::{CommandError, JobReport, State};
use vmm::machine::{DiskChangeError, NetChangeError};

use super::Gone;
use super::routes::Dialect;
use crate::exit;

/// The type of a body of one JSON value a line.
pub(super) const LINES: &str = "application/x-ndjson";

/// A body of any kind.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// An answer.
pub(super) type Answer = Response<Body>;

/// Why a request is not carried out.
#[derive(Debug)]
pub(super) struct Fault {
    status: StatusCode,
    /// The methods that would do, where it is the method that does not.
    allow: Option<HeaderValue>,
    body: HuskFault,
}

/// Why a request is not carried out, in Firecracker's terms.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct FirecrackerFault {
    /// What is wrong, and what would do.
    fault_message: String,
}

/// Why a request is not carried out.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct HuskFault {
    /// The kind of fault.
    code: Code,
    /// What is wrong, and what would do.
    message: String,
    /// The field of the body that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// The state that refused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<State>,
}

/// The kinds of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Code {
    /// The request is wrong.
    BadRequest,
    /// There is no such path.
    NotFound,
    /// The path is there for other methods.
    MethodNotAllowed,
    /// The request has too many bytes.
    TooLarge,
    /// The events are followed by as many clients as may.
    TooManyFollowers,
    /// The machine's state refuses it.
    State,
    /// There is no such job.
    NoSuchJob,
    /// The job is over.
    JobEnded,
    /// The machine has no such device.
    NoSuchDevice,
    /// The host does not do it.
    Host,
}

impl Fault {
    /// The client's request is wrong.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::of(Code::BadRequest, message)
    }

    /// A fault of this kind.
    pub(super) fn of(code: Code, message: impl Into<String>) -> Self {
        let body = HuskFault { code, message: message.into(), field: None, state: None };
        Self { status: code.status(), allow: None, body }
    }

    /// This field of the body is wrong; an empty one is the whole.
    pub(super) fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        let mut fault = Self::bad(message);
        fault.body.field = Some(field.into()).filter(|field| !field.is_empty());
        fault
    }

    /// The path does not take `method`, but these.
    pub(super) fn method(method: &Method, path: &str, allowed: &[Method]) -> Self {
        let allowed = allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        let fault = Self::of(Code::MethodNotAllowed, format!("{path} takes {allowed}, not {method}"));
        let allow = HeaderValue::from_str(&allowed).expect("the names of methods are a header's");
        Self { allow: Some(allow), ..fault }
    }

    /// What is wrong, as a log may have it: a message about a body quotes it, and that may be a secret.
    pub(super) fn for_log(&self) -> String {
        match (self.body.code, &self.body.field) {
            (Code::BadRequest, Some(field)) => format!("a bad request: {field}"),
            (Code::BadRequest, None) => "a bad request".to_owned(),
            _ => self.body.message.clone(),
        }
    }

    /// The fault in its dialect: Firecracker's clients know 400 alone.
    pub(super) fn answer(self, dialect: Dialect) -> Answer {
        if dialect == Dialect::Firecracker {
            return json_answer(StatusCode::BAD_REQUEST, &FirecrackerFault { fault_message: self.body.message });
        }
        let mut answer = json_answer(self.status, &self.body);
        if let Some(allow) = self.allow {
            answer.headers_mut().insert(ALLOW, allow);
        }
        answer
    }
}

impl Code {
    /// The status that tells of it.
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::NotFound | Self::NoSuchJob | Self::NoSuchDevice => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooManyFollowers => StatusCode::SERVICE_UNAVAILABLE,
            Self::State | Self::JobEnded => StatusCode::CONFLICT,
            Self::Host => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<BodyError> for Fault {
    fn from(error: BodyError) -> Self {
        let mut fault = Self::bad(exit::describe(&error));
        fault.body.field = error.field().map(str::to_owned);
        fault
    }
}

impl From<CommandError> for Fault {
    fn from(error: CommandError) -> Self {
        let code = match &error {
            CommandError::Refused(_) => Code::State,
            CommandError::NoSuchJob(_) => Code::NoSuchJob,
            CommandError::JobEnded(_) => Code::JobEnded,
            CommandError::Disk(DiskChangeError::Unknown(_))
            | CommandError::Net(NetChangeError::Unknown(_))
            | CommandError::NothingToLimit(_) => Code::NoSuchDevice,
            CommandError::Start(_)
            | CommandError::File { .. }
            | CommandError::Tap(_)
            | CommandError::Body(_)
            | CommandError::Disk(_)
            | CommandError::NoBalloon
            | CommandError::Balloon(_)
            | CommandError::NoHotplug
            | CommandError::Hotplug(_)
            | CommandError::MetricsGo(_) => Code::BadRequest,
            CommandError::SnapshotIsMade(_) | CommandError::Configured | CommandError::Assembling(_) => Code::State,
            CommandError::Snapshot(error) if error.is_the_requests() => Code::BadRequest,
            CommandError::Kvm(_)
            | CommandError::Held(_)
            | CommandError::Unanswered { .. }
            | CommandError::Unasked { .. }
            | CommandError::Snapshot(_) => Code::Host,
        };
        let mut fault = Self::of(code, exit::describe(&error));
        fault.body.state = error.state();
        fault
    }
}

impl From<Gone> for Fault {
    fn from(Gone: Gone) -> Self {
        let mut fault = Self::of(Code::State, "the machine has ended, and husk ends with it");
        fault.body.state = Some(State::Ended);
        fault
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

/// An endless body of one JSON value a line.
pub(super) fn lines(body: Body) -> Answer {
    let mut answer = Response::new(body);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(LINES));
    signed(answer)
}

fn signed(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(SERVER, HeaderValue::from_static("husk"));
    answer
}
