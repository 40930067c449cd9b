//! The table of all routes, and how a request finds its own. A route is stateless: method, path and body become a command,
//! and what the control loop replies becomes an answer. The OpenAPI document is made from the same table.

use std::sync::{LazyLock, OnceLock};

use hyper::Method;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use vmm::config::firecracker::from_json;
use vmm::config::{ID_LENGTH_MAX, ID_PATTERN};
use vmm::control::{Command, Reply};

use super::answer::{Answer, Code, Fault};
use super::shape::Shape;
use super::{Context, balloon, firecracker, hotplug, husk, snapshots};

/// Levels of arrays and objects that a body may have.
const DEPTH_MAX: usize = 32;

/// Whose clients a route is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Firecracker's.
    Firecracker,
    /// husk's own, under `/husk/v1`.
    Husk,
}

/// A route.
pub(super) struct Route {
    pub(super) method: Method,
    /// The path; a segment in braces is the route's argument.
    pub(super) path: &'static str,
    pub(super) summary: &'static str,
    /// What may stand where the path has braces.
    pub(super) argument: MakeSchema,
    /// What may stand behind the path's question mark.
    pub(super) query: Option<Query>,
    /// The body that it takes, if it takes one.
    pub(super) body: Option<Body>,
    /// What a request that is carried out is answered.
    pub(super) success: Success,
    pub(super) plan: fn(&Context, &Request) -> Result<Plan, Fault>,
}

/// A number that a query may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Query {
    pub(super) name: &'static str,
    pub(super) description: &'static str,
}

/// What a device may be called.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "it is the schema of the arguments of paths")]
struct DeviceId(#[schemars(length(min = 1, max = ID_LENGTH_MAX), regex(pattern = ID_PATTERN))] String);

/// A body's type.
pub(super) struct Body {
    pub(super) schema: MakeSchema,
    /// The schema as bodies are held against it: made for the first of them.
    shape: OnceLock<Shape>,
    /// Whether a request must have it.
    pub(super) presence: Presence,
}

/// Whether a body must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Required,
    Optional,
}

pub(super) type MakeSchema = fn(&mut SchemaGenerator) -> Schema;

/// What a request that is carried out is answered.
pub(super) enum Success {
    /// 204.
    NoContent,
    /// 200 with JSON.
    Json(MakeSchema),
    /// 202 with the job, and its place.
    Accepted,
    /// 200 with text of a type.
    Text(&'static str),
    /// 200 with lines of JSON, as they come.
    Lines(MakeSchema),
    /// Nothing: husk cannot do it yet.
    Never,
}

/// A request that has found its route.
pub(super) struct Request<'a> {
    /// The route's summary.
    pub(super) summary: &'static str,
    /// What stands where the route's path has braces.
    pub(super) argument: &'a str,
    pub(super) query: &'a str,
    pub(super) body: &'a str,
}

/// What is to be done.
pub(super) enum Plan {
    /// Ask the control loop, and say what it replies.
    Ask(Command, fn(Reply, &Context) -> Answer),
    /// Ask the control loop, and let a thread of its own make the answer from what it replies: that takes a while.
    AskSlow(Command, fn(Reply) -> Result<Answer, Fault>),
    /// Say this.
    Say(Answer),
    /// Send the events after this one, as they come.
    Follow(u64),
}

/// `T` as a body that must be there.
pub(super) const fn required<T: JsonSchema>() -> Option<Body> {
    Some(Body { schema: schema::<T>, shape: OnceLock::new(), presence: Presence::Required })
}

/// `T` as a body that may be there.
pub(super) const fn optional<T: JsonSchema>() -> Option<Body> {
    Some(Body { schema: schema::<T>, shape: OnceLock::new(), presence: Presence::Optional })
}

/// The schema of `T`.
pub(super) fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

impl Route {
    pub(super) fn new(
        method: Method,
        path: &'static str,
        summary: &'static str,
        body: Option<Body>,
        success: Success,
        plan: fn(&Context, &Request) -> Result<Plan, Fault>,
    ) -> Self {
        Self { method, path, summary, argument: schema::<DeviceId>, query: None, body, success, plan }
    }

    /// The route of what is called by a `T`, and not as devices are.
    pub(super) fn called<T: JsonSchema>(self) -> Self {
        Self { argument: schema::<T>, ..self }
    }

    /// The route with a number in its query.
    pub(super) fn with_query(self, query: Query) -> Self {
        Self { query: Some(query), ..self }
    }
}

/// All routes: made when the first is looked for, and once.
pub(super) fn all() -> &'static [Route] {
    static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
        let firecracker = firecracker::routes().into_iter().chain(balloon::routes()).chain(hotplug::routes());
        firecracker.chain(snapshots::routes()).chain(husk::routes()).collect()
    });
    &ROUTES
}

/// Whose a path is.
pub(super) fn dialect(path: &str) -> Dialect {
    match path == "/husk" || path.starts_with("/husk/") {
        true => Dialect::Husk,
        false => Dialect::Firecracker,
    }
}

/// The route of a request.
pub(super) struct Found<'a> {
    route: &'static Route,
    /// Its place in the table.
    pub(super) index: usize,
    argument: &'a str,
}

