//! Whether a body has arrays and objects only where its schema has them. serde alone takes more: the array of a structure's
//! values for the structure, and the object of a name for the name. What else may be wrong with a body is serde's to say.

use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value};

use super::routes::MakeSchema;

/// An array or object that is not due.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Misfit {
    /// Where, from the top: `rate_limiter.ops`; empty for the whole.
    pub(super) path: String,
    found: &'static str,
    due: String,
}

/// The schema of a body.
pub(super) struct Shape {
    schema: Schema,
    definitions: Definitions,
}

impl Shape {
    pub(super) fn of(schema: MakeSchema) -> Self {
        let mut generator = SchemaGenerator::default();
        let schema = schema(&mut generator);
        Self { schema, definitions: Definitions(generator.take_definitions(true)) }
    }

    /// The first array or object of `body` that the schema does not have there. None of what is no JSON.
    pub(super) fn misfit(&self, body: &str) -> Option<Misfit> {
        let body: Value = serde_json::from_str(body).ok()?;
        self.definitions.misfit(&body, self.schema.as_value(), String::new())
    }
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, found, due } = self;
        match path.as_str() {
            "" => write!(f, "the body is of type {found}: use {due}"),
            path => write!(f, "{path}: is of type {found}: use {due}"),
        }
    }
}

/// The schemas that others refer to.
struct Definitions(Map<String, Value>);

impl Definitions {
    /// The depth of a body is limited, and with it that of this.
    fn misfit(&self, value: &Value, schema: &Value, path: String) -> Option<Misfit> {
        let found = match value {
            Value::Array(_) => "array",
            Value::Object(_) => "object",
            _ => return None,
        };
        let forms = self.forms(schema);
        let mut due: Vec<&str> = Vec::new();
        for form in &forms {
            let types = types(form);
            if types.is_empty() {
                return None;
            }
            due.extend(types);
        }
        if !due.contains(&found) {
            due.dedup();
            return Some(Misfit { path, found, due: due.join(" or ") });
        }
        match value {
            Value::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
                let schema = forms.iter().find_map(|form| form.get("items"))?;
                self.misfit(item, schema, format!("{path}[{index}]"))
            }),
            Value::Object(fields) => fields.iter().find_map(|(name, field)| {
                let schema = forms.iter().find_map(|form| member(form, name))?;
                let dot = if path.is_empty() { "" } else { "." };
                self.misfit(field, schema, format!("{path}{dot}{name}"))
            }),
            _ => None,
        }
    }

    /// The forms that a value of this schema may have.
    fn forms<'a>(&'a self, schema: &'a Value) -> Vec<&'a Value> {
        if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|place| place.rsplit('/').next()) {
            return self.0.get(name).map(|schema| self.forms(schema)).unwrap_or_default();
        }
        match schema.get("anyOf").or(schema.get("oneOf")).and_then(Value::as_array) {
            Some(forms) => forms.iter().flat_map(|form| self.forms(form)).collect(),
            None => vec![schema],
        }
    }
}

/// The schema of a field of that name. Where names have patterns, what differs between them is serde's to say.
fn member<'a>(form: &'a Value, name: &str) -> Option<&'a Value> {
    let of_pattern = || form.get("patternProperties")?.as_object()?.values().next();
    let named = form.get("properties").and_then(|properties| properties.get(name));
    named.or_else(of_pattern).or(form.get("additionalProperties"))
}

/// The types that a form names; none if any will do.
fn types(form: &Value) -> Vec<&str> {
    match form.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;

    use super::super::routes::schema;
    use super::*;

    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "only its schema is used")]
    struct Outer {
        inner: Option<Inner>,
        names: Vec<Name>,
        any: Value,
    }

    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "only its schema is used")]
    struct Inner {
        number: u64,
    }

    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "only its schema is used")]
    enum Name {
        /// One.
        A,
        /// Another.
        B,
    }

    #[test]
    fn arrays_and_objects_stand_where_the_schema_has_them() {
        let shape = Shape::of(schema::<Outer>);
        let misfit = |body: &str| shape.misfit(body).map(|misfit| misfit.to_string());
        for body in [
            "{}",
            r#"{"inner": {"number": "x"}, "names": ["A", "C"], "any": [{}], "other": []}"#,
            r#"{"inner": null}"#,
            "no JSON",
            "3",
        ] {
            assert_eq!(misfit(body), None, "{body}");
        }
        for (body, message) in [
            ("[]", "the body is of type array: use object"),
            (r#"{"inner": [1]}"#, "inner: is of type array: use object or null"),
            (r#"{"inner": {"number": {}}}"#, "inner.number: is of type object: use integer"),
            (r#"{"names": {}}"#, "names: is of type object: use array"),
            (r#"{"names": ["A", {"B": null}]}"#, "names[1]: is of type object: use string"),
        ] {
            assert_eq!(misfit(body).as_deref(), Some(message), "{body}");
        }
    }
}
