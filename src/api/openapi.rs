//! The routes as an OpenAPI 3.1 document, made from the table that the server goes by.

use std::collections::BTreeMap;

use hyper::Method;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::routes::{self, Dialect, Presence, Route, Success};

/// The document.
pub(super) fn document() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| "/components/schemas".clone_into(settings.definitions_path.to_mut()))
        .into_generator();
    let mut paths: BTreeMap<&str, Value> = BTreeMap::new();
    for route in routes::all() {
        let operations = paths.entry(route.path).or_insert_with(|| json!({}));
        operations[route.method.as_str().to_ascii_lowercase()] = operation(&route, &mut generator);
    }
    let mut schemas = generator.take_definitions(true);
    schemas.insert("FirecrackerFault".to_owned(), fault(&["fault_message"], &[]));
    schemas.insert("HuskFault".to_owned(), fault(&["code", "message"], &["state", "field", "hint"]));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "husk",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The control socket of husk: Firecracker's API, and husk's own under /husk/v1.",
        },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let dialect = routes::dialect(route.path);
    let mut operation = json!({ "summary": route.summary, "tags": [tag(dialect)], "responses": {} });
    if let Some(argument) = argument(route.path) {
        operation["parameters"] = json!([
            { "name": argument, "in": "path", "required": true, "schema": { "type": "string" } }
        ]);
    }
    if let Some(body) = &route.body {
        operation["requestBody"] = json!({
            "required": body.presence == Presence::Required,
            "content": { "application/json": { "schema": (body.schema)(generator) } },
        });
    }
    let mut answer = |status: &str, description: &str, content: Option<(&str, Value)>| {
        let mut response = json!({ "description": description });
        if let Some((content_type, schema)) = content {
            response["content"][content_type] = json!({ "schema": schema });
        }
        operation["responses"][status] = response;
    };
    match &route.success {
        Success::NoContent => answer("204", "Done.", None),
        Success::Json(schema) => {
            let schema = schema(generator).to_value();
            answer("200", "What was asked for.", Some(("application/json", schema)));
        }
        Success::Accepted => {
            let schema = generator.subschema_for::<vmm::control::JobReport>().to_value();
            answer("202", "The job that does it; `Location` is its place.", Some(("application/json", schema)));
        }
        Success::Text(content_type) => answer("200", "As it comes.", Some((content_type, json!({ "type": "string" })))),
        Success::Never => {}
    }
    let name = match dialect {
        Dialect::Firecracker => "FirecrackerFault",
        Dialect::Husk => "HuskFault",
    };
    let faults: &[(&str, &str)] = match (dialect, &route.method) {
        (Dialect::Firecracker, _) => &[("400", "Not done, and nothing has changed.")],
        (Dialect::Husk, method) if *method == Method::GET => {
            &[("400", "The request is wrong."), ("404", "There is no such thing."), ("409", "The machine has ended.")]
        }
        (Dialect::Husk, _) => &[
            ("400", "The request is wrong."),
            ("404", "There is no such thing."),
            ("409", "The present state refuses it."),
            ("413", "The request is too large."),
            ("500", "The host does not do it."),
        ],
    };
    let crowded = matches!(route.success, Success::Text("application/x-ndjson"));
    let crowded = crowded.then_some(("503", "Too many clients follow the events."));
    for (status, description) in faults.iter().copied().chain(crowded) {
        let schema = json!({ "$ref": format!("#/components/schemas/{name}") });
        answer(status, description, Some(("application/json", schema)));
    }
    operation
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

fn fault(required: &[&str], optional: &[&str]) -> Value {
    let properties: BTreeMap<_, _> =
        required.iter().chain(optional).map(|name| (*name, json!({ "type": "string" }))).collect();
    json!({ "type": "object", "required": required, "properties": properties })
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