/// Finds the route of a request.
///
/// # Errors
/// There is none.
pub(super) fn find<'a>(method: &Method, path: &'a str) -> Result<Found<'a>, Fault> {
    let mut allowed = Vec::new();
    for (index, route) in all().iter().enumerate() {
        let Some(argument) = arguments(route.path, path) else { continue };
        if route.method == *method {
            return Ok(Found { route, index, argument });
        }
        allowed.push(route.method.clone());
    }
    Err(match dialect(path) {
        Dialect::Firecracker => Fault::bad(format!("invalid request method and/or path: {method} {path}")),
        Dialect::Husk if allowed.is_empty() => {
            Fault::of(Code::NotFound, format!("there is no {path}: see /husk/v1/openapi.json"))
        }
        Dialect::Husk => Fault::method(method, path, &allowed),
    })
}

impl Found<'_> {
    /// What the request asks for.
    ///
    /// # Errors
    /// Its body is wrong.
    pub(super) fn plan(&self, context: &Context, query: &str, body: &[u8]) -> Result<Plan, Fault> {
        let body = std::str::from_utf8(body)
            .map_err(|error| Fault::bad(format!("the body is no UTF-8 after byte {}", error.valid_up_to())))?;
        check_body(self.route, body)?;
        let request = Request { summary: self.route.summary, argument: self.argument, query, body };
        (self.route.plan)(context, &request)
    }
}

fn check_body(route: &Route, body: &str) -> Result<(), Fault> {
    let method = &route.method;
    let empty = is_blank(body);
    match &route.body {
        None if !empty => Err(Fault::bad(format!("a {method} request of {} has no body", route.path))),
        Some(Body { presence: Presence::Required, .. }) if empty => {
            Err(Fault::bad(format!("the body is empty: a {method} request of {} needs one", route.path)))
        }
        _ if is_too_deep(body) => Err(Fault::bad(format!("the body has more than {DEPTH_MAX} levels"))),
        Some(Body { schema, shape, .. }) if !empty => match shape.get_or_init(|| Shape::of(*schema)).misfit(body) {
            Some(misfit) => Err(Fault::field(misfit.path.clone(), misfit.to_string())),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Whether there is nothing but what JSON takes for white space (RFC 8259 §2).
fn is_blank(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'))
}

/// Whether brackets outside of strings go deeper than they may. What is no JSON is the parser's to say.
fn is_too_deep(text: &str) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if std::mem::take(&mut escaped) => {}
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return true;
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// What stands for the braces of `pattern` in `path`, if it is of that form; a slash at the end changes nothing.
fn arguments<'a>(pattern: &str, path: &'a str) -> Option<&'a str> {
    let mut argument = "";
    let trimmed = |path: &'a str| path.strip_suffix('/').unwrap_or(path);
    let mut segments = trimmed(path).split('/');
    for expected in pattern.strip_suffix('/').unwrap_or(pattern).split('/') {
        let found = segments.next()?;
        if expected.starts_with('{') {
            argument = found;
        } else if expected != found {
            return None;
        }
    }
    segments.next().is_none().then_some(argument)
}

impl Request<'_> {
    /// The body as a `T`.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        Ok(from_json(self.body)?)
    }

    /// As [`Self::parse`], of a body that may be left out.
    pub(super) fn parse_optional<T: DeserializeOwned + Default>(&self) -> Result<T, Fault> {
        if is_blank(self.body) { Ok(T::default()) } else { self.parse() }
    }

    /// As [`Self::parse`], of a body that names what the path names.
    pub(super) fn parse_named<T: DeserializeOwned>(&self, field: &str, name: fn(&T) -> &str) -> Result<T, Fault> {
        let body = self.parse()?;
        match name(&body) {
            named if named == self.argument => Ok(body),
            named => {
                let of_path = self.argument;
                let message = format!("{field}: `{named}` is not the `{of_path}` of the path: give both the same");
                Err(Fault::field(field, message))
            }
        }
    }

    /// The number that the query has under this name, if it has one.
    pub(super) fn number(&self, query: &Query) -> Result<Option<u64>, Fault> {
        let mut found = None;
        for pair in self.query.split('&').filter(|pair| !pair.is_empty()) {
            let number = pair.split_once('=').filter(|(name, _)| *name == query.name);
            let number = number.and_then(|(_, value)| value.parse().ok());
            let wrong = || Fault::bad(format!("`{pair}`: use {}=NUMBER: {}", query.name, query.description));
            found = Some(number.ok_or_else(wrong)?);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_matched_as_a_whole() {
        assert_eq!(arguments("/drives/{id}", "/drives/a"), Some("a"));
        assert_eq!(arguments("/drives/{id}", "/drives/a/"), Some("a"));
        assert_eq!(arguments("/drives/{id}", "/drives/"), None);
        assert_eq!(arguments("/drives/{id}", "/drives/a/b"), None);
        assert_eq!(arguments("/", "/"), Some(""));
        assert_eq!(arguments("/vm", "/vmx"), None);
        assert_eq!(arguments("/vm/config", "/vm"), None);
    }

    #[test]
    fn a_body_is_left_out_if_it_is_what_json_takes_for_white_space() {
        assert!(is_blank("") && is_blank(" \t\r\n"));
        // White space to Unicode alone.
        assert!(!is_blank("\u{b}") && !is_blank("\u{a0}") && !is_blank("{}"));
    }

    #[test]
    fn depth_counts_brackets_outside_of_strings() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(!is_too_deep(&nested(DEPTH_MAX)));
        assert!(is_too_deep(&nested(DEPTH_MAX + 1)));
        assert!(!is_too_deep(&format!("\"\\\"{}\"", "[".repeat(100))));
    }

    #[test]
    fn no_two_routes_are_the_same() {
        let mut seen = std::collections::BTreeSet::new();
        for route in all() {
            assert!(seen.insert((route.path, route.method.to_string())), "{} {}", route.method, route.path);
        }
    }
}
