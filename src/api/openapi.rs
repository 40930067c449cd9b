//! The routes as an OpenAPI 3.1 document, made from the table that the server goes by.

use std::collections::BTreeMap;

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};
use vmm::control::JobReport;

use super::answer::{Code, FirecrackerFault, HuskFault, LINES};
use super::routes::{self, Dialect, Presence, Route, Success};

/// What every request may be answered by, told once.
const ABOUT: &str = "The control socket of husk: Firecracker's API, and husk's own under /husk/v1.\n\n\
    A husk path that does not take a method answers 405 with `Allow`, a path that is not there 404; Firecracker's answer \
    400. What is not HTTP/1 is answered 400 without a body, a head that is too large 431 or 414, and the connection is \
    closed. So is one whose request takes longer than 10 s to arrive.";

/// The document.
pub(super) fn document() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| "/components/schemas".clone_into(settings.definitions_path.to_mut()))
        .into_generator();
    let mut paths: BTreeMap<&str, Value> = BTreeMap::new();
    for route in routes::all() {
        let operations = paths.entry(route.path).or_insert_with(|| json!({}));
        operations[route.method.as_str().to_ascii_lowercase()] = operation(route, &mut generator);
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "husk", "version": env!("CARGO_PKG_VERSION"), "description": ABOUT },
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let dialect = routes::dialect(route.path);
    let mut operation = json!({ "summary": route.summary, "tags": [tag(dialect)] });
    let parameters = parameters(route, generator);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = &route.body {
        operation["requestBody"] = json!({
            "required": body.presence == Presence::Required,
            "content": { "application/json": { "schema": (body.schema)(generator) } },
        });
    }
    let mut responses = success(route, generator);
    let fault = match dialect {
        Dialect::Firecracker => routes::schema::<FirecrackerFault>,
        Dialect::Husk => routes::schema::<HuskFault>,
    };
    for (code, description) in faults(route, dialect) {
        let content = json!({ "application/json": { "schema": fault(generator) } });
        responses.insert(code.status().as_str().to_owned(), json!({ "description": description, "content": content }));
    }
    for (status, description) in [("414", "The target is too long."), ("431", "The head is too large.")] {
        responses.insert(status.to_owned(), json!({ "description": description }));
    }
    operation["responses"] = json!(responses);
    operation
}

/// What stands in the braces of the route's path and behind its question mark.
fn parameters(route: &Route, generator: &mut SchemaGenerator) -> Vec<Value> {
    let argument = argument(route.path)
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": (route.argument)(generator) }));
    let query = route.query.map(|query| {
        let schema = generator.subschema_for::<u64>();
        json!({ "name": query.name, "in": "query", "description": query.description, "schema": schema })
    });
    argument.into_iter().chain(query).collect()
}

/// The answer to a request that is carried out, by its status.
fn success(route: &Route, generator: &mut SchemaGenerator) -> BTreeMap<String, Value> {
    let (status, response) = match &route.success {
        Success::NoContent => ("204", json!({ "description": "Done." })),
        Success::Json(schema) => {
            let content = json!({ "application/json": { "schema": schema(generator) } });
            ("200", json!({ "description": "What was asked for.", "content": content }))
        }
        Success::Accepted => {
            let content = json!({ "application/json": { "schema": generator.subschema_for::<JobReport>() } });
            let place = json!({ "description": "The job's place.", "required": true, "schema": { "type": "string" } });
            let description = "The job that does it; it may be over already.";
            ("202", json!({ "description": description, "content": content, "headers": { "Location": place } }))
        }
        Success::Text(content_type) => {
            let mut content = json!({});
            content[content_type] = json!({ "schema": { "type": "string" } });
            ("200", json!({ "description": "What was asked for.", "content": content }))
        }
        Success::Lines(schema) => {
            let line = schema(generator).to_value();
            let lines = json!({ "type": "string", "contentMediaType": LINES, "contentSchema": line });
            let mut content = json!({});
            content[LINES] = json!({ "schema": lines });
            ("200", json!({ "description": "One object a line, without end.", "content": content }))
        }
        Success::Never => return BTreeMap::new(),
    };
    BTreeMap::from([(status.to_owned(), response)])
}

/// How a request may fail. Of kinds with the same status one is named here; an answer tells which it is.
fn faults(route: &Route, dialect: Dialect) -> Vec<(Code, &'static str)> {
    if dialect == Dialect::Firecracker {
        return vec![(Code::BadRequest, "Not done, and nothing has changed.")];
    }
    let mut faults = vec![
        (Code::BadRequest, "The request is wrong."),
        (Code::State, "The present state refuses it, or the machine has ended."),
        (Code::TooLarge, "The request has too many bytes."),
        (Code::Host, "The host does not do it."),
    ];
    if argument(route.path).is_some() {
        faults.push((Code::NotFound, "There is no such thing."));
    }
    if matches!(route.success, Success::Lines(_)) {
        faults.push((Code::TooManyFollowers, "The events are followed by as many clients as may."));
    }
    faults
}

fn tag(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Firecracker => "firecracker",
        Dialect::Husk => "husk",
    }
}

/// The name in a path's braces.
fn argument(path: &str) -> Option<&str> {
    path.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_of_the_document_leads_somewhere() {
        let document = document();
        let mut references = 0;
        let mut queue = vec![&document];
        while let Some(value) = queue.pop() {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(reference)) = fields.get("$ref") {
                        references += 1;
                        assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
                    }
                    queue.extend(fields.values());
                }
                Value::Array(items) => queue.extend(items),
                _ => {}
            }
        }
        assert!(references > 20, "{references}");
    }

    #[test]
    fn every_route_is_there() {
        let document = document();
        for route in routes::all() {
            let operation = &document["paths"][route.path][route.method.as_str().to_ascii_lowercase()];
            assert!(operation["responses"].is_object(), "{} {}", route.method, route.path);
        }
    }
}
